"""``with kombu_cfqueues.batch(app):`` what a thread publishes in the block shares full requests.

The transport collects the messages, without Celery's knowledge.  So it does not matter by which
call or over which connection a message is published.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from ..errors import PermanentError
from ..options import Options
from .batch import Batch
from .celery_task import is_task_predicate
from .session import Session

DEFAULT_SIZE: Final = 1_000
"""Default of ``max_size``, as in Kombu's ``Producer.batch()``."""


def batch(target: Any, *, max_size: int = DEFAULT_SIZE) -> AbstractContextManager[Batch]:
    """Let everything that this thread or greenlet publishes in the block share full requests.

    Works with every call that publishes: ``delay``, ``apply_async``, ``send_task``, ``group``,
    ``chord``, ``chain``, `Producer.publish`.  Other threads and other brokers are not affected, and
    nothing happens if *target* has another broker.

    A block within another block for the same account shares its requests.  When the outermost block
    ends, it waits until Cloudflare has accepted each message.  If a block ends with an exception,
    its unsent messages are discarded; Celery's ``Retry``, ``Ignore`` and ``Reject`` discard
    nothing.

    Args:
        target: A Celery application, or a Kombu connection.
        max_size: Full requests are sent once this many messages are collected.

    Returns:
        A context manager that yields the batch, whose ``flush()`` sends what was collected.

    Raises:
        BatchPublishError: At the end of the block, or at a publish within it: not every message was
            accepted.
        ConfigurationError: The broker URL or a transport option of *target* is wrong.
        PermanentError: Another asyncio task of this thread has a block open.
        TypeError: *target* is neither an application nor a connection.
        ValueError: *max_size* is not a positive integer.
    """
    if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size <= 0:
        raise ValueError("max_size must be a positive integer")
    return _open(target, max_size)


@contextmanager
def _open(target: Any, max_size: int) -> Iterator[Batch]:
    options = _options_of(target)
    if options is None:
        yield Batch(max_size)
        return
    shared = _find(_AccountKey.of(options))
    if shared is not None:
        with _shared(shared):
            yield shared
        return
    block = _Block(Batch(max_size), _AccountKey.of(options), _innermost.get())
    block.enter()
    try:
        yield block.batch
    except BaseException as error:
        block.leave(flushes=is_task_predicate(error))
        raise
    block.leave(flushes=True)


def batch_for(session: Session) -> Batch | None:
    """Return the batch that collects what the current thread publishes over *session*, if any.

    Raises:
        PermanentError: Another asyncio task of this thread has a block open.
    """
    if _innermost.get() is None and not _of_tasks:
        return None
    return _find(_AccountKey.of(session.options))


class _AccountKey(NamedTuple):
    """The account of a block.

    The API token is not part of it: it may be rotated, and each connection may bring a callable of
    its own.
    """

    base_url: str
    account_id: str

    @classmethod
    def of(cls, options: Options) -> _AccountKey:
        return cls(options.base_url, options.account_id)


class _Strand(NamedTuple):
    """A thread or greenlet of a process."""

    process: int
    thread: int
    greenlet: object | None

    @classmethod
    def current(cls) -> _Strand:
        # Look `get_ident` up at each call, because gevent and eventlet may replace it later.
        thread = threading.get_ident()
        library = sys.modules.get("greenlet")
        current = library.getcurrent() if library is not None else None
        # A thread's own greenlet has no parent.
        return cls(os.getpid(), thread, current if current and current.parent else None)


class _Block:
    """A block that is open, and the one around it."""

    def __init__(self, batch: Batch, account: _AccountKey, outer: _Block | None) -> None:
        self.batch = batch
        self.account = account
        self.outer = outer
        self.strand = _Strand.current()
        self.task = _current_task()
        self.is_open = True

    def enter(self) -> None:
        _innermost.set(self)
        if self.task is not None:
            _of_tasks.add(self)

    def leave(self, *, flushes: bool) -> None:
        """Collect nothing more; send what was collected, or discard it."""
        self.is_open = False
        _of_tasks.discard(self)
        # A generator may end in another context than the one in which it began.
        if _innermost.get() is self:
            _innermost.set(self.outer)
        if self.strand.process != os.getpid():
            return  # the parent sends what was collected before the fork
        try:
            if flushes:
                self.batch.flush()
            else:
                self.batch.discard()
        finally:
            self.batch.close()


_innermost: Final[ContextVar[_Block | None]] = ContextVar("kombu_cfqueues_block", default=None)
"""The block in which the current code runs.  A context variable, because a web framework may enter
a generator in a thread that handles other requests before it ends the generator.  Threads, tasks
and greenlets may inherit it, so `_find` checks which of them entered the block."""

_of_tasks: Final[set[_Block]] = set()
"""The open blocks that asyncio tasks have entered."""


def _find(account: _AccountKey) -> Batch | None:
    strand = _Strand.current()
    block = _innermost.get()
    while block is not None:
        if _is_for(block, account, strand):
            if block.task not in (None, _current_task()):
                raise _other_task()
            return block.batch
        block = block.outer
    # Without this, another task would see the block only if it was started inside the block.
    if any(_is_for(block, account, strand) for block in _of_tasks.copy()):
        raise _other_task()
    return None


def _is_for(block: _Block, account: _AccountKey, strand: _Strand) -> bool:
    return block.is_open and block.account == account and block.strand == strand


def _other_task() -> PermanentError:
    return PermanentError(
        "the message was not sent: another asyncio task of this thread is in a block of "
        "kombu_cfqueues.batch(), which would send or discard this message with its own; end such a "
        "block before the next await, or run it in a thread with asyncio.to_thread()"
    )


def _current_task() -> Any:
    """Return the asyncio task that runs in this thread, or None."""
    asyncio = sys.modules.get("asyncio")
    try:
        return asyncio.current_task() if asyncio is not None else None
    except RuntimeError:
        return None  # no event loop runs in this thread


@contextmanager
def _shared(batch: Batch) -> Iterator[None]:
    """A block within another one: an exception discards only what was collected in it."""
    mark = batch.mark()
    try:
        yield
    except BaseException as error:
        if not is_task_predicate(error):
            batch.discard_since(mark)
        raise


def _options_of(target: Any) -> Options | None:
    """Return the options of the broker to which *target* publishes; None if it is not Cloudflare.

    Makes no request.
    """
    if hasattr(target, "connection_for_write"):  # a Celery application
        with target.connection_for_write() as connection:
            return _options_of(connection)
    if not hasattr(target, "transport_cls"):
        raise TypeError(f"batch() needs a Celery application or a Kombu connection, not {target!r}")
    session = getattr(target.transport, "session", None)
    return session.options if isinstance(session, Session) else None
