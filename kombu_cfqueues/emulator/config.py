"""The configuration file of an emulator: its settings, knobs, faults and queues.

It is TOML.  Queues can also come from the configuration file of wrangler, Cloudflare's tool.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import admin
from .fault_orders import order, parse
from .faults import Faults
from .knobs import Knobs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from .server import Emulator

SERVER_SETTINGS: Final[dict[str, type | tuple[type, ...]]] = {
    "host": str,
    "port": int,
    "account_id": str,
    "token": str,
    "db": str,
    "latency": (int, float, str),
    "rate_limit": int,
}
"""The settings of the server, which options of the command override."""

_QUEUE_SETTINGS: Final = ("delivery_delay", "delivery_paused", "message_retention_period")

_COMMENTS: Final = re.compile(r'("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING_COMMAS: Final = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)


@dataclass(frozen=True, slots=True)
class ConfiguredQueue:
    """A queue: its settings, and its consumer as the body of a request that creates one."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    consumer: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """What a file says.

    Attributes:
        server: Settings of the server, among ``SERVER_SETTINGS``.
        knobs: Positions of knobs.
        faults: Faults, as ``fault_orders.order()`` takes them.
        queues: Queues, by name.
    """

    server: Mapping[str, Any] = field(default_factory=dict)
    knobs: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[Mapping[str, Any], ...] = ()
    queues: Mapping[str, ConfiguredQueue] = field(default_factory=dict)

    def apply(self, emulator: Emulator) -> None:
        """Set the faults, create the queues that do not exist, and configure those that do.

        A dead-letter queue that is named but not configured is created too.

        Raises:
            ValueError: The emulator refuses a fault, a queue or a consumer.
        """
        for fault in self.faults:
            order(emulator.faults, fault)
        for name, queue in self.queues.items():
            emulator.configure_queue(name, consumer=queue.consumer, **queue.settings)
        for queue in self.queues.values():
            dead = (queue.consumer or {}).get("dead_letter_queue")
            if dead and dead not in emulator.queue_names():
                emulator.create_queue(dead)


def load(path: Path) -> Config:
    """Read a configuration file: TOML, or the JSON of wrangler if its name says so.

    Raises:
        ValueError: The file is not readable, or a setting is unknown or wrong; the text names the
            file and the setting.
    """
    try:
        if path.suffix in (".json", ".jsonc"):
            return Config(queues=_of_wrangler(path, None))
        return _of_toml(_toml(path), path.parent)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_toml(sent: dict[str, Any], folder: Path) -> Config:
    known = (*SERVER_SETTINGS, "knobs", "faults", "queues", "wrangler")
    _check_names(sent, known, "")
    server = {name: sent[name] for name in SERVER_SETTINGS if name in sent}
    for name, value in server.items():
        if isinstance(value, bool) or not isinstance(value, SERVER_SETTINGS[name]):
            raise ValueError(f"{name} cannot be {value!r}")
    if "db" in server:
        server["db"] = str(folder / server["db"])
    knobs = _table(sent, "knobs")
    with _naming("knobs"):
        try:
            Knobs(**knobs)
        except TypeError as error:
            names = sorted(set(knobs) - set(Knobs.__dataclass_fields__))
            raise ValueError(f"unknown knobs: {', '.join(names)}") from error
    faults = tuple(_faults(sent.get("faults", [])))
    queues: dict[str, ConfiguredQueue] = {}
    for file, environment in _wranglers(sent.get("wrangler", [])):
        with _naming(f"wrangler {file}"):
            queues |= _of_wrangler(folder / file, environment)
    for name, settings in _table(sent, "queues").items():
        with _naming(f"queues.{name}"):
            queues[name] = _queue(name, settings)
    return Config(server, knobs, faults, queues)


def _faults(sent: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(sent, list):
        raise ValueError('faults must be a list, such as ["error push status=503 times=3"]')
    for number, one in enumerate(sent, 1):
        with _naming(f"fault {number}"):
            if not isinstance(one, str | dict):
                raise ValueError("it must be a string or a table")
            fault = parse(one) if isinstance(one, str) else one
            order(Faults(), fault)  # only to check it
        yield fault


def _queue(name: str, sent: Any) -> ConfiguredQueue:
    if not isinstance(sent, dict):
        raise ValueError("it must be a table")
    _check_names(sent, (*_QUEUE_SETTINGS, "consumer"), "")
    consumer = sent.get("consumer")
    if consumer in ("http_pull", "worker"):
        consumer = {"type": consumer}
    if consumer is not None:
        if not isinstance(consumer, dict):
            raise ValueError('consumer must be a table, or "http_pull"')
        outer = ("type", "script_name", "dead_letter_queue", "settings")
        inner = {key: value for key, value in consumer.items() if key not in outer}
        settings = {**_table(consumer, "settings"), **inner}
        consumer = {key: consumer[key] for key in outer[:3] if key in consumer}
        consumer |= {"settings": settings} if settings else {}
    queue = ConfiguredQueue({key: sent[key] for key in _QUEUE_SETTINGS if key in sent}, consumer)
    _check_queue(name, queue)
    return queue


def _check_queue(name: str, queue: ConfiguredQueue) -> None:
    with admin.refusals_as_value_errors():
        admin.check_name(name)
        admin.queue_settings({"settings": dict(queue.settings)})
        if queue.consumer is not None:
            made = admin.new_consumer(0, queue.consumer)
            unknown = set(queue.consumer.get("settings", {})) - set(made.settings)
            if unknown:
                raise ValueError(f"a consumer has no setting {min(unknown)}")


def _wranglers(sent: Any) -> Iterator[tuple[str, str | None]]:
    for one in sent if isinstance(sent, list) else [sent]:
        if isinstance(one, str):
            yield one, None
        elif isinstance(one, dict) and isinstance(one.get("file"), str):
            _check_names(one, ("file", "env"), "wrangler.")
            yield one["file"], one.get("env")
        else:
            raise ValueError('wrangler must be a file, such as "wrangler.jsonc"')


def _of_wrangler(path: Path, environment: str | None) -> dict[str, ConfiguredQueue]:
    """Return the queues that the Worker of wrangler's configuration publishes to or consumes."""
    try:
        sent = _toml(path) if path.suffix == ".toml" else _jsonc(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ValueError(error.strerror) from error
    script = sent.get("name")
    if environment is not None:
        environments = _table(sent, "env")
        if environment not in environments:
            raise ValueError(f"there is no environment {environment!r}")
        sent = _table(environments, environment)
        script = sent.get("name", f"{script}-{environment}")
    sent = _table(sent, "queues")
    settings: dict[str, dict[str, Any]] = {}
    consumers: dict[str, dict[str, Any]] = {}
    for name, producer in _entries(sent, "producers"):
        own = settings.setdefault(name, {})
        if "delivery_delay" in producer:
            own["delivery_delay"] = producer["delivery_delay"]
    for name, consumer in _entries(sent, "consumers"):
        settings.setdefault(name, {})
        consumers[name] = _wrangler_consumer(consumer, script)
    queues = {name: ConfiguredQueue(settings[name], consumers.get(name)) for name in settings}
    for name, queue in queues.items():
        with _naming(f"queue {name}"):
            _check_queue(name, queue)
    return queues


def _entries(sent: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the producers or consumers of wrangler's configuration, each with its queue."""
    entries = sent.get(kind, [])
    if not isinstance(entries, list):
        raise ValueError(f"queues.{kind} must be a list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("queue"), str):
            raise ValueError(f"each of queues.{kind} must name its queue")
        yield entry["queue"], entry


_WRANGLER_SETTINGS: Final = {
    "max_batch_size": "batch_size",
    "max_batch_timeout": "max_wait_time_ms",
    "max_retries": "max_retries",
    "max_concurrency": "max_concurrency",
    "retry_delay": "retry_delay",
    "visibility_timeout_ms": "visibility_timeout_ms",
}
"""wrangler's name of each setting of a consumer, and the API's."""


def _wrangler_consumer(sent: Mapping[str, Any], script: str | None) -> dict[str, Any]:
    kind = sent.get("type", "worker")
    settings = {api: sent[name] for name, api in _WRANGLER_SETTINGS.items() if name in sent}
    if isinstance(settings.get("max_wait_time_ms"), int | float):
        settings["max_wait_time_ms"] *= 1000  # wrangler has seconds
    if kind == "http_pull":
        for name in ("max_wait_time_ms", "max_concurrency"):
            settings.pop(name, None)
    else:
        settings.pop("visibility_timeout_ms", None)
    consumer: dict[str, Any] = {"type": kind, "settings": settings}
    if kind == "worker":
        consumer["script_name"] = script or "worker"
    if sent.get("dead_letter_queue"):
        consumer["dead_letter_queue"] = sent["dead_letter_queue"]
    return consumer


def _toml(path: Path) -> dict[str, Any]:
    try:
        return dict(tomllib.loads(path.read_text("utf-8-sig")))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not valid TOML: {error}") from error


def _jsonc(text: str) -> dict[str, Any]:
    """Return JSON that may have comments and commas after the last member."""
    text = _COMMENTS.sub(lambda match: match[1] or "", text)
    text = _TRAILING_COMMAS.sub(lambda match: match[1] or "", text)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("it must be an object")
    return value


def _table(sent: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = sent.get(name, {})
    if not isinstance(table, dict):
        raise ValueError(f"{name} must be a table")
    return table


def _check_names(sent: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(sent) - set(known))
    if unknown:
        raise ValueError(f"there is no setting {where}{unknown[0]}; settings: {', '.join(known)}")


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
