"""A child of a fork shares nothing of the spool's file with its parent.

SQLite records in memory which locks it holds on a file.  A forked child would inherit that record,
but not the locks: it would go on without them, and whoever opens the file after the parent has died
would reset it under the child.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest
from support.processes import Script, eventually
from support.publishers import arrivals

CHILDREN, MESSAGES = 3, 60
LOCKS = Path("/proc/locks")

PARENT = """
    import threading

    connection = connect()

    def say(*words):
        os.write(1, (json.dumps(words) + chr(10)).encode())  # in one piece

    def spool(body):
        connection.Producer().publish(body, routing_key="jobs", serializer="json")

    def spool_many(name):
        for number in range(OPTIONS["messages"]):
            spool(f"{name} {number}")
            say(f"{name} {number}")
"""

DEAD_PARENT = """
    spool("parent")
    for child in range(OPTIONS["children"]):
        if not os.fork():
            spool(f"first of child {child}")
            say(os.getpid())
            spool_many(f"child {child}")
            sys.stdin.read()
            os._exit(0)
    os.kill(os.getpid(), 9)
"""

#: Each child is forked while two threads of the parent read and write.
BUSY_PARENT = """
    spool("first")  # a fork in the middle of an import would leave the child a locked module
    over = threading.Event()

    def busy(thread):
        number = 0
        while not over.is_set():
            spool(f"parent {thread} {number}")
            say(f"parent {thread} {number}")
            number += 1

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for child in range(16):
        if not os.fork():
            spool_many(f"child {child}")
            sys.stdin.read()  # until all has arrived: what it is sending must not be sent again
            os._exit(0)
    over.set()
    for thread in threads:
        thread.join()
    say("forked")
    sys.stdin.read()
"""

ANOTHER = (
    PARENT
    + """
    spool_many(f"another {os.getpid()}")
"""
)


@pytest.fixture
def options(tmp_path):
    return {
        "publish_mode": "spool",
        "spool_dir": str(tmp_path / "spool"),
        "children": CHILDREN,
        "messages": MESSAGES,
    }


def holders(path):
    """The processes that hold a lock on a file."""
    inode = str(path.stat().st_ino)
    locks = [line.split() for line in LOCKS.read_text().splitlines()]
    return {int(words[-4]) for words in locks if words[-3].split(":")[-1] == inode}


def nothing_was_put_aside(tmp_path):
    return not list((tmp_path / "spool").glob("*.unusable-*"))


def test_children_use_the_file_after_their_parent_was_killed(server, options, tmp_path):
    """Other processes open the file meanwhile, write to it as well, and close it."""
    with contextlib.ExitStack() as stack:
        parent = stack.enter_context(Script(PARENT + DEAD_PARENT, server.broker_url, options))
        parent.process.wait(60)
        said = [parent.line() for _ in range(CHILDREN)]
        pids = {word for (word,) in said if isinstance(word, int)}
        while len(pids) < CHILDREN:
            said.append(parent.line())
            pids |= {word for (word,) in said if isinstance(word, int)}
        (memory,) = (tmp_path / "spool").glob("*.db-shm")
        if LOCKS.exists():  # Linux
            assert pids <= holders(memory), "a child uses the file without SQLite's locks"
        others = [
            stack.enter_context(Script(ANOTHER, server.broker_url, options)) for _ in range(2)
        ]
        said += [words for other in others for words in other.wait(60)]
        while sum(str(word).startswith("child") for (word,) in said) < CHILDREN * MESSAGES:
            said.append(parent.line())
        expected = {word for (word,) in said if word not in pids} | {"parent"}
        eventually(lambda: expected <= arrivals(server).keys(), 20)
        assert expected <= arrivals(server).keys()
    assert nothing_was_put_aside(tmp_path)


def test_children_that_are_forked_while_threads_use_the_file(server, options, tmp_path):
    options |= {"messages": 5}
    with Script(PARENT + BUSY_PARENT, server.broker_url, options) as parent:
        said = []
        while sum(body.startswith("child") for (body,) in said) < 80 or ["forked"] not in said:
            said.append(parent.line())
        expected = Counter(body for (body,) in said if body != "forked")
        expected["first"] = 1
        eventually(lambda: len(arrivals(server)) >= len(expected))
        assert arrivals(server) == expected
        parent.wait(60)
    assert nothing_was_put_aside(tmp_path)
