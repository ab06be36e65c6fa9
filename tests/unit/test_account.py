"""What the connections of a process share, and what ends with the last of them."""

import gc
import os
import threading
import time
import traceback
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from kombu import Connection
from support.scripted import Api, Failure, ScriptedServer

import kombu_cfqueues  # noqa: F401  makes cfqueues:// known
from kombu_cfqueues import errors
from kombu_cfqueues.account import MAX_IDLE_ACCOUNTS, Account, _registry
from kombu_cfqueues.options import Options, Secret


@pytest.fixture
def server():
    with ScriptedServer(otherwise=Api(["jobs"])) as server:
        yield server


def options(server, **given):
    return Options(
        account_id=server.account,
        api_token=Secret(server.token),
        base_url=server.base_url,
        **given,
    )


def publish(connection, text="x"):
    connection.Producer().publish(text, routing_key="jobs")


def listed(server):
    return len(server.targets("GET", "/queues"))


def test_connections_to_one_account_share_what_they_learn(server):
    """Connecting costs one request a process, not one a connection."""
    for _ in range(3):
        with Connection(server.broker_url) as connection:
            publish(connection)

    assert listed(server) == 1
    assert len(server.targets("POST", "/messages")) == 3


def test_a_reconnect_costs_no_request(server):
    with Connection(server.broker_url) as connection:
        connection.connect()
        connection.collect()
        connection.ensure_connection()
        publish(connection)

    assert listed(server) == 1


def test_another_token_is_another_account(server):
    """What one token may see must not leak to who has another."""
    with Connection(server.broker_url) as connection:
        connection.connect()
    other = server.broker_url.replace(server.token, "another-token")
    with Connection(other) as connection:
        connection.connect()

    sent = {request.headers["authorization"] for request in server.requests}
    assert sent == {f"Bearer {server.token}", "Bearer another-token"}


def open_files(folder):
    """How many files in *folder* this process has open."""
    return sum(os.path.realpath(link).startswith(str(folder)) for link in Path("/dev/fd").iterdir())


@pytest.mark.long
def test_accounts_that_nobody_uses_are_forgotten_some_time(server, tmp_path):
    """An application may make a new callable for each of its connections."""

    def open_account():
        def token():
            return server.token

        given = {"request_rate": 1e6, "request_burst": 1000, "spool_dir": str(tmp_path)}
        account = Account.open(replace(options(server, **given), api_token=token))
        account.client.list_queues(deadline=time.monotonic() + 10)  # opens the spool's files
        return account

    used = open_account()
    idle = open_account()
    idle.close()
    left = weakref.ref(idle)
    del idle
    for _ in range(MAX_IDLE_ACCOUNTS + 1):
        open_account().close()
    gc.collect()
    files = open_files(tmp_path)
    for _ in range(20):
        open_account().close()
    gc.collect()

    assert left() is None
    assert used in _registry.accounts.values()
    assert len(_registry.accounts) <= MAX_IDLE_ACCOUNTS + 2
    assert 0 < open_files(tmp_path) < files + 20
    used.close()


def test_a_failed_connect_is_asked_anew_and_holds_nothing_open(server):
    with ScriptedServer(Failure(403, 10000), otherwise=Api()) as strict:
        connection = Connection(strict.broker_url)
        with pytest.raises(errors.AuthenticationFailed):
            connection.connect()
        assert strict.wait_for(lambda: strict.open_connections == 0)

        connection.connect()
        connection.release()

        assert len(strict.requests) == 2


def test_sockets_are_closed_with_the_last_connection(server):
    first, second = Connection(server.broker_url), Connection(server.broker_url)
    publish(first)
    publish(second)
    assert server.open_connections == 1

    first.release()
    assert server.open_connections == 1
    second.release()

    assert server.wait_for(lambda: server.open_connections == 0)


def test_a_connection_that_is_released_twice_takes_nothing_from_others(server):
    first, second = Connection(server.broker_url), Connection(server.broker_url)
    publish(first)
    publish(second)

    for _ in range(3):
        first.release()
    assert server.open_connections == 1

    second.release()
    assert server.wait_for(lambda: server.open_connections == 0)


def test_a_released_connection_may_be_used_again(server):
    connection = Connection(server.broker_url)
    for _ in range(2):
        publish(connection)
        connection.release()

    assert server.wait_for(lambda: server.open_connections == 0)
    assert listed(server) == 1


def test_releasing_never_raises(server):
    connection = Connection(server.broker_url)
    publish(connection)
    server.stop_listening()

    connection.release()


def test_a_server_that_closes_idle_connections_loses_nothing(server):
    with Connection(server.broker_url) as connection:
        publish(connection)
        server.close_connections()
        assert server.wait_for(lambda: server.open_connections == 0)
        publish(connection)

    assert len(server.targets("POST", "/messages")) == 2


def test_threads_with_connections_of_their_own_share_one_look_up(server):
    together = threading.Barrier(16)
    failed = []

    def work():
        try:
            with Connection(server.broker_url) as connection:
                together.wait(5)
                publish(connection)
        except Exception as error:  # noqa: BLE001  shown below
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert not failed
    assert listed(server) == 1
    assert server.targets("POST")  # all of them may have left in one batch
    assert server.wait_for(lambda: server.open_connections == 0)


def test_options_that_belong_to_the_account_are_the_first_connections(server, caplog):
    first = Account.open(options(server, read_timeout=3))

    second = Account.open(options(server, read_timeout=4, publish_timeout=9))

    assert second is first
    assert "read_timeout=4 has no effect" in caplog.text
    assert "publish_timeout" not in caplog.text
    first.close()
    second.close()


def in_child(work):
    """Run *work* in a forked child; returns whether it raised nothing."""
    child = os.fork()
    if child == 0:  # pragma: no cover  (another process)
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  the parent's pytest must not go on here
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def test_a_forked_child_has_sockets_of_its_own_and_what_the_parent_learned(server):
    """Two processes on one TLS stream would break both; a pre-fork server does this all day."""
    with Connection(server.broker_url) as connection:
        publish(connection, "parent")

        def work():
            with Connection(server.broker_url) as own:
                publish(own, "child")

        assert in_child(work)
        publish(connection, "parent")

    published = [request for request in server.requests if request.method == "POST"]
    before, child, after = (request.peer for request in published)
    assert before == after != child
    assert listed(server) == 1
    assert server.opened == 2


def test_a_connection_of_the_parent_publishes_in_the_child(server):
    """Applications make their producers when they are imported, before the fork."""
    with Connection(server.broker_url) as connection:
        producer = connection.Producer()
        producer.publish("parent", routing_key="jobs")

        assert in_child(lambda: producer.publish("child", routing_key="jobs"))
        producer.publish("parent", routing_key="jobs")

    before, child, after = (r.peer for r in server.requests if r.method == "POST")
    assert before == after != child


def test_a_fork_in_the_middle_of_a_look_up_leaves_no_child_waiting():
    """The thread that asks does not exist in the child, which asks for itself."""
    asked_twice = threading.Event()
    api = Api(["jobs"])

    def slow(request):
        if request.query.get("name"):
            if len(server.targets("GET")) == 3:
                asked_twice.set()
            asked_twice.wait(5)
        return api(request)

    with ScriptedServer(otherwise=slow) as server, Connection(server.broker_url) as connection:
        connection.connect()
        api.add("late")
        producer = connection.Producer()
        thread = threading.Thread(
            target=producer.publish, args=("x",), kwargs={"routing_key": "late"}
        )
        thread.start()
        assert server.wait_for(lambda: len(server.requests) == 2)

        def work():
            with Connection(server.broker_url) as own:
                own.Producer().publish("x", routing_key="late", timeout=3)

        assert in_child(work)
        thread.join(5)

    assert len(api.messages["late"]) == 2
