"""A large fleet divides the request limit, so that each machine has little of it."""

import pytest
from kombu import Connection
from support.processes import Script, eventually
from support.scripted import Api, ScriptedServer

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.envelope import Address
from kombu_cfqueues.errors import PublishTimeout
from kombu_cfqueues.spool import Spool


def test_what_is_spooled_to_an_unknown_queue_is_delivered_at_any_rate(tmp_path):
    """A permit takes longer than a request: looking the queue up needs permits of its own."""
    api = Api()
    options = {
        "spool_dir": str(tmp_path / "spool"), "publish_mode": "spool", "request_burst": 1,
        "request_rate": 1.0, "connect_timeout": 0.2, "read_timeout": 0.4,
    }  # fmt: skip
    with (
        ScriptedServer(otherwise=api) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        connection.Producer().publish("x", routing_key="fresh")
        assert eventually(lambda: bool(api.messages.get("fresh")), 15)
    assert len(api.messages["fresh"]) == 1


def test_what_is_due_late_is_delivered_at_any_rate_where_the_retention_is_unknown(tmp_path):
    """The spool's file knows the queue's id, but the look-up of its retention takes a permit."""
    api = Api()
    queue_id = api.add("known")
    folder = str(tmp_path / "spool")
    options = {
        "spool_dir": folder, "publish_mode": "spool", "request_burst": 1,
        "request_rate": 1.0, "connect_timeout": 0.2, "read_timeout": 0.4,
    }  # fmt: skip
    with (
        ScriptedServer(otherwise=api) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        read = connection.transport.session.options
        spool = Spool.open(
            read.base_url, read.account_id, None, lambda: read.api_token, spool_dir=folder
        )
        spool.messages.learn(Address("known", False, queue_id))
        connection.Producer().publish("x", routing_key="known", DelaySeconds=600)
        assert eventually(lambda: bool(api.messages.get("known")), 15)
    assert len(api.messages["known"]) == 1


ONE_A_MINUTE = 1 / 60

#: A process whose minutes take an eighth of a second.
FAST = """
import threading
from kombu_cfqueues.runtime.clock import Clock

SPEED = 480
real_monotonic, real_sleep = time.monotonic, time.sleep
time.monotonic = lambda: real_monotonic() * SPEED
time.sleep = lambda seconds: real_sleep(seconds / SPEED)

class FastLock:
    def __init__(self):
        self.lock = threading.Lock()
        self.release, self.locked = self.lock.release, self.lock.locked
    def acquire(self, blocking=True, timeout=-1):
        return self.lock.acquire(blocking, timeout if timeout < 0 else timeout / SPEED)
    def __enter__(self):
        return self.lock.__enter__()
    def __exit__(self, *given):
        return self.lock.__exit__(*given)

Clock.lock = lambda self: FastLock()
"""

SPOOL = """
connection = connect()
connection.Producer().publish("x", routing_key=QUEUE)
sys.stdin.readline()
os._exit(0)
"""

#: Queues that lie before the one that is looked for.
OTHERS = [f"other-{number}" for number in range(45)]


@pytest.mark.parametrize(
    "api",
    [
        Api([*OTHERS, "last"], page_size=5, filters=False),
        Api(OTHERS, page_size=5, filters=False),  # "last" is created once all pages were read
        Api([*OTHERS, "LAST"], page_size=5, filters=False, folds=True),
        Api(["last"]),
        Api(),
    ],
    ids=["on page 10", "missing, 9 pages", "in upper case on page 10", "found", "missing"],
)
def test_a_spooled_message_finds_its_queue_at_one_request_a_minute(tmp_path, api):
    """A look-up that needs more permits than one claim waits for goes on where it stopped."""
    options = {
        "spool_dir": str(tmp_path / "spool"), "publish_mode": "spool", "request_burst": 1,
        "request_rate": ONE_A_MINUTE,
    }  # fmt: skip
    name = "LAST" if "LAST" in api.ids else "last"
    code = FAST + SPOOL.replace("QUEUE", repr("last"))
    with ScriptedServer(otherwise=api) as server, Script(code, server.broker_url, options):
        delivered = eventually(lambda: bool(api.messages.get(name)), 60)
        assert delivered, [request.target for request in server.requests]


@pytest.mark.parametrize("scope", ["host", "process"])
def test_a_publish_that_cannot_have_a_permit_in_time_says_so_at_once(tmp_path, scope):
    api = Api(["jobs"])
    options = {
        "spool_dir": str(tmp_path / "spool"), "budget_scope": scope, "request_burst": 1,
        "request_rate": ONE_A_MINUTE, "publish_timeout": 30,
    }  # fmt: skip
    with (
        ScriptedServer(otherwise=api) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        for queue in ("jobs", "jobs", "unknown"):  # connecting has taken the only permit
            with pytest.raises(PublishTimeout) as raised:
                connection.Producer().publish("x", routing_key=queue)
            assert raised.value.delivered == "no"
            assert 30 < raised.value.retry_after <= 60
            assert "every 60 s" in str(raised.value)
            assert "publish_timeout" in str(raised.value)
    assert len(server.requests) == 1


def test_confirmed_publishes_arrive_at_one_request_a_minute_if_they_are_repeated(tmp_path):
    """Each try tells when the next can succeed, and what one has learned is of use to the next."""
    api = Api([*OTHERS, "last"], page_size=15, filters=False)
    options = {
        "spool_dir": str(tmp_path / "spool"), "request_burst": 1, "request_rate": ONE_A_MINUTE,
        "publish_timeout": 40,
    }  # fmt: skip
    code = (
        FAST
        + """
from kombu_cfqueues.errors import CFQueuesError
connection = connect()
tries = 0
while True:
    tries += 1
    try:
        connection.Producer().publish("x", routing_key="last")
        break
    except CFQueuesError as error:
        time.sleep(error.retry_after or 1)
print(tries)
"""
    )
    with (
        ScriptedServer(otherwise=api) as server,
        Script(code, server.broker_url, options) as script,
    ):
        (tries,) = script.wait(60)
    assert len(api.messages["last"]) == 1
    assert tries > 1


CONSUME = """
connection = connect()
queue = connection.SimpleQueue("last")
while True:
    try:
        print(json.dumps(queue.get(timeout=30).payload), flush=True)
        break
    except queue.Empty:
        pass
"""


@pytest.mark.parametrize("scope", ["host", "process"])
@pytest.mark.parametrize("exists", [True, False], ids=["found", "missing"])
def test_a_consumer_finds_its_queue_at_one_request_a_minute(tmp_path, scope, exists):
    """It needs a permit for the look-up, one for the consumers, and one to create each of them."""
    options = {
        "spool_dir": str(tmp_path / "spool"), "budget_scope": scope, "request_burst": 1,
        "request_rate": ONE_A_MINUTE, "polling_interval": 5.0,
    }  # fmt: skip
    with Emulator() as server:
        if exists:
            server.create_queue("last")
        with Script(FAST + CONSUME, server.broker_url, options) as script:
            assert eventually(lambda: "last" in server.queue_names(), 60)
            with Connection(server.broker_url) as connection:
                connection.Producer().publish("x", routing_key="last")
            assert script.line() == "x"
