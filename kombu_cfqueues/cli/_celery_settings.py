"""What the settings of a Celery application mean on Cloudflare Queues: `cfqueues doctor -A`.

Each setting has one small function, which returns what is wrong with it and what to do, or nothing.
No value of a setting that may contain a secret is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from .. import limits
from ..api.queue_names import QueueNames
from ..consume.lease import MAX_EARLY_SHARE
from ..errors import CFQueuesError
from ..options import is_ours
from ..transport.celery_task import is_control_queue
from ._celery_app import Application, broker_urls
from ._checks import Check, Verdict

_NUMBER: Final = ((int, float), "a number")

_TYPES: Final[Mapping[str, tuple[Any, str]]] = {
    "broker_pool_limit": _NUMBER,
    "broker_transport_options": (Mapping, "a dictionary"),
    "task_soft_time_limit": _NUMBER,
    "task_time_limit": _NUMBER,
    "worker_prefetch_multiplier": _NUMBER,
}
"""Settings whose values the checks need: the type of each, and its name."""

LONG_WAIT_SECONDS: Final = 600
"""A warning is printed if a task may wait at least this long behind others in one worker."""


def examine_application(application: Application) -> Iterator[Check]:
    """Yield a line for each setting that is wrong; nothing for those that are right."""
    if mistyped := list(_types(application.conf)):
        yield from mistyped  # the checks below compare these values
        return
    for setting, (verdict, check) in _CHECKS.items():
        text = check(application)
        if text:
            yield Check(setting, verdict, text)
        if text and setting in _ALONE:
            return
    yield from _routes(application)
    yield from _queue_names(application)


def _types(conf: Any) -> Iterator[Check]:
    """Find settings with values of a wrong type, such as texts from the environment."""
    for setting, (types, kind) in _TYPES.items():
        value = getattr(conf, setting)
        if value is not None and not isinstance(value, types):
            text = f"must be {kind}, and is a value of type {type(value).__name__}: convert it"
            yield Check(setting, "problem", text)


def _broker_transport(application: Application) -> str | None:
    conf = application.conf
    foreign = [url for url in broker_urls(conf) if not is_ours(url)]
    if not foreign or not _names_us(conf.broker_transport):
        return None
    return (
        f"selects this package for every broker URL, also for the {_scheme(foreign[0])} URL that "
        "is set, which is then an error: remove broker_transport, as the broker URL is enough"
    )


def _broker_url(application: Application) -> str | None:
    conf = application.conf
    if any(is_ours(url) for url in broker_urls(conf)) or _names_us(conf.broker_transport):
        return None
    urls = broker_urls(conf)
    found = f"is a {_scheme(urls[0])} URL" if urls else "is not set"
    return (
        f"{found}, so this application does not use Cloudflare Queues: set it to "
        "cfqueues://ACCOUNT_ID:API_TOKEN@/"
    )


def _names_us(transport: Any) -> bool:
    return "cfqueues" in str(getattr(transport, "__module__", transport))


def _scheme(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://" if separator else "foreign"


def _pool_limit(application: Application) -> str | None:
    limit, threads = application.conf.broker_pool_limit, application.threads
    # In spool mode a publish waits for the disk alone.
    if not limit or limit >= threads or application.options.publish_mode == "spool":
        return None
    return (
        f"is {limit}, so at most {limit} threads of a process publish at the same time and share a "
        f"request, and the others wait: set it to {threads}, the number of threads that publish "
        "(see --threads), or to None for no limit"
    )


def _visibility_timeout(application: Application) -> str | None:
    lease = application.options.visibility_timeout
    longest, name = application.longest()
    late = [task for task in application.tasks if task.acks_late]
    if longest > lease * (1 - MAX_EARLY_SHARE):
        return _short_lease(longest, name, lease, late=bool(late))
    endless = [task.name for task in late if application.limit_of(task) is None]
    if endless and "visibility_timeout" not in application.raw_options.options:
        return (
            f"is not set, and {endless[0]} is acknowledged late (task_acks_late): if it runs for "
            f"longer than the default of {lease:,.0f} s, it runs twice. Set the transport option "
            "visibility_timeout to more than your longest task takes, or set task_time_limit"
        )
    return None


def _short_lease(longest: float, name: str, lease: float, *, late: bool) -> str:
    why = (
        "a message that is acknowledged late (task_acks_late) is then delivered twice"
        if late
        else "messages that wait in the worker behind it are then delivered twice"
    )
    needed = math.ceil(longest / (1 - MAX_EARLY_SHARE)) + 1
    remedy = f"set the transport option visibility_timeout to at least {needed:,}"
    if needed > limits.VISIBILITY_TIMEOUT_SECONDS:
        remedy = (
            f"Cloudflare's longest lease is {limits.VISIBILITY_TIMEOUT_SECONDS:,} s, so set a "
            "task_time_limit below that, and split the task"
        )
    return (
        f"is {lease:,.0f} s, and {name} may run for {longest:,.0f} s (time limit) and may be held "
        f"for up to {lease * MAX_EARLY_SHARE:,.0f} s before its eta: {why}; {remedy}"
    )


def _prefetch(application: Application) -> str | None:
    multiplier = application.conf.worker_prefetch_multiplier
    if multiplier == 0:
        return (
            "is 0, so one worker takes all messages of its queues, whose leases end while they "
            "wait there: set it to 1, or to a small number for short tasks"
        )
    longest, name = application.longest()
    wait = (multiplier - 1) * longest
    if wait < LONG_WAIT_SECONDS:
        return None
    return (
        f"is {multiplier}, and {name} may run for {longest:,.0f} s (time limit): messages wait for "
        f"up to {wait:,.0f} s in one worker while others are idle. Set it to 1"
    )


def _publish_retry(application: Application) -> str | None:
    if application.conf.task_publish_retry:
        return None
    return (
        "is False, so a publish that cannot connect waits for about 6 s instead of 1 s: set it to "
        "True. Nothing else is repeated: Kombu does not retry once publish_timeout is over"
    )


def _task_protocol(application: Application) -> str | None:
    if application.conf.task_protocol != 1:
        return None
    return (
        "is 1, which hides the eta of a task from the queue, so each worker holds delayed tasks "
        "itself: set it to 2"
    )


def _result_backend(application: Application) -> str | None:
    backend = application.conf.result_backend
    if isinstance(backend, str) and backend.partition(":")[0] == "rpc":
        return (
            "is rpc://: each process that waits for a result creates, polls and deletes a queue, "
            "with requests of the allowance that publishing needs. Set it to another backend, such "
            "as Redis or a database"
        )
    if backend and backend != "disabled" and not str(backend).startswith("disabled:"):
        return None
    wanting = [task.name for task in application.tasks if not task.ignore_result]
    if not wanting:
        return None
    return (
        f"is not set, so results cannot be read (that of {wanting[0]}, for example) and chords "
        "cannot run: set it, for example to Redis or a database, or set task_ignore_result to True"
    )


def _remote_control(application: Application) -> str | None:
    has_control_broker = getattr(application.options, "control_url", None)
    if not application.conf.worker_enable_remote_control or has_control_broker:
        return None
    return (
        "is True, and inspect, control, revoke and Flower reach no worker, because Cloudflare "
        "Queues cannot broadcast: set it to False, and check workers with kombu_cfqueues.health, "
        "or set the transport option control_url, which names a broker that can"
    )


_CHECKS: Final[Mapping[str, tuple[Verdict, Callable[[Application], str | None]]]] = {
    "broker_transport": ("problem", _broker_transport),
    "broker_url": ("problem", _broker_url),
    "broker_pool_limit": ("warning", _pool_limit),
    "visibility_timeout": ("warning", _visibility_timeout),
    "worker_prefetch_multiplier": ("warning", _prefetch),
    "task_publish_retry": ("warning", _publish_retry),
    "task_protocol": ("warning", _task_protocol),
    "result_backend": ("warning", _result_backend),
    "worker_enable_remote_control": ("warning", _remote_control),
}
"""What is wrong with a setting: its verdict, and the function that finds it."""


def has_our_broker(application: Application) -> bool:
    """Whether the application publishes to Cloudflare Queues."""
    return not any(_CHECKS[setting][1](application) for setting in _ALONE)


_ALONE: Final = frozenset({"broker_transport", "broker_url"})
"""Settings that make all others meaningless: the application uses another broker."""


def _routes(application: Application) -> Iterator[Check]:
    """Find tasks that are published to an exchange which the publisher does not declare.

    Celery declares the queue of a task, and so the exchange of the queue, before it publishes.  It
    declares nothing for a route that names only an exchange.
    """
    lost: dict[tuple[str, str], list[str]] = {}
    for setting, name, options in application.destinations():
        queue = options.get("queue")
        exchange = getattr(options.get("exchange"), "name", options.get("exchange"))
        if not exchange or (queue is not None and not options.get("routing_key")):
            continue  # Celery publishes to the queue itself
        if exchange != getattr(getattr(queue, "exchange", None), "name", None):
            lost.setdefault((setting, exchange), []).append(name)
    for (setting, exchange), names in lost.items():
        more = f" and {len(names) - 1} more" if names[1:] else ""
        yield Check(
            setting,
            "problem",
            f"sends {names[0]}{more} to exchange {exchange!r}, which Celery does not declare where "
            "it publishes, so no queue gets the task: name the queue instead of the exchange "
            "({'queue': …}), and bind it to the exchange in task_queues",
        )


def _queue_names(application: Application) -> Iterator[Check]:
    """Find queues that share a name at Cloudflare, or that cannot have one there."""
    options = application.options
    conf = application.conf
    declared = conf.task_queues or ()
    users = {getattr(queue, "name", queue): "task_queues" for queue in declared}
    users.setdefault(conf.task_default_queue, "task_default_queue")
    for setting, _, destination in application.destinations():
        queue = destination.get("queue")
        if queue is not None:
            users.setdefault(getattr(queue, "name", queue), setting)
    if options.dead_letter_queue:
        users.setdefault(options.dead_letter_queue, "dead_letter_queue")
    names = QueueNames()
    for queue, setting in users.items():
        if queue in options.queues or is_control_queue(queue):
            continue
        try:
            names.reserve(queue, options)
        except CFQueuesError as error:
            yield Check(setting, "problem", str(error))
