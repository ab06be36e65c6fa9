"""Short-lived processes that spool and end: what they spooled is delivered before they are gone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from support.forms import first_of
from support.processes import ROOT, Script, eventually, needs

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


SERVER = {"latency": 0.05}


@pytest.mark.parametrize("parent_has_spooled", first_of([False, True]))
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


#: Python 3.12 starts no threads while it exits.  gevent asks for names in threads.
NO_MORE_THREADS = """
    import gevent.threadpool

    def refuse(*_):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    gevent.threadpool.start_new_thread = refuse
"""


@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_a_program_of_greenlets_delivers_though_no_thread_can_start(server, tmp_path, mode):
    """Whatever needs the first connection of the process: our exit handler, or another one."""
    needs("gevent")
    options = {"publish_mode": mode, "spool_dir": str(tmp_path / "spool")}
    code = SETUP + PROGRAMS["an exit handler that runs after ours"]
    if mode == "confirm":
        code = code.replace("publish(1)", "atexit.register(publish, 1)")
    with Script(code + NO_MORE_THREADS, server.broker_url, options, green="gevent") as script:
        script.wait(60)
    assert script.errors == ""
    assert len(server.messages("jobs")) == 2


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


APP = """
    import os
    import kombu_cfqueues
    from celery import Celery

    app = Celery("shop", broker=os.environ["URL"], set_as_current=True)
    app.conf.task_ignore_result = True
    app.conf.task_default_queue = "jobs"
    app.conf.broker_transport_options = {
        "publish_mode": "spool", "spool_dir": os.environ["SPOOL"],
    }

    @app.task(name="shop.ship")
    def ship(order):
        pass
"""

COMMAND = """
    from django.core.management.base import BaseCommand
    from shop import ship

    class Command(BaseCommand):
        def handle(self, *args, **options):
            ship.delay(1)
"""

MANAGE = """
    import os, sys
    import shop
    from django.core.management import execute_from_command_line

    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    execute_from_command_line(sys.argv)
"""

#: A scheduler as Airflow's is: it lives on, and its children publish a task each and end.
SCHEDULER = """
    import concurrent.futures, multiprocessing, os, sys
    import shop

    def send(number):
        shop.app.tasks["shop.ship"].apply_async((number,))

    if __name__ == "__main__":
        context = multiprocessing.get_context(sys.argv[1])
        with concurrent.futures.ProcessPoolExecutor(2, context) as children:
            list(children.map(send, range(6)))
        os._exit(0)  # what the children have left behind stays behind
"""


@pytest.fixture
def run(server, tmp_path):
    """Run a command of a project in `tmp_path` until it ends."""

    def run(*command, **files):
        for name, code in {"shop": APP, **files}.items():
            path = tmp_path / f"{name.replace('__', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(code))
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {
                "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
                "URL": server.broker_url,
                "SPOOL": str(tmp_path / "spool"),
            },
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_celery_call_delivers_its_task(server, run):
    run("-m", "celery", "-A", "shop", "call", "shop.ship", "--args", "[1]")
    assert len(server.messages("jobs")) == 1


def test_a_command_of_manage_py_delivers_its_task(server, run):
    needs("django")
    run(
        "manage.py",
        "ship",
        settings="INSTALLED_APPS = ['orders']",
        manage=MANAGE,
        orders____init__="",
        orders__management____init__="",
        orders__management__commands____init__="",
        orders__management__commands__ship=COMMAND,
    )
    assert len(server.messages("jobs")) == 1


@pytest.mark.parametrize("method", first_of(["fork", "spawn"]))
def test_children_of_a_scheduler_deliver_their_tasks(server, run, method):
    run("scheduler.py", method, scheduler=SCHEDULER)
    assert len(server.messages("jobs")) == 6
