"""Faults that are set from outside Python: as JSON over HTTP, or as text on the command line.

``faults.error("push", status=503, times=3)`` in Python is
``{"kind": "error", "routes": ["push"], "status": 503, "times": 3}`` over HTTP and
``--fault "error push status=503 times=3"`` on the command line.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from .faults import Fault, Faults
from .routes import NAMES

KINDS: Final = (
    "error",
    "unsuccessful",
    "null_result",
    "no_result",
    "html_page",
    "empty_body",
    "broken_json",
    "redirect",
    "reset",
    "lost_response",
    "hang",
    "latency",
    "duplicate",
    "short_batch",
    "late",
)
"""The faults that can be set from outside: all but ``refuse_messages``, which needs a function."""


def order(faults: Faults, sent: Mapping[str, Any]) -> Fault:
    """Set the fault that *sent* describes.

    Args:
        faults: The faults of an emulator.
        sent: ``kind``, ``routes`` (a list; all routes, if missing), and the fault's own arguments.

    Raises:
        ValueError: The kind or an argument is unknown, an argument has the wrong type or is
            missing, or the fault refuses a value.
    """
    arguments = dict(sent)
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    routes = arguments.pop("routes", [])
    if not isinstance(routes, list) or not all(isinstance(route, str) for route in routes):
        raise ValueError(f"routes must be a list of {', '.join(NAMES)}")
    method: Callable[..., Fault] = getattr(faults, kind)
    known = inspect.signature(method, eval_str=True).parameters
    takes_routes = any(p.kind is p.VAR_POSITIONAL for p in known.values())
    if routes and not takes_routes:
        raise ValueError(f"{kind} applies to fixed routes and takes none")
    for name, value in arguments.items():
        parameter = known.get(name)
        if parameter is None or parameter.kind is not parameter.KEYWORD_ONLY:
            named = [p.name for p in known.values() if p.kind is p.KEYWORD_ONLY]
            raise ValueError(f"{kind} has no argument {name!r}; it has {', '.join(named)}")
        arguments[name] = _checked(name, value, parameter.annotation)
    missing = [
        p.name
        for p in known.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in arguments
    ]
    if missing:
        raise ValueError(f"{kind} requires {', '.join(missing)}")
    return method(*routes, **arguments)


def parse(text: str) -> dict[str, Any]:
    """Parse a fault of the command line: its kind, routes, and ``name=value`` pairs.

    An example is ``latency pull ack seconds=0.1-2 times=5``.  A value is JSON or a range of
    seconds; anything else is text.

    Raises:
        ValueError: The text has no kind.
    """
    kind, *words = text.split()  # ValueError if the text is empty
    sent: dict[str, Any] = {"kind": kind, "routes": [word for word in words if "=" not in word]}
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            sent[name] = _value(value)
    return sent


def as_json(fault: Fault) -> dict[str, Any]:
    """Describe an active fault for the endpoint ``/_emulator/faults``."""
    return {
        "number": fault.number,
        "kind": fault.kind,
        "routes": list(fault.routes),
        "left": fault.left,
        "hits": fault.hits,
        "after_effect": fault.after_effect,
        "detail": dict(fault.detail),
    }


def seconds_of(text: str) -> float | tuple[float, float]:
    """Parse seconds, or the bounds of a random time: ``0.5`` or ``0.1-2``.

    Raises:
        ValueError: The text is neither.
    """
    low, dash, high = text.partition("-")
    return (float(low), float(high)) if dash else float(low)


def _value(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    try:
        return list(seconds_of(text)) if "-" in text else text  # type: ignore[arg-type]
    except ValueError:
        return text


def _checked(name: str, value: Any, annotation: Any) -> Any:
    """Return *value* as the fault's method takes it, according to the parameter's annotation."""
    text = str(annotation)
    if "tuple" in text and isinstance(value, list):  # seconds: a pair
        if len(value) == 2 and all(_is_number(one) for one in value):
            return (value[0], value[1])
        raise ValueError(f"{name} must be seconds, or the lower and upper bound of a random time")
    if value is None and "None" in text:
        return None
    if annotation is bool or isinstance(value, bool):
        fits = annotation is bool and isinstance(value, bool)
    elif "float" in text:
        fits = _is_number(value)
    else:
        fits = ("int" in text and isinstance(value, int)) or (
            "str" in text and isinstance(value, str) and value.isprintable()
        )
    if not fits:
        raise ValueError(f"{name} cannot be {value!r:.50}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
