"""The hub's promises, on the emulator and on Cloudflare's runtime."""

from __future__ import annotations

import json
import time

import pytest
import requests
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import ChannelError
from support.forms import LONG, long
from support.hub_servers import OTHER, QUOTED, TOKEN, drain
from support.processes import Script, eventually, needs
from support.redis_server import free_port
from support.scripted import CA_BUNDLE, Drop, ScriptedServer
from support.tls_front import TlsFront

from kombu_cfqueues.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ConnectionFailed,
    MessageTooLarge,
)
from kombu_cfqueues.side import hub_session
from kombu_cfqueues.side.hub import address_of
from kombu_cfqueues.side.hub_session import MAX_QUEUED_CHARACTERS, HubRefused, Session
from kombu_cfqueues.side.hub_socket import Address, HubSocket

NEWS = Exchange("news", type="fanout", durable=False)
COMMANDS = Exchange("celery.pidbox", type="fanout", durable=False)


def listen(connection, queue, got):
    """Consume *queue*; what comes is appended to *got*."""

    def callback(body, message):
        message.ack()
        got.append(body)

    consumer = Consumer(connection, [queue], callbacks=[callback])
    consumer.consume()
    return consumer


def address(hub, namespace="tests"):
    host, port = hub.address.split(":")
    return Address(host, int(port), False, namespace)


@pytest.fixture
def raw(hub):
    """Opens WebSockets that speak as the test likes."""
    sockets = []

    def connect(*operations, greets=True):
        sockets.append(HubSocket(address(hub), TOKEN, 30))
        if greets:
            sockets[-1].send(json.dumps([["hello", 1, "raw"], *operations]))
        return sockets[-1]

    yield connect
    for one in sockets:
        one.close()


def answers(socket, until):
    """What arrives, up to the first operation of the name *until*."""
    found = []
    deadline = time.monotonic() + 30
    while not any(operation[0] == until for operation in found):
        assert time.monotonic() < deadline, found
        for text in socket.receive(1):
            found += json.loads(text)
    return found


def end_of(socket):
    """How the hub ends a connection."""
    for _ in range(600):
        try:
            socket.receive(0.1)
        except ConnectionFailed as error:
            return str(error)
    raise AssertionError("the hub did not end it")


# Who may connect


@pytest.mark.parametrize("token", ["", "wrong", "no-token-at-all", "hub-token"])
def test_a_wrong_token_is_refused(hub, token):
    """At once, and with an error that does not show it."""
    url = hub.url(token=token)
    expected = AuthenticationFailed if token else ConfigurationError
    with Connection(url, connect_timeout=30) as connection, pytest.raises(expected) as caught:
        connection.connect()
    assert not token or token not in str(caught.value)


def test_each_token_is_valid(hub):
    """So that one can be replaced while clients use it."""
    for token in (TOKEN, OTHER):
        Session(address(hub), token, 30, "test").close()


def test_the_status_needs_a_token(hub):
    assert requests.get(f"http://{hub.address}/hub/tests", timeout=30).status_code == 401


@pytest.mark.parametrize("cause", ["nothing listens", "no answer", "refused greeting"])
def test_a_failure_to_connect_says_that_nothing_was_delivered(hub, cause, monkeypatch):
    """So the application may publish the message again."""
    url = hub.url()
    if cause == "nothing listens":
        url = url.replace(hub.address, f"127.0.0.1:{free_port()}")
    if cause == "refused greeting":
        monkeypatch.setattr(hub_session, "VERSION", 99)
    with ScriptedServer(Drop()) as server:
        if cause == "no answer":
            url = url.replace(hub.address, server.netloc)
        with Connection(url) as connection, pytest.raises(ConnectionFailed) as failed:
            connection.transport.establish_connection()
    assert failed.value.delivered == "no"


@pytest.mark.parametrize("namespace", ["", "a b", "x" * 65, "a/b"])
def test_a_namespace_is_a_plain_name(hub, namespace):
    with (
        Connection(hub.url(namespace=namespace)) as connection,
        pytest.raises(ConfigurationError, match="NAMESPACE"),
    ):
        connection.connect()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.get(f"http://{hub.address}/hub/{namespace}", headers=headers, timeout=30)
    assert answer.status_code == 404


def test_namespaces_do_not_hear_one_another(connect_to):
    one, two = connect_to(namespace="one"), connect_to(namespace="two")
    got, others = [], []
    listen(one, Queue("q", NEWS), got)
    listen(two, Queue("q", NEWS), others)
    one.Producer().publish("x", exchange=NEWS)
    drain(one, lambda: got)
    two.Producer().publish("y", exchange=NEWS)
    drain(two, lambda: others)
    assert (got, others) == (["x"], ["y"])


def test_elsewhere_the_connection_is_encrypted(hub, monkeypatch):
    """And its certificate is checked; a large message spans many records."""
    with TlsFront(int(hub.address.rpartition(":")[2])) as front:
        url, got = f"cfhub://:{QUOTED}@127.0.0.1:{front.port}/tests", []
        with Connection(url, ssl=True) as stranger, pytest.raises(ConnectionFailed, match="CERT"):
            stranger.transport.establish_connection()
        monkeypatch.setenv("SSL_CERT_FILE", str(CA_BUNDLE))
        with Connection(url, ssl=True) as connection:
            listen(connection, Queue("q", NEWS), got)
            for number in range(10):
                connection.Producer().publish(str(number) + "x" * 100_000, exchange=NEWS)
                drain(connection, lambda: len(got) == number + 1)  # noqa: B023  called at once
            connection.transport.session.probe()


@pytest.mark.parametrize("host", ["hub.example", "10.0.0.1", "hub.example:8443"])
def test_a_host_that_is_not_this_machine_is_reached_by_tls(host):
    with Connection(f"cfhub://:token@{host}/shop") as connection:
        address = address_of(connection)
    assert address.url.startswith(f"wss://{host}" if ":" in host else f"wss://{host}:443/")


# Routing

PUBLISH = """
from kombu import Exchange
with connect() as connection:
    producer = connection.Producer()
    for name, kind, key in OPTIONS["messages"]:
        producer.publish(key, exchange=Exchange(name, kind, durable=False), routing_key=key)
"""


def test_bindings_are_shared_by_all_processes(hub, connect_to):
    """The publisher knows no queue, and has made no binding."""
    connection, got = connect_to(), []
    direct = Exchange("direct-one", "direct", durable=False)
    topic = Exchange("topic-one", "topic", durable=False)
    listen(connection, Queue("a", direct, routing_key="a"), got)
    listen(connection, Queue("b", topic, routing_key="x.*.z.#"), got)
    sent = [("direct-one", "direct", key) for key in ("a", "b")]
    sent += [("topic-one", "topic", key) for key in ("x.z", "x.y.z", "x.y.z.1.2", "x.y.1.z", "x")]
    with Script(PUBLISH, hub.url(), {"messages": sent}) as script:
        script.wait()
    drain(connection, lambda: len(got) == 3)
    assert sorted(got) == ["a", "x.y.z", "x.y.z.1.2"]


def test_the_consumers_of_a_queue_share_its_messages(hub, connect_to):
    """Also if the publisher has declared the queue before them."""
    publisher, one, two = connect_to(), connect_to(), connect_to()
    queue, first, second = Queue("shared", NEWS), [], []
    queue(publisher.default_channel).declare()
    consumers = [listen(one, queue, first), listen(two, queue, second)]
    for connection in (one, two):
        connection.transport.session.find("news")  # what was said before has arrived
    for number in range(10):
        publisher.Producer().publish(number, exchange=NEWS)
    drain(one, lambda: len(first) == 5)
    drain(two, lambda: len(second) == 5)
    assert sorted(first + second) == list(range(10))
    assert len(consumers) == 2


def test_an_exchange_has_one_type(connect_to):
    one, two = connect_to(), connect_to()
    Queue("a", NEWS)(one.default_channel).declare()
    with pytest.raises(HubRefused, match="fanout"):
        Queue("b", Exchange("news", "direct", durable=False))(two.default_channel).declare()


def test_a_queue_ends_with_its_connection(hub, connect_to):
    one, two = connect_to(), connect_to()
    Queue("a", NEWS)(one.default_channel).declare()
    channel = two.channel()
    assert channel.queue_declare("a", passive=True)
    assert channel.has_exchange("news")
    one.release()
    hub.await_clients(1)
    with pytest.raises(ChannelError, match="NOT_FOUND"):
        channel.queue_declare("a", passive=True)
    assert not channel.has_exchange("news")


def test_an_auto_delete_queue_ends_with_its_last_consumer(hub, connect_to):
    connection = connect_to()
    consumer = listen(connection, Queue("gone", NEWS, auto_delete=True), [])
    assert hub.clients()[0]["queues"] == ["gone"]
    consumer.cancel()
    connection.default_channel.has_exchange("news")
    assert hub.status()["bindings"] == 0


def test_what_headers_hold_survives(connect_to):
    """Also numbers that JavaScript cannot hold, and bytes in the body."""
    connection, got = connect_to(), []
    consumer = Consumer(
        connection,
        [Queue("q", NEWS)],
        callbacks=[lambda body, message: got.append((body, message.headers))],
        accept=["pickle"],
        no_ack=True,
    )
    consumer.consume()
    headers = {"large": 2**63 + 1, "text": "ü\u2028😀\ud800"}
    body = {"bytes": b"\xff\x00"}
    connection.Producer(serializer="pickle").publish(body, exchange=NEWS, headers=headers)
    drain(connection, lambda: got)
    assert got == [(body, headers)]


def test_a_queue_that_nobody_reads_keeps_the_newest(connect_to, caplog):
    connection = connect_to()
    queue = Queue("full", NEWS)(connection.default_channel)
    queue.declare()
    publish = connection.default_channel.basic_publish
    for number in range(1_005):
        message = connection.default_channel.prepare_message(str(number))
        publish(message, "news", "", confirm=False)
    connection.transport.session.find("news")
    assert queue.get(no_ack=True).body == b"5"
    assert caplog.text.count("'full'") == 1


@pytest.mark.parametrize("sizes", [[100] * 900 + [200_000] * 60, [200_000] * 40 + [7_000] * 200])
def test_a_queue_that_nobody_reads_is_bounded_in_size(connect_to, caplog, sizes):
    """A large message drives out as many small ones as it takes, and small ones a large one."""
    connection = connect_to()
    channel = connection.default_channel
    queue = Queue("full", NEWS)(channel)
    queue.declare()
    for number, size in enumerate(sizes):
        message = channel.prepare_message(f"{number} ".ljust(size, "x"))
        # What is confirmed lets the connection read, so that the hub does not end it.
        channel.basic_publish(message, "news", "", confirm=size > 100)
    connection.transport.session.find("news")
    kept = []
    while (message := queue.get(no_ack=True)) is not None:
        kept.append(message.body)
    assert sum(map(len, kept)) <= MAX_QUEUED_CHARACTERS < sum(sizes)
    numbers = [int(body.split()[0]) for body in kept]
    assert numbers == [*range(len(sizes) - len(kept), len(sizes))]
    assert caplog.text.count("'full'") == 1


FORK = """
from kombu import Exchange
news = Exchange("news", "fanout", durable=False)
connection = connect()
producer = connection.Producer()
producer.publish("before", exchange=news)
pid = os.fork()
if pid == 0:
    producer.publish(
        "child", exchange=news, retry=True, retry_policy={"max_retries": 3, "interval_start": 0}
    )
    print(json.dumps("child"), flush=True)
    sys.stdin.readline()
    connection.release()
    os._exit(0)
os.waitpid(pid, 0)
producer.publish("after", exchange=news)
"""


def test_a_forked_child_leaves_the_connection_to_its_parent(hub, connect_to):
    """It gets one of its own, and the parent's goes on."""
    connection, got = connect_to(), []
    listen(connection, Queue("q", NEWS), got)
    with Script(FORK, hub.url(), {}) as script:
        assert script.line() == "child"
        hub.await_clients(3)
        script.go()
        script.wait()
    drain(connection, lambda: "after" in got)
    assert got == ["before", "child", "after"]


GREEN = """
from kombu import Exchange, Queue
import threading
news = Exchange("news", "fanout", durable=False)
got = []

def consume(number):
    def tell(body, message):
        message.ack()
        got.append(body)
    with connect() as connection:
        with connection.Consumer(Queue(f"q{number}", news), callbacks=[tell]):
            ready.append(number)
            while len(got) < 50:
                try:
                    connection.drain_events(timeout=0.5)
                except TimeoutError:
                    pass

ready = []
threads = [threading.Thread(target=consume, args=(number,)) for number in range(5)]
for thread in threads:
    thread.start()
while len(ready) < 5:
    time.sleep(0.01)
with connect() as connection:
    for number in range(10):
        connection.Producer().publish(number, exchange=news)
for thread in threads:
    thread.join()
print(json.dumps(sorted(got)))
"""


@pytest.mark.parametrize("green", ["", "gevent", long("eventlet")])
def test_threads_and_greenlets_have_connections_of_their_own(hub, green):
    if green:
        needs(green)
    with Script(GREEN, hub.url(), {}, green=green) as script:
        assert script.wait() == [sorted(list(range(10)) * 5)]


# Silence


def test_nothing_is_sent_that_nobody_listens_to(hub, connect_to):
    """Each frame wakes the hub; workers send heartbeats for ever."""
    connection, other, got = connect_to(), connect_to(), []
    channel, before = connection.channel(), hub.status()["frames"]

    def say(text):
        channel.basic_publish(channel.prepare_message(text), "news", "", confirm=False)

    for number in range(100):
        say(str(number))
    connection.transport.session.poll(0)
    assert hub.status()["frames"] == before

    consumer = listen(other, Queue("q", NEWS), got)
    assert eventually(lambda: connection.transport.session.poll(0.1) or "news" in (
        connection.transport.session.listened))  # fmt: skip
    other.transport.session.find("news")
    before = hub.status()["frames"]
    for number in range(100):
        say(str(number))
    connection.transport.session.poll(0)
    drain(other, lambda: len(got) == 100)
    assert hub.status()["frames"] == before + 1  # many messages, one frame

    consumer.cancel()
    other.release()
    assert eventually(lambda: connection.transport.session.poll(0.1) or (
        not connection.transport.session.listened))  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("hub", ["workerd"], indirect=True)
def test_a_hub_hibernates_while_its_clients_are_silent(hub, connect_to):
    """Pings keep the connections, do not wake it, and it knows its clients afterwards."""
    one, two, got = connect_to(), connect_to(), []
    listen(one, Queue("q", NEWS), got)
    Queue("declared", NEWS)(two.channel()).declare()
    life = hub.status()["life"]
    end = time.monotonic() + 13  # it hibernates after 10 silent seconds
    while time.monotonic() < end:
        for connection in (one, two):
            connection.transport.session.probe()
        time.sleep(1)
    status = hub.status()
    assert status["life"] != life
    assert status["frames"] == 0
    assert sorted(client["queues"] for client in status["clients"]) == [["declared"], ["q"]]
    two.Producer().publish("x", exchange=NEWS)
    drain(one, lambda: got)


# Blips


@pytest.mark.parametrize("comes_back", ["stop", "close"])
def test_a_command_is_not_lost_to_a_blip(hub, connect_to, comes_back):
    """A client that is away for a moment gets what was published meanwhile, and that once."""
    queue, got = Queue("one@host.celery.pidbox", COMMANDS, auto_delete=True), []
    connection = connect_to()
    listen(connection, queue, got)
    other = connect_to()
    producer = other.Producer()
    for number in range(3):
        producer.publish(number, exchange=COMMANDS)
    drain(connection, lambda: got == [0, 1])  # one is here and was not taken
    connection.transport.session.socket._socket.close()
    connection.collect()
    hub.await_clients(1)
    producer.publish(3, exchange=COMMANDS)
    if comes_back == "stop":
        other.release()
        hub.stop()
        hub.start()
        if hub.__class__.__name__ == "WorkerdHub":
            assert hub.clients() == []

    again = connect_to()
    listen(again, queue, got)
    drain(again, lambda: len(got) == 4)
    listen(connect_to(), Queue("two@host.celery.pidbox", COMMANDS), others := [])
    again.Producer().publish(4, exchange=COMMANDS)
    drain(again, lambda: len(got) == 5)
    assert (got, others) == ([0, 1, 2, 3, 4], [])


def test_a_new_client_gets_no_old_commands(connect_to):
    """A worker that starts must not be shut down by a command to the one before."""
    one, got = connect_to(), []
    listen(one, Queue("other", COMMANDS), [])
    one.Producer().publish("old", exchange=COMMANDS)
    listen(connect_to(), Queue("new@host.celery.pidbox", COMMANDS), got)
    two = connect_to()
    listen(two, Queue("newer@host.celery.pidbox", COMMANDS), got)
    one.Producer().publish("new", exchange=COMMANDS)
    drain(two, lambda: got)
    assert got == ["new"]


def test_a_replay_is_bounded(connect_to):
    """The newest come; a client that must not read more than it can take is not disconnected."""
    one, got = connect_to(), []
    queue = Queue("one@host.celery.pidbox", COMMANDS)
    away = connect_to()
    listen(away, queue, [])
    away.release()
    for number in range(12):
        one.Producer().publish(f"{number}" + "x" * 100_000, exchange=COMMANDS)
    again = connect_to()
    listen(again, queue, got)
    drain(again, lambda: len(got) == 2)
    one.Producer().publish("last", exchange=COMMANDS)
    drain(again, lambda: len(got) == 3)
    assert [body.rstrip("x") for body in got] == ["10", "11", "last"]


def test_a_hub_that_restarts_is_a_connection_error(hub, connect_to):
    """Kombu connects again, and the consumer declares what it had."""
    connection, got = connect_to(), []
    consumer = listen(connection, Queue("q", NEWS), got)
    hub.stop()
    with pytest.raises(connection.connection_errors):
        connection.drain_events(timeout=60)
    hub.start()
    connection.collect()
    connection.ensure_connection(max_retries=3)
    consumer.revive(connection.channel())
    consumer.consume()
    connection.Producer().publish("x", exchange=NEWS)
    drain(connection, lambda: got)


def test_a_hub_that_restarts_has_forgotten_who_does_not_come_back(hub, connect_to):
    connection = connect_to()
    Queue("q", NEWS)(connection.channel()).declare()
    hub.stop()
    hub.start()
    assert hub.status()["bindings"] == 0


def test_a_hub_that_hangs_is_noticed(hub, connect_to):
    connection = connect_to()
    session = connection.connect().session
    hub.hang()
    with pytest.raises(ConnectionFailed, match="in time"):
        session.probe()
    hub.go_on()


# Limits


def test_a_message_over_the_limit_is_refused_before_it_is_sent(hub, connect_to):
    connection, got = connect_to(), []
    listen(connection, Queue("q", NEWS), got)
    connection.transport.session.find("news")
    before = hub.status()["frames"]
    with pytest.raises(MessageTooLarge, match="262,144"):
        connection.Producer().publish("x" * 262_144, exchange=NEWS)
    assert hub.status()["frames"] == before
    connection.Producer().publish("x" * 250_000, exchange=NEWS)
    drain(connection, lambda: got)


def test_what_must_be_escaped_does_not_count(connect_to):
    """A message of the limit fits into a frame whatever its characters are."""
    connection, got = connect_to(), []
    listen(connection, Queue("q", NEWS), got)
    for sent in ("ü" * 130_000, '"' * 65_000):
        connection.Producer().publish(sent, exchange=NEWS)
        drain(connection, lambda: got)
        assert got.pop() == sent


def test_the_largest_message_fits_into_a_frame(raw):
    name = '"' * 255
    socket = raw(["publish", name, name, '"' * 262_144, 7])
    assert ["ok", 7, None] in answers(socket, "ok")


def test_the_hub_refuses_a_message_over_the_limit(raw):
    socket = raw(["publish", "news", "", "x" * 262_145, 7])
    assert ["error", 7, "too-large"] in [one[:3] for one in answers(socket, "error")]


def test_a_frame_over_the_limit_ends_the_connection(raw):
    socket = raw()
    socket.send(json.dumps([["publish", "news", "", "x" * 600_000, 1]]))
    assert "4413" in end_of(socket)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("no json", "4400"),
        ("{}", "4400"),
        ('["hello"]', "4400"),
        ('[["shutdown"]]', "4400"),
        ('[["constructor"]]', "4400"),
        ('[["hello", 1, "again"]]', "4400"),
        ('[["declare", 1, null]]', "4400"),
        ('[["declare", "q"]]', "4400"),
        ('[["bind", "q", "e", "fanout", "", [1, 2], 1]]', "4400"),
        ("[" * 100_000, "4400"),
    ],
)
def test_what_is_not_the_protocol_ends_the_connection(hub, raw, frame, code):
    """And harms no other client."""
    bystander = raw()
    socket = raw()
    socket.send(frame)
    assert code in end_of(socket)
    bystander.send('[["find", "", "q", 1]]')
    assert ["ok", 1, False] in answers(bystander, "ok")


@pytest.mark.parametrize(
    ("frame", "code"), [('[["find", "", "q", 1]]', "4400"), ('[["hello", 2, "x"]]', "4406")]
)
def test_a_client_greets_first(raw, frame, code):
    socket = raw(greets=False)
    socket.send(frame)
    assert code in end_of(socket)


def test_what_a_client_holds_is_bounded(raw):
    socket = raw(*(["declare", f"{number:0250}", number] for number in range(60)))
    refused = [one for one in answers(socket, "error") if one[0] == "error"]
    assert refused[0][2] == "too-many"
    other = raw(*(["declare", f"{number:0250}€", number] for number in range(25)))  # UTF-16
    refused = [one for one in answers(other, "error") if one[0] == "error"]
    assert (refused[0][1], refused[0][2]) == (23, "too-many")
    socket.send(json.dumps([["declare", "x" * 256, 100]]))
    assert any(one[:3] == ["error", 100, "name"] for one in answers(socket, "error"))


def test_a_client_that_is_too_fast_is_told(raw):
    socket = raw()
    for start in range(0, 20_000, 2_000):
        numbers = range(start, start + 2_000)
        socket.send(json.dumps([["publish", "nowhere", "", "x", None] for _ in numbers]))
        socket.receive(0)
    socket.send('[["find", "nowhere", "", 1]]')
    assert any(one[2] == "too-fast" for one in answers(socket, "error") if one[0] == "error")


def test_a_client_that_stops_reading_is_disconnected(hub, raw, connect_to):
    """Its messages wait in the hub's memory, which is small; others are not disturbed."""
    connection, got = connect_to(), []
    listen(connection, Queue("well", NEWS), got)
    raw(
        ["declare", "stuck", None],
        ["bind", "stuck", "news", "fanout", "", None, 1],
    )
    assert eventually(lambda: hub.status()["bindings"] == 2)
    for number in range(12):
        connection.Producer().publish(f"{number}" + "x" * 100_000, exchange=NEWS)
    drain(connection, lambda: len(got) == 12)
    hub.await_clients(1)
    assert hub.status()["bindings"] == 1


def test_a_client_that_reads_is_never_too_slow(connect_to):
    """It acknowledges what it has read."""
    connection, got = connect_to(), []
    listen(connection, Queue("well", NEWS), got)
    for number in range(40):
        connection.Producer().publish(f"{number}" + "x" * 100_000, exchange=NEWS)
        drain(connection, lambda: len(got) > number)  # noqa: B023  called at once


@pytest.mark.longer
def test_nothing_grows_by_clients_that_come_and_go(hub, raw):
    """Each has a queue and two bindings.  `make long` has a thousand."""
    for number in range(1_000 if LONG else 100):
        queue = f"queue-{number}"
        socket = raw(
            ["declare", queue, None],
            ["bind", queue, "news", "fanout", "", None, None],
            ["bind", queue, "celery.pidbox", "fanout", "", None, 1],
        )
        if number % 100 == 0:
            answers(socket, "ok")
        socket.close()
    hub.await_clients(0)
    assert hub.status()["bindings"] == 0


def test_a_client_that_vanishes_is_forgotten(hub):
    """Without a word, as one that is killed."""
    session = Session(address(hub), TOKEN, 30, "test")
    session.declare("q")
    session.bind("q", "news", "fanout", "")
    session.socket._socket.close()
    hub.await_clients(0)
    assert hub.status()["bindings"] == 0
