"""Exchanges and bindings, which all connections of this process to one account share.

Cloudflare Queues has neither, so the library keeps them in memory.  An application declares its
queues on one connection and publishes over others, for instance those of Celery's pool.  The URLs
of a fail-over list are one broker to it, so their accounts share what is declared as well.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from kombu.transport import virtual

from ..options import Options
from ..runtime.fork import renew_in_child
from ..runtime.locks import new_reentrant_lock


class Bindings(virtual.BrokerState):
    """The exchanges of one account, and the queues that are bound to them.

    Attributes:
        lock: Guards everything here; held only for look-ups and changes in memory.  Reentrant,
            because a signal handler may publish.
        control_queues: How the queues that are bound at the control broker were declared, by name.
        control_exchanges: Names of exchanges that live at the control broker although their
            declaration does not say so.
    """

    exchanges: dict[str, Any]
    bindings: dict[Any, Any]
    queue_index: defaultdict[str, set[Any]]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.control_queues: dict[str, dict[str, Any]] = {}
        self.control_exchanges: set[str] = set()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep the bindings, but replace the lock: a thread of the parent may have held it."""
        self.lock = new_reentrant_lock()

    def table(self, exchange: str) -> list[Any]:
        """Return a copy of the routing table of *exchange*: (routing key, pattern, queue).

        Raises:
            KeyError: The exchange was not declared.
        """
        return list(self.exchanges[exchange]["table"])

    def queue_bindings(self, queue: str) -> list[Any]:
        """Return the bindings of *queue*."""
        with self.lock:
            # Kombu's own method would keep an entry for each queue that is only asked for.
            keys = self.queue_index.get(queue, ())
            return [
                virtual.base.queue_binding_t(key.exchange, key.routing_key, self.bindings[key])
                for key in keys
            ]

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Forget one binding, if it exists."""
        with self.lock:
            self.binding_delete(queue, exchange, routing_key)  # type: ignore[no-untyped-call]
            if not self.queue_index.get(queue):
                self.queue_index.pop(queue, None)
            declared = self.exchanges.get(exchange)
            if declared is not None:
                declared["table"] = [
                    entry
                    for entry in declared["table"]
                    if (entry[0], entry[2]) != (routing_key, queue)
                ]

    def queue_bindings_delete(self, queue: str) -> None:
        """Forget all bindings of *queue*, so that nothing is routed to it any more."""
        with self.lock:
            for binding in self.queue_bindings(queue):
                self.unbind(queue, binding.exchange, binding.routing_key)

    def delete_exchange(self, exchange: str, *, if_unused: bool) -> None:
        """Forget *exchange* and its bindings; with *if_unused* only if no queue is bound to it."""
        with self.lock:
            table = self.table(exchange) if exchange in self.exchanges else []
            if table and if_unused:
                return
            for routing_key, _, queue in table:
                self.unbind(queue, exchange, routing_key)
            self.exchanges.pop(exchange, None)

    def absorb(self, other: Bindings) -> None:
        """Add what *other* has.  Where an exchange differs, this one's properties stay."""
        with other.lock:
            exchanges = {
                name: {**declared, "table": list(declared["table"])}
                for name, declared in other.exchanges.items()
            }
            bindings = dict(other.bindings)
        with self.lock:
            for name, declared in exchanges.items():
                table = self.exchanges.setdefault(name, declared)["table"]
                table += [entry for entry in declared["table"] if entry not in table]
            for key, arguments in bindings.items():
                self.bindings.setdefault(key, arguments)
                self.queue_index[key.queue].add(key)
            self.control_queues = {**other.control_queues, **self.control_queues}
            self.control_exchanges |= other.control_exchanges


class _Scope(NamedTuple):
    """What two connections must have in common to share bindings.

    The prefix is part of it because it keeps applications apart.  The API token is not: it may be
    rotated, and each connection may bring a callable of its own.
    """

    base_url: str
    account_id: str
    queue_name_prefix: str

    @classmethod
    def of(cls, options: Options) -> _Scope:
        """Return the scope of a connection with *options*."""
        return cls(options.base_url, options.account_id, options.queue_name_prefix)


_bindings: Final[dict[_Scope, Bindings]] = {}

_last: Final[WeakKeyDictionary[Any, _Scope]] = WeakKeyDictionary()
"""By Kombu connection with several URLs: the scope of the URL that it used last."""


def bindings_of(options: Options) -> Bindings:
    """Return the bindings that all connections with the account and prefix of *options* share."""
    return _of(_Scope.of(options))


def fail_over(client: object, options: Options) -> None:
    """Note that a Kombu connection uses the URL of *options* from now on.

    From then on, the accounts of its earlier URL and of this one share their bindings.
    """
    scope = _Scope.of(options)
    earlier = _of(_last.get(client, scope))
    _last[client] = scope
    mine = _of(scope)
    if mine is not earlier:
        mine.absorb(earlier)
        for other, bindings in list(_bindings.items()):
            if bindings is earlier:
                _bindings[other] = mine


def _of(scope: _Scope) -> Bindings:
    # `setdefault` is atomic, so this needs no lock.
    return _bindings.get(scope) or _bindings.setdefault(scope, Bindings())
