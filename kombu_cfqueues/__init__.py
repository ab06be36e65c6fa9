"""Cloudflare Queues as the broker of Kombu and Celery applications.

Importing this package makes ``cfqueues://`` URLs known to Kombu::

    import kombu_cfqueues
    from kombu import Connection

    with Connection("cfqueues://ACCOUNT_ID:API_TOKEN@/") as connection:
        connection.Producer().publish({"hello": "world"}, routing_key="greetings")

Celery needs no import where it is told ``broker_transport = "kombu_cfqueues:Transport"``.
"""

from kombu.transport import TRANSPORT_ALIASES

from .metrics import stats
from .transport.transport import Transport

__all__ = ["Transport", "__version__", "stats"]

__version__ = "0.1.0"

TRANSPORT_ALIASES["cfqueues"] = "kombu_cfqueues:Transport"
