"""A large fleet divides the request limit, so that each machine has little of it."""

from kombu import Connection
from support.processes import eventually
from support.scripted import Api, ScriptedServer

from kombu_cfqueues.envelope import Address
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
        spool.learn(Address("known", False, queue_id))
        connection.Producer().publish("x", routing_key="known", DelaySeconds=600)
        assert eventually(lambda: bool(api.messages.get("known")), 15)
    assert len(api.messages["known"]) == 1
