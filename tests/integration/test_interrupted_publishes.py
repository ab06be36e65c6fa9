"""A signal handler that raises, or forks, in the middle of a publish.

Celery's time limits, gunicorn's worker timeouts and Ctrl-C do that, and they strike anywhere.  The
publish that is struck ends; those that follow have to work as if nothing had been.

The places at which CPython runs signal handlers are tried one after the other: each fifth one, from
a random one of the first five on, and each one in `make long`.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from support.forms import LONG, first_of
from support.processes import Script, eventually

TESTS = Path(__file__).parents[1]

#: Options of the ways in which messages leave.
MODES = {
    "memory": {"request_rate": None, "budget_scope": "process"},
    "memory, limited": {"request_rate": 200.0, "budget_scope": "process"},
    "host": {"request_rate": 200.0, "budget_scope": "host"},
    "host, waiting": {"request_rate": 60.0, "request_burst": 1, "budget_scope": "host"},
    "spool": {"request_rate": 200.0, "publish_mode": "spool"},
    "batch": {"request_rate": 200.0, "batches": True},
}

#: Tokens, each with state of its own in a process: where one is broken, the next is taken.
TOKENS = [f"token-{number}" for number in range(3)]


SERVER = {"tokens": dict.fromkeys(TOKENS, "edit")}


def bodies(server):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages("jobs")]


HARNESS = f"""
    import contextlib, queue, threading
    import kombu_cfqueues
    sys.path.insert(0, {str(TESTS)!r})
    from support.interrupts import HTTP, PACKAGE, Interrupt, at, end_if_stuck, interrupt, places

    PROMPT = 3.0  # seconds; a healthy publish takes a few milliseconds
    now = [None]  # where the main thread is, for the watchdog

    def say(what):
        os.write(1, json.dumps(what).encode() + b"\\n")

    class Broken(Exception):
        pass

    class User:
        \"\"\"One who publishes, with a connection of its own, in this thread and in another.\"\"\"

        def __init__(self, token):
            url = URL.replace(":" + OPTIONS["token"] + "@", "@")
            folder = os.path.join(OPTIONS["spool_dir"], token)
            options = OPTIONS | {{"spool_dir": folder, "api_token": self.ask_for_token}}
            self.interrupts = None
            self.connection = Connection(url, transport_options=options)
            self.producer = self.connection.Producer()
            self.count, self.token = 0, token
            self.publish("first")
            self.publish("second")
            self.work = queue.Queue()
            threading.Thread(target=self.serve, daemon=True).start()

        def ask_for_token(self):
            \"\"\"As the library does for each request, in the middle of it.\"\"\"
            if self.interrupts == threading.get_ident():
                self.interrupts = None
                interrupt()
            return self.token

        def publish_and_be_interrupted(self):
            self.interrupts = threading.get_ident()
            with contextlib.suppress(Interrupt):
                self.publish("interrupted")
            self.interrupts = None

        def publish(self, body):
            with contextlib.ExitStack() as stack:
                if OPTIONS.get("batches"):
                    stack.enter_context(kombu_cfqueues.batch(self.connection))
                self.producer.publish(
                    body, routing_key="jobs", serializer="json", timeout=PROMPT + 1
                )

        def serve(self):
            producer = self.connection.clone().Producer()
            while True:
                body, answers = self.work.get()
                try:
                    producer.publish(
                        body, routing_key="jobs", serializer="json", timeout=PROMPT + 1
                    )
                    answers.put(None)
                except BaseException as error:
                    answers.put(f"{{type(error).__name__}}: {{error}}")

        def publish_next(self):
            \"\"\"Publish from another thread; return why that went wrong.\"\"\"
            self.count += 1
            answers = queue.Queue()
            started = time.monotonic()
            self.work.put(([self.token, self.count], answers))
            try:
                said = answers.get(timeout=PROMPT + 3)
            except queue.Empty:
                return "it never returned"
            seconds = time.monotonic() - started
            if said is None and seconds < PROMPT:
                expected.append([self.token, self.count])
                return None
            return said or f"it took {{seconds:.1f}} s"

    end_if_stuck(now, PROMPT + 4, lambda place: say({{"stuck": place}}))
    expected, tokens = [], iter({TOKENS!r})
    user = User(next(tokens))

    def call():
        user.publish_and_be_interrupted() if OPTIONS.get("twice") else user.publish("interrupted")

    files = HTTP if OPTIONS.get("http") else (PACKAGE,)
    todo = places(call, files)
    todo += [place for place in places(call, files) if place not in todo]
    todo = todo[OPTIONS["first"] :: OPTIONS["step"]]
"""

EXCEPTIONS = """
    broken, passed = {}, 0
    for place in todo:
        now[0] = place
        passed += at(place, interrupt, call, files)
        why = user.publish_next()
        if why is None:
            continue
        broken[str(place)] = why
        token = next(tokens, None)
        if token is None:
            break
        user = User(token)
    now[0] = None
    say({"places": len(todo), "passed": passed, "broken": broken, "expected": expected})
    sys.stdin.readline()
    os._exit(0)
"""


def options_of(server, tmp_path, mode):
    """Options of *mode*, and which places to try."""
    step = 1 if LONG else 5
    first = int(os.environ.get("CFQUEUES_SEED", random.randrange(step))) % step
    print("CFQUEUES_SEED =", first)
    chosen = {"spool_dir": str(tmp_path), "token": server.token, "first": first, "step": step}
    return chosen | MODES[mode]


def try_all(server, options):
    """Interrupt a publish at each place of it; return what the next publishes came to."""
    with Script(HARNESS + EXCEPTIONS, server.broker_url, options) as script:
        said = script.line()
        assert "stuck" not in said, said
        print(said["passed"], "of", said["places"], "places were passed")
        assert said["passed"] > said["places"] / 2
        assert said["broken"] == {}
        # What was told to have been taken arrives, also where that is somebody else's work.
        expected = {tuple(one) for one in said["expected"]}
        assert eventually(
            lambda: expected <= {tuple(b) for b in bodies(server) if isinstance(b, list)}, 20
        )
        script.go()


@pytest.mark.longer
@pytest.mark.parametrize("mode", MODES)
def test_wherever_a_publish_is_interrupted_the_next_one_works_promptly(server, tmp_path, mode):
    """In whichever thread it is, and without anybody's doing."""
    try_all(server, options_of(server, tmp_path, mode))


@pytest.mark.parametrize("mode", first_of(["memory", "host"]))
def test_wherever_a_request_of_a_publish_is_interrupted_the_next_one_works_promptly(
    server, tmp_path, mode
):
    """All requests of a process share the connections that it keeps open.  Each place is tried."""
    options = options_of(server, tmp_path, mode) | {"http": True, "first": 0, "step": 1}
    try_all(server, options)


@pytest.mark.long
@pytest.mark.parametrize("mode", first_of(["host, waiting", "memory", "memory, limited", "host"]))
def test_a_publish_that_is_interrupted_once_more_while_it_ends_leaves_nothing_behind(
    server, tmp_path, mode
):
    """Ctrl-C, and again Ctrl-C, as people press it: the second strikes what tidies up."""
    try_all(server, options_of(server, tmp_path, mode) | {"twice": True})


FORKS = """
    def fork():
        pid = os.fork()
        if pid == 0:
            if not deep:
                os._exit(0)
            # Its main thread is in the middle of a publish, which is the parent's to finish.
            def publish():
                producer = user.connection.clone().Producer()
                producer.publish(["child", number], routing_key="jobs", serializer="json")
                os._exit(0)
            threading.Thread(target=publish).start()
            time.sleep(20)
            os._exit(1)
        children.append(pid)

    children, statuses, broken = [], [], {}
    for number, place in enumerate(todo):
        now[0] = place
        deep = number % 25 == 0
        at(place, fork, lambda: user.publish(["parent", number]), files)
        statuses += [os.waitpid(pid, 0)[1] for pid in children]
        children.clear()
        why = user.publish_next()
        if why is not None:
            broken[str(place)] = why
            break
    now[0] = None
    say({"forks": len(statuses), "failed": sum(map(bool, statuses)), "broken": broken})
    os._exit(0)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "mode", first_of(["host, waiting", *(mode for mode in MODES if mode != "host, waiting")])
)
def test_a_signal_handler_may_fork_wherever_it_interrupts_a_publish(server, tmp_path, mode):
    """The fork returns, the publish goes on, and the child can publish from another thread."""
    options = options_of(server, tmp_path, mode)
    with Script(HARNESS + FORKS, server.broker_url, options) as script:
        said = script.line()
    assert "stuck" not in said, said
    assert said["broken"] == {}
    assert said["forks"] > 10
    assert said["failed"] == 0
