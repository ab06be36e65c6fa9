"""Cloudflare Queues as the broker of Kombu and Celery applications.

Celery needs a broker URL and nothing else::

    app = Celery("shop", broker="cfqueues://ACCOUNT_ID:API_TOKEN@/")

With plain Kombu, importing this package makes ``cfqueues://`` URLs known::

    import kombu_cfqueues
    from kombu import Connection

    with Connection("cfqueues://ACCOUNT_ID:API_TOKEN@/") as connection:
        connection.Producer().publish({"hello": "world"}, routing_key="greetings")
"""

import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, health
    from .metrics import stats
    from .transport.block import batch
    from .transport.transport import Transport

__all__ = ["Transport", "__version__", "batch", "errors", "health", "stats"]

__version__ = "0.1.0"

# Kombu imports this package wherever it is installed, as an entry point of "kombu.serializers", and
# registers this: no encoder, no decoder, and a content type that no message has.  Set before the
# import below, so that it is there even if Kombu is half imported.
serializer_plugin = (None, None, "application/x-kombu-cfqueues-makes-its-url-known")

# An error here would keep Kombu from being imported, also in programs that do not use this package.
with suppress(ImportError):
    from kombu.transport import TRANSPORT_ALIASES

    TRANSPORT_ALIASES["cfqueues"] = "kombu_cfqueues:Transport"
    TRANSPORT_ALIASES["cfhub"] = "kombu_cfqueues.side.hub:Transport"

_MODULES = {
    "Transport": ".transport.transport",
    "batch": ".transport.block",
    "errors": ".errors",
    "health": ".health",
    "stats": ".metrics",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package alone is cheap."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name], __name__)
    # Keep everything public that is loaded now: a finalizer may use it while the interpreter ends,
    # when `import_module` finds no module any more, not even one that is loaded.
    for public, path in _MODULES.items():
        loaded = sys.modules.get(f"{__name__}{path}")
        if hasattr(loaded, public):  # not if another thread is still importing it
            globals()[public] = getattr(loaded, public)
    return module if name in ("errors", "health") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
