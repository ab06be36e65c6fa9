"""Health checks: whether this process pulls and settles, at an HTTP address and in a file.

In a Celery worker, add a step, which listens at ``127.0.0.1:9810`` unless `health_address` says
otherwise::

    import kombu_cfqueues.health

    app.steps["worker"].add(kombu_cfqueues.health.HealthStep)

Any other process that consumes needs the option ``health_address`` or ``health_file`` only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..options import Options
from ..runtime.imports import importing

if TYPE_CHECKING:
    from .step import HealthStep

__all__ = ["HealthStep"]


def serve_if_wanted(options: Options) -> None:
    """Watch this process from now on if *options* say where to answer.  Returns at once."""
    if options.health_address is None and options.health_file is None:
        return
    with importing:
        from .service import serve  # noqa: PLC0415  imports an HTTP server
    serve(options.health_address, options.health_file)


def __getattr__(name: str) -> Any:
    """Load the step on first use, because it needs Celery."""
    if name != "HealthStep":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(".step", __name__).HealthStep
