"""``budget_url``: machines share one allowance through a real Redis server.

A machine is a folder: processes with different ``spool_dir`` share nothing but Redis.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from kombu import Connection
from support.forms import first_of
from support.processes import GREEN, ROOT, Script, eventually, needs
from support.publishers import Publisher, arrivals
from support.redis_server import PASSWORD, QUOTED
from support.scripted import Api, Failure, ScriptedServer

import kombu_cfqueues
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import ConfigurationError, Scope
from kombu_cfqueues.options import Secret
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.redis_allowance import BudgetUnavailable, RedisAllowance
from kombu_cfqueues.runtime.extras import install_command
from kombu_cfqueues.spool.file import File

RATE, BURST = 20.0, 10


@pytest.fixture
def machine(redis_server, tmp_path):
    """Makes the options of a machine, by its name."""

    def options(name: str = "one", **given):
        return {
            "budget_url": redis_server.url,
            "spool_dir": str(tmp_path / name),
            "request_rate": RATE,
            "request_burst": BURST,
            **given,
        }

    return options


#: Publishes from some threads until it is told to stop; says how many requests it made.
BUSY = """
import threading
from kombu_cfqueues import errors, stats
name, threads, failed = OPTIONS.pop("name"), OPTIONS.pop("threads"), []
ended = threading.Event()

def run(number):
    with connect() as connection:
        producer, count = connection.Producer(serializer="json"), 0
        while not ended.is_set():
            body = f"{name}-{number}-{count}"
            try:
                producer.publish(body, routing_key="jobs")
            except errors.CFQueuesError as error:
                failed.append([body, error.delivered, str(error)])
            else:
                published.append(body)
            count += 1

import logging
logging.basicConfig(level=logging.INFO)
published = []
with connect() as connection:
    connection.connect()
print(json.dumps("ready"), flush=True)
sys.stdin.readline()
workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
for worker in workers: worker.start()
sys.stdin.readline()
ended.set()
for worker in workers: worker.join()
said = stats()
print(json.dumps({"published": published, "failed": failed, "stats": said}))
"""


def let_run(machines: list[Script], during=lambda: time.sleep(3.0)) -> list[dict]:
    """Let busy machines publish while *during* runs; return what each one says."""
    for each in machines:
        assert each.line() == "ready"
    for each in machines:
        each.go()
    during()
    for each in machines:
        each.go()
    return [each.wait()[0] for each in machines]


def check_all_arrived(server: Emulator, said: list[dict]) -> None:
    published = Counter(body for machine in said for body in machine["published"])
    found = arrivals(server)
    assert published - found == Counter()
    assert max(found.values()) == 1
    unsure = {body for m in said for body, delivered, _ in m["failed"] if delivered != "no"}
    assert set(found) - set(published) <= unsure


@contextlib.contextmanager
def busy_machines(server: Emulator, options: list[dict], threads: int = 4, **given):
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                Script(BUSY, server.broker_url, {**each, "name": n, "threads": threads}, **given)
            )
            for n, each in enumerate(options)
        ]


def check_paced(server: Emulator, rate: float = RATE, burst: int = BURST) -> None:
    """All machines together have made no more requests than one may.

    A busy computer delays requests, which makes the time between two of them longer or shorter.
    """
    times = sorted(request.time for request in server.requests)
    assert (len(times) - burst) / rate <= 1.2 * (times[-1] - times[0]), len(times)


@pytest.mark.long
def test_three_machines_have_the_allowance_of_one(machine, server):
    """Each of them alone would use the whole of it."""
    with busy_machines(server, [machine(f"m{n}") for n in range(3)]) as machines:
        said = let_run(machines)
    check_all_arrived(server, said)
    check_paced(server)
    assert not any(each["failed"] for each in said)
    requests = [each["stats"]["publish_requests"] for each in said]
    # First come, first served: none of them has much more than another.
    assert min(requests) > max(requests) / 3, requests


@pytest.mark.long
def test_the_spools_of_two_machines_share_it_too(machine, server):
    """Each machine empties its own spool, at the pace of the fleet."""
    with contextlib.ExitStack() as stack:
        for name in ("one", "two"):
            options = machine(name, publish_mode="spool", request_rate=4.0, request_burst=5)
            publisher = stack.enter_context(Publisher(server.broker_url, options))
            # A request carries three of them.
            publisher.publish(*(f"{name}-{n}-{'x' * 70_000}" for n in range(30)))
        assert eventually(lambda: len(arrivals(server)) == 60)
    assert set(arrivals(server).values()) == {1}
    check_paced(server, 4.0, 5)


def test_the_limit_of_the_api_is_never_reached(machine):
    """Half as much again as the fleet may send in a window: a busy computer delays requests."""
    limit = int(1.5 * (RATE * 2 + BURST))
    with Emulator(rate_limit=limit, rate_window_seconds=2, rate_block_seconds=60) as server:
        server.create_queue("jobs")
        with busy_machines(server, [machine("one"), machine("two")]) as machines:
            said = let_run(machines)
        check_all_arrived(server, said)
    assert not any(each["stats"]["limited_requests"] for each in said)


def lines(script: Script, text: str) -> int:
    return sum(text in line for line in script.errors.splitlines())


def test_redis_is_killed_and_comes_back_empty(machine, redis_server):
    """Messages may be late, none is lost or sent twice; a line says that it began, one its end."""
    limit = int(1.5 * (RATE * 2 + BURST))
    with Emulator(rate_limit=limit, rate_window_seconds=2, rate_block_seconds=60) as server:
        server.create_queue("jobs")

        def outage():
            time.sleep(1.0)
            redis_server.kill()
            time.sleep(1.0)
            redis_server.start()
            # The machines notice by themselves: they ask every few seconds.
            assert eventually(lambda: redis_server.asking_clients() == 2)
            time.sleep(1.0)

        with busy_machines(server, [machine("one"), machine("two")]) as machines:
            said = let_run(machines, outage)
        check_all_arrived(server, said)
    for script in machines:
        assert lines(script, "cannot be shared with other machines") == 1, script.errors
        assert lines(script, f"is shared through {redis_server.shown} again") == 1, script.errors
        assert PASSWORD not in script.errors
        assert QUOTED not in script.errors
    assert not any(each["stats"]["limited_requests"] for each in said)
    assert all(each["stats"]["shared_budgets"] == {redis_server.shown: True} for each in said)


def test_a_redis_that_does_not_answer_delays_a_publish_by_little(machine, redis_server, server):
    """It accepts connections and is silent, as one that is overloaded or behind a bad network."""
    options = machine(request_rate=100.0, publish_timeout=30.0)
    with Connection(server.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        producer.publish("before", routing_key="jobs", serializer="json")
        redis_server.hang()
        try:
            started = time.monotonic()
            producer.publish("meanwhile", routing_key="jobs", serializer="json")
            producer.publish("meanwhile 2", routing_key="jobs", serializer="json")
            assert time.monotonic() - started < 15
        finally:
            redis_server.go_on()
    assert set(arrivals(server)) == {"before", "meanwhile", "meanwhile 2"}


def test_a_redis_that_is_not_there_at_the_start_is_no_error(machine, redis_server, server, caplog):
    redis_server.kill()
    with Connection(server.broker_url, transport_options=machine()) as connection:
        connection.Producer().publish("hello", routing_key="jobs", serializer="json")
    assert arrivals(server) == {"hello": 1}
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert f"{redis_server.shown} failed" in told[0]
    assert kombu_cfqueues.stats()["shared_budgets"][redis_server.shown] is False
    redis_server.start()


@pytest.mark.parametrize("answer", ["whole token", "publishing"])
def test_a_429_of_one_machine_stops_the_others(machine, answer):
    """The second machine learns it from Redis, and makes no request at all."""
    code = {"whole token": 971, "publishing": 10253}[answer]
    refusal = Failure(429, code, "no more for now", Retry_After="60")
    api = Api(["jobs"])
    with ScriptedServer(otherwise=lambda r: refusal if "/messages" in r.path else api(r)) as server:
        options = [machine(name, publish_timeout=5.0) for name in ("one", "two")]
        with (
            Publisher(server.broker_url, options[0]) as one,
            Publisher(server.broker_url, options[1]) as two,
        ):
            one.publish("first")
            assert one.outcomes(1)["first"].told == "no"
            two.publish("second")
            outcome = two.outcomes(1)["second"]
        posts = [r for r in server.requests if "/messages" in r.path]
    assert outcome.told == "no"
    assert "has stopped" in outcome.text
    assert len(posts) == 1


def test_admin_requests_take_permits_of_the_fleet(machine, redis_server, server):
    options = machine(request_rate=0.5, request_burst=50)
    with Connection(server.broker_url, transport_options=options) as connection:
        channel = connection.default_channel
        with connection.SimpleQueue("jobs") as queue:
            before = redis_server.spent()
            channel.queue_purge("jobs")
            del queue
    assert redis_server.spent() > before


def test_a_fork_has_a_connection_of_its_own(machine, redis_server, server):
    """Parent and child use Redis at the same time, and neither reads the other's answers."""
    code = """
        with connect() as connection:
            producer = connection.Producer(serializer="json")
            producer.publish("before", routing_key="jobs")
            child = os.fork()
            who = "parent" if child else "child"
            for number in range(10):
                producer.publish(f"{who}-{number}", routing_key="jobs")
            if not child:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        print(json.dumps(kombu_cfqueues.stats()["shared_budgets"]))
    """
    connections = redis_server.connections_so_far()
    options = machine(request_rate=100.0)
    with Script(code, server.broker_url, options) as script:
        assert script.wait() == [{redis_server.shown: True}]
        assert "cannot be shared" not in script.errors
    assert set(arrivals(server).values()) == {1}
    assert len(arrivals(server)) == 21
    assert redis_server.connections_so_far() - connections >= 2


@pytest.mark.parametrize("green", first_of(GREEN))
def test_greenlets_share_it(machine, redis_server, server, green):
    needs(green)
    with busy_machines(server, [machine("one")], threads=8, green=green) as machines:
        said = let_run(machines, lambda: time.sleep(1.0))
    check_all_arrived(server, said)
    assert said[0]["published"]
    assert not said[0]["failed"]
    assert said[0]["stats"]["shared_budgets"] == {redis_server.shown: True}
    assert "Error" not in machines[0].errors


def test_a_token_that_replaces_another_inherits_its_debt(redis_server):
    """Cloudflare's limit applies to the user.  Another account has an allowance of its own."""
    limit = Limit(0.01, 20)
    one = RedisAllowance(Secret(redis_server.url), "https://api", "account-1", limit)
    other = RedisAllowance(Secret(redis_server.url), "https://api", "account-2", limit)
    used = 0
    while one.ask("old", publishing=True).wait == 0:
        used += 1
    assert used == 5  # a new allowance begins with a few permits
    assert one.look("new").free == 0
    assert other.look("new").free == 5
    one.stop("old", Scope.EVERYTHING, 60)
    assert one.look("newer").stopped > 0
    assert other.look("new").stopped == 0


def test_machines_that_were_alone_do_not_return_with_a_full_burst(redis_server):
    """Nobody knows what they spent meanwhile; nor does a block save permits up."""
    fleet = RedisAllowance(Secret(redis_server.url), "https://api", "account", Limit(1000.0, 50))
    fleet.ask("token", publishing=True)
    assert eventually(lambda: fleet.look("token").free == 50)
    fleet.ask("token", publishing=True, anew=True)
    assert fleet.look("token").free < 50


def test_a_machine_that_was_alone_has_no_full_burst_after_a_stop_either(redis_server):
    """It says only once that it was alone, and publishing may be stopped at that moment."""
    fleet = RedisAllowance(Secret(redis_server.url), "https://api", "account", Limit(1.0, 50))
    fleet.ask("token", publishing=False)
    with redis_server.client() as client:  # as after a quiet time
        for key in client.keys("cfqueues:budget:*"):
            client.hset(key, "busy_until", 1)
    assert fleet.look("token").free == 50
    fleet.stop("token", Scope.PUBLISHING, 60)
    assert not fleet.ask("token", publishing=True, anew=True).granted
    assert fleet.look("token").free < 50


def test_without_redis_a_machine_has_the_share_that_a_block_has_taught(redis_server, tmp_path):
    """Else a sixteenth.  With Redis, a share that was learned changes nothing."""
    limit = Limit(16.0, 60)
    fleet = RedisAllowance(Secret(redis_server.url), "https://api", "account", limit)
    file = File("https://api", "account", limit, lambda: "t", spool_dir=str(tmp_path), fleet=fleet)

    def pace(bucket):
        return bucket.ready_at(102) - bucket.ready_at(101)

    file.write(lambda c: file.fleet_bucket(c).failed("gone", 0.0))
    assert file.read(lambda c: pace(file.bucket(c))) == pytest.approx(1.0)
    file.write(lambda c: file.fleet_bucket(c).stop(Scope.EVERYTHING, 0.0, is_block=True))
    learned = file.read(lambda c: file.bucket(c).share)
    assert learned is not None
    assert file.read(lambda c: pace(file.bucket(c))) == pytest.approx(1 / learned.rate)
    file.write(lambda c: file.fleet_bucket(c).granted(0.0))
    assert file.read(lambda c: pace(file.bucket(c))) == pytest.approx(1 / 16)


def test_after_a_reboot_a_machine_asks_redis_at_once(redis_server, tmp_path):
    """The pauses and permits in the file are times of a clock that has started again."""
    limit = Limit(16.0, 60)
    fleet = RedisAllowance(Secret(redis_server.url), "https://api", "account", limit)

    def opened(boot, fleet=fleet):
        folder, token = str(tmp_path), lambda: "t"
        return File(
            "https://api", "account", limit, token, spool_dir=folder, boot=lambda: boot, fleet=fleet
        )

    alone = opened("first", fleet=None)  # made before anybody has set budget_url
    alone.write(lambda c: None)
    before = opened("first")
    before.write(lambda c: before.fleet_bucket(c).failed("gone", 100.0))
    assert not before.read(lambda c: before.fleet_bucket(c).may_ask)
    alone.close()
    before.close()

    after = opened("second")
    bucket = after.read(after.fleet_bucket)
    assert bucket.may_ask
    assert bucket.trouble is None


def test_what_the_api_reports_slows_the_fleet(redis_server):
    """Another tool uses the token too: what is left is spread over the time until the reset."""
    fleet = RedisAllowance(Secret(redis_server.url), "https://api", "account", Limit(10.0, 5))
    fleet.heed(200, 10)  # more than enough, with the few permits that a new allowance has
    assert [fleet.ask("a", publishing=True).wait for _ in range(2)][1] < 0.2
    fleet.heed(5, 10)
    waits = [fleet.ask("a", publishing=True).wait for _ in range(3)]
    assert waits[2] - waits[1] == pytest.approx(2.0, abs=0.5)
    fleet.heed(1000, 10)
    waits = [fleet.ask("a", publishing=True).wait for _ in range(3)]
    assert waits[2] - waits[1] == pytest.approx(0.1, abs=0.09)


@pytest.mark.parametrize("meanwhile", ["redis fails", "publishing is stopped", "doctor looks"])
def test_what_the_api_reports_reaches_the_fleet_later(redis_server, meanwhile):
    """A report is sent until Redis has recorded it: the other machines learn it only from there."""
    url, limit = Secret(redis_server.url), Limit(10.0, 5)
    one = RedisAllowance(url, "https://api", "account", limit)
    other = RedisAllowance(url, "https://api", "account", limit)
    one.heed(5, 10)
    if meanwhile == "redis fails":
        redis_server.kill()
        with pytest.raises(BudgetUnavailable):
            one.ask("a", publishing=False)
        redis_server.start()
        one.ask("a", publishing=False)
    elif meanwhile == "publishing is stopped":
        other.stop("a", Scope.PUBLISHING, 60)
        assert not one.ask("a", publishing=True).granted
    else:
        one.look("a")
        one.ask("a", publishing=False)
    waits = [other.ask("a", publishing=False).wait for _ in range(3)]
    assert waits[2] - waits[1] == pytest.approx(2.0, abs=0.5)


def test_a_wrong_password_is_said_and_not_shown(machine, redis_server, server, caplog):
    wrong = "not-the-password%2F%25"
    url = redis_server.url.replace(QUOTED, wrong)
    caplog.set_level(logging.DEBUG)
    with Connection(server.broker_url, transport_options=machine(budget_url=url)) as connection:
        connection.Producer().publish("hello", routing_key="jobs", serializer="json")
        shown = [repr(connection), str(connection), repr(connection.transport.client)]
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "AuthenticationError" in told
    everything = "\n".join([caplog.text, *shown, repr(kombu_cfqueues.stats())])
    assert "not-the-password" not in everything
    assert arrivals(server) == {"hello": 1}


def test_a_server_that_repeats_the_password_does_not_get_it_into_the_log():
    """Redis quotes the arguments of a command that it does not know."""
    needs("redis")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            with listening.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(f"-ERR unknown command, args: '{PASSWORD}'\r\n".encode())

        threading.Thread(target=answer, daemon=True).start()
        url = f"redis://:{QUOTED}@127.0.0.1:{listening.getsockname()[1]}/0"
        fleet = RedisAllowance(Secret(url), "https://api", "account", Limit(1.0, 5))
        with pytest.raises(BudgetUnavailable, match="unknown command") as failed:
            fleet.ask("token", publishing=True)
    assert PASSWORD not in str(failed.value)


def test_a_second_connection_with_another_url_shows_neither(machine, redis_server, server, caplog):
    """What differs between connections to one account is logged, but a password is not."""
    other = redis_server.url.replace("/0", "/1")
    with (
        Connection(server.broker_url, transport_options=machine()) as one,
        Connection(server.broker_url, transport_options=machine(budget_url=other)) as two,
    ):
        one.connect()
        two.connect()
    assert "budget_url=a value that is not shown has no effect" in caplog.text
    assert QUOTED not in caplog.text


def test_without_the_package_connecting_says_which_extra_to_install(machine, server, monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    with (
        Connection(server.broker_url, transport_options=machine()) as connection,
        pytest.raises(ConfigurationError, match=re.escape(install_command("redis", "redis"))),
    ):
        connection.connect()


def test_without_budget_url_redis_is_not_imported(server, tmp_path):
    code = """
        with connect() as connection:
            connection.Producer().publish("hello", routing_key="jobs", serializer="json")
        print(json.dumps("redis" in sys.modules))
    """
    options = {"request_rate": 50.0, "spool_dir": str(tmp_path / "spool")}
    with Script(code, server.broker_url, options) as script:
        assert script.wait() == [False]


def test_doctor_says_who_shares_the_allowance_and_whether_redis_answers(
    machine, redis_server, server, monkeypatch
):
    monkeypatch.setenv("CFQUEUES_BUDGET_URL", redis_server.url)
    spool_dir = machine()["spool_dir"]
    said = doctor(server.broker_url, spool_dir)
    assert f"shared by all machines through Redis at {redis_server.shown}, which answers" in said
    redis_server.kill()
    silent = doctor(server.broker_url, spool_dir)
    assert "which does not answer" in silent
    assert QUOTED not in said + silent
    assert PASSWORD not in said + silent
    redis_server.start()


def doctor(url: str, spool_dir: str) -> str:
    command = "from kombu_cfqueues.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "doctor", "--spool-dir", spool_dir, "--request-rate=20"],
        env=os.environ | {"CFQUEUES_BROKER_URL": url, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr
