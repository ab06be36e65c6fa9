"""Loads a Celery application as ``celery -A`` does, and reads its settings."""

from __future__ import annotations

import contextlib
import copy
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import click

from ..errors import CFQueuesError, ConfigurationError
from ..options import Options, Secret, is_ours
from ..runtime.extras import install_command
from ._broker import RawOptions

PUBLISHING_THREADS: Final = 40
"""Default of ``--threads``: as many as Starlette and FastAPI run views in, more than other web
frameworks and servers use."""

_TELLING: Final = (ImportError, LookupError, AttributeError, NameError, SyntaxError, CFQueuesError)
"""Exceptions whose text names a module or setting, and is shown.  Other texts may hold a secret."""

_OUR_FOLDER: Final = str(Path(__file__).parent)

_DESTINATION: Final = ("queue", "exchange", "routing_key")
"""Attributes of a task that say where it goes."""


def load(name: str) -> Any:
    """Return the Celery application *name*, with its settings and its tasks.

    Args:
        name: As for ``celery -A``: a module, or ``module:attribute``.

    Raises:
        ClickException: Celery is not installed, or the application cannot be loaded.
    """
    try:
        from celery import Celery  # noqa: PLC0415  the library does not need it
        from celery.app.utils import find_app  # noqa: PLC0415
    except ImportError:
        raise click.ClickException(
            "doctor -A needs Celery, in the environment in which this command runs: "
            f"{install_command('celery', 'celery')}"
        ) from None
    # Celery does this during each import; its fix-up for Django does it permanently.
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # What a project prints while it is imported is not part of the report.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            found = find_app(name)
            if isinstance(found, Celery):
                found.loader.import_default_modules()
                found.finalize()
                _ = found.conf.broker_url  # reads the settings
        # A project may raise anything while it is imported.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            raise click.ClickException(_failure(name, error)) from None
    if not isinstance(found, Celery):
        raise click.ClickException(
            f"-A {name} leads to a {type(found).__name__}, which is not a Celery application: name "
            "the variable that holds the application, as in -A project.module:app"
        )
    return found


def _failure(name: str, error: BaseException) -> str:
    """Return what went wrong, without a text that may contain a secret of the project."""
    what = type(error).__name__
    if isinstance(error, _TELLING):
        what += f": {' '.join(str(error).split())}"
    places = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<frozen", _OUR_FOLDER))
    ]
    where = f" ({places[-1]})" if places else ""
    return (
        f"the Celery application {name!r} cannot be loaded: {what}{where}. Run this command in the "
        f"folder and with the environment variables with which 'celery -A {name} report' works"
    )


@dataclass(frozen=True)
class Application:
    """What the checks need to know of a Celery application.

    Attributes:
        app: The application.
        raw_options: Its broker URL and transport options, as they are given.
        options: The transport options; the defaults if they are wrong, which other checks report.
        tasks: Its own tasks; if it has none, one that has the settings of the application.
        threads: How many threads of a process publish at the same time.
    """

    app: Any
    raw_options: RawOptions
    options: Options
    tasks: tuple[Any, ...]
    threads: int

    @classmethod
    def of(cls, app: Any, extra: Mapping[str, Any], threads: int | None) -> Application:
        """Read *app*.

        Args:
            app: The application.
            extra: Transport options that replace those of the application.
            threads: How many threads of a process publish at the same time; None if unknown.
        """
        conf = app.conf
        given = conf.broker_transport_options
        given = {**(given if isinstance(given, Mapping) else {}), **extra}
        ours = [url for url in broker_urls(conf) if is_ours(url)]
        raw_options = RawOptions(
            ours[0] if ours else "cfqueues://", given, token=True, source="Celery's broker_url"
        )
        own = tuple(task for name, task in app.tasks.items() if not name.startswith("celery."))
        usual = SimpleNamespace(
            name="a task",
            acks_late=conf.task_acks_late,
            time_limit=conf.task_time_limit,
            soft_time_limit=conf.task_soft_time_limit,
            ignore_result=conf.task_ignore_result,
        )
        if threads is None:
            threads = PUBLISHING_THREADS
            if conf.worker_pool in ("threads", "gevent", "eventlet"):
                threads = max(threads, int(conf.worker_concurrency or 0))
        return cls(app, raw_options, _checked(given), own or (usual,), threads)

    @property
    def conf(self) -> Any:
        """Celery's settings."""
        return self.app.conf

    def limit_of(self, task: Any) -> float | None:
        """Return how many seconds *task* may take; None if nothing limits it."""
        hard = task.time_limit or self.conf.task_time_limit
        limit = hard or task.soft_time_limit or self.conf.task_soft_time_limit
        return float(limit) if limit else None

    def longest(self) -> tuple[float, str]:
        """Return the longest time in seconds that a task may take, and the task; 0 if unknown."""
        limits = ((self.limit_of(task) or 0, task.name) for task in self.tasks)
        return max(limits, key=lambda one: one[0])

    def destinations(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        """Yield where tasks go: the setting, the task or pattern, and Celery's options for it."""
        router = self.app.amqp.router
        routes = [route for route in router.routes if hasattr(route, "patterns")]
        given: dict[str, dict[str, Any]] = {name: {} for route in routes for name in route.map}
        for task in self.tasks:
            options = {name: getattr(task, name, None) for name in _DESTINATION}
            given[task.name] = {name: value for name, value in options.items() if value}
        for name, options in given.items():
            # A router of the project may need the arguments of a task; a queue may be missing.
            with contextlib.suppress(Exception):
                yield "task_routes", name, router.route(options, name)
        named = [
            ("task_routes", pattern.pattern, value)
            for route in routes
            for pattern, value in route.patterns.items()
            if not any(pattern.match(name) for name in given)
        ]
        for name, entry in (self.conf.beat_schedule or {}).items():
            value = entry.get("options") if isinstance(entry, Mapping) else entry.options
            named.append(("beat_schedule", name, value or {}))
        for setting, name, value in named:
            with contextlib.suppress(Exception):  # as above
                yield setting, name, router.expand_destination(copy.copy(value))


def broker_urls(conf: Any) -> list[str]:
    """Return the broker URLs of an application; those for publishing come first."""
    urls: list[Any] = []
    for given in (conf.broker_write_url, conf.broker_read_url):
        urls += given.split(";") if isinstance(given, str) else list(given or ())
    return [url for url in urls if isinstance(url, str) and url]


def _checked(given: Mapping[str, Any]) -> Options:
    """Return the transport options, with a dummy account: the environment may not have one."""
    account = "0" * 32
    try:
        return RawOptions(f"cfqueues://{account}:none@/", dict(given), token=True).read()
    except ConfigurationError:
        return Options(account_id=account, api_token=Secret("none"))
