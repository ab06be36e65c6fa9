"""Cloudflare Queues as the broker of Kombu and Celery applications.

Importing this package makes ``cfqueues://`` URLs known to Kombu::

    import kombu_cfqueues
    from kombu import Connection

    with Connection("cfqueues://ACCOUNT_ID:API_TOKEN@/") as connection:
        connection.Producer().publish({"hello": "world"}, routing_key="greetings")

Celery needs no import if it is configured with ``broker_transport = "kombu_cfqueues:Transport"``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kombu.transport import TRANSPORT_ALIASES

if TYPE_CHECKING:
    from . import errors
    from .metrics import stats
    from .transport.block import batch
    from .transport.transport import Transport

__all__ = ["Transport", "__version__", "batch", "errors", "stats"]

__version__ = "0.1.0"

TRANSPORT_ALIASES["cfqueues"] = "kombu_cfqueues:Transport"

_MODULES = {
    "Transport": ".transport.transport",
    "batch": ".transport.block",
    "errors": ".errors",
    "stats": ".metrics",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package alone is cheap."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name], __name__)
    return module if name == "errors" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
