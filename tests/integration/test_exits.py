"""Short-lived processes that spool and end: what they spooled is delivered before they are gone."""

from __future__ import annotations

import pytest
from support.processes import Script, eventually

from kombu_cfqueues.emulator import Emulator

SETUP = """
    import multiprocessing, concurrent.futures, signal, threading

    def publish(number):
        with connect() as connection:
            connection.Producer().publish(number, routing_key="jobs")
"""

PROGRAMS = {
    "a script": "\n    publish(0)\n",
    "an exit handler that runs after ours": """
    import atexit
    atexit.register(publish, 0)
    publish(1)
    """,
    "children of multiprocessing": """
    children = [context.Process(target=publish, args=(n,)) for n in range(3)]
    for child in children: child.start()
    for child in children: child.join()
    """,
    "an executor": """
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        list(pool.map(publish, range(4)))
    """,
    "children of billiard": """
    import billiard
    children = [billiard.Process(target=publish, args=(n,)) for n in range(3)]
    for child in children: child.start()
    for child in children: child.join()
    """,
}
COUNTS = {
    "a script": 1,
    "an exit handler that runs after ours": 2,
    "children of multiprocessing": 3,
    "an executor": 4,
    "children of billiard": 3,
}


@pytest.fixture
def server():
    with Emulator(latency=0.05) as emulator:
        emulator.create_queue("jobs")
        yield emulator


@pytest.mark.parametrize("parent_has_spooled", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_process_that_ends_delivers_what_it_spooled(
    server, tmp_path, program, parent_has_spooled
):
    """Up to 3 seconds are for that.  A parent that has spooled does it for its children."""
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path / "spool")}
    begin = "\n    publish(-1)\n" if parent_has_spooled else "\n"
    code = SETUP + '    context = multiprocessing.get_context("fork")\n' + begin
    code += PROGRAMS[program]
    if not parent_has_spooled:
        code += "\n    os._exit(0)\n" if COUNTS[program] > 2 else ""  # the children do it alone
    with Script(code, server.broker_url, options) as script:
        script.wait(60)
    expected = COUNTS[program] + parent_has_spooled
    assert eventually(lambda: len(server.messages("jobs")) == expected, 0.2)


def test_a_child_of_multiprocessing_that_ends_has_acknowledged(server):
    """It does not close its connection, and runs no exit handlers of Python."""
    server.create_queue("work")
    code = """
    connection = connect()

    def get():
        connection.SimpleQueue("work").get(timeout=30).ack()

    with connect() as other:
        other.Producer().publish(1, routing_key="work")
    child = multiprocessing.get_context("fork").Process(target=get)
    child.start()
    child.join()
    os._exit(0)
    """
    with Script(SETUP + code, server.broker_url, {}) as script:
        script.wait(60)
    assert server.messages("work") == []
