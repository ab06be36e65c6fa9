"""A large fleet divides the request limit, so that each machine has little of it."""

from kombu import Connection
from support.processes import eventually
from support.scripted import Api, ScriptedServer


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
