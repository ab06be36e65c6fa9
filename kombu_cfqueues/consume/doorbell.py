"""The doorbell of the machine: a publisher wakes the consumers of the queue on the same machine.

Each process that consumes has a Unix datagram socket in the spool's folder.  After each request
that the server has accepted, the publisher sends a datagram to every process that consumes the
queue on this machine.  A bell is only a hint to look now: nothing depends on it, because polling
finds the messages of a lost bell.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import socket
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from ..errors import SpoolUnavailable
from ..options import Options
from ..runtime.exits import call_at_exit
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.inherited import abandon
from ..runtime.locks import new_lock
from ..runtime.threads import start_thread
from ..spool import Listener, Listeners, Spool

logger = logging.getLogger(__name__)

TIDY_SECONDS: Final = 5.0
"""How often the listening thread checks which queues are still consumed.  If none is, the thread
removes the socket and ends.  A consumer that is opened again before that finds the socket."""

REOPEN_SECONDS: Final = 60.0
"""Pause before another attempt to open a socket, after the folder or the system refused it, or no
thread could start."""

MAX_PATH_BYTES: Final = 103
"""The longest path of a socket that every system accepts: 107 bytes on Linux, 103 on macOS."""

KEY_CHARACTERS: Final = 32
"""Length of a queue's key, which is a hash, and of a datagram."""


class Beyond(Protocol):
    """Carries bells to other machines."""

    def ring(self, key: str) -> None:
        """Ring for the queue *key*.  Neither blocks nor raises."""

    def listen(self, on_ring: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        """Call *on_ring* with the key of each bell from now on; one call per process is enough.

        Args:
            on_ring: Called with a key.
            on_gap: Called when bells may have been missed.
        """


class Doorbell:
    """Rings at consumers of this machine, and hears the bells for this process.

    Args:
        options: ``account_id``, ``doorbell`` and ``spool_dir`` are used.
        beyond: Rings at consumers of other machines, too.
    """

    def __init__(self, options: Options, beyond: Beyond | None) -> None:
        self._beyond = beyond
        self._account_id = options.account_id.lower()
        is_possible = Spool.available and hasattr(socket, "AF_UNIX")
        is_on = options.doorbell != "off" and is_possible
        self._listeners = Listeners(options.spool_dir) if is_on else None
        self._on_ring: Callable[[str], None] = lambda _: None
        self._is_consumed: Callable[[str], bool] = lambda _: False
        self._bells: _BellSocket | None = None
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Leave the socket to the parent: if a child kept it open, it would outlive its owner."""
        if self._bells is not None:
            self._bells.abandon()
        self._lock = new_lock()  # guards the fields below while they are set
        self._bells = None
        self._keys_beyond: dict[str, str] = {}
        self._keys: dict[str, str] = {}  # of the queues that are listened for -> the queue's id
        self._reopen_at = 0.0
        self._has_ended = False
        self._closes_at_exit = False

    # -- publishing

    def ring(self, name: str) -> None:
        """Wake the consumers of a queue on this machine.  Never blocks, and never raises.

        Args:
            name: The queue as `Address.name` has it.
        """
        key = self._key(name)
        if self._beyond is not None:
            self._beyond.ring(key)
        if self._listeners is None:
            return
        with contextlib.suppress(OSError, RuntimeError):
            listeners = self._listeners.of(key)
            if listeners:
                self._ring_at(self._listeners, listeners, key)

    def _ring_at(self, listeners: Listeners, names: Iterable[str], key: str) -> None:
        with _socket() as sender:
            sender.setblocking(False)
            for name in names:
                if not _send(sender, listeners.socket_of(name), key):
                    listeners.remove_if_dead(name, key)

    def _key(self, name: str) -> str:
        return _key(self._account_id, name)

    # -- consuming

    def answer_with(
        self, on_ring: Callable[[str], None], is_consumed: Callable[[str], bool]
    ) -> None:
        """Set what bells do in this process.

        Args:
            on_ring: Called with a queue's id, in the listening thread.
            is_consumed: Whether the queue with an id is still consumed.
        """
        self._on_ring, self._is_consumed = on_ring, is_consumed

    def listen_for(self, queue_id: str, names: Iterable[str]) -> None:
        """Hear the bells for a queue as long as it is consumed.  Never raises.

        Args:
            queue_id: The id with which bells are reported.
            names: What publishers may call the queue: see `Address.name`.
        """
        keys = [self._key(name) for name in names]
        if self._beyond is not None:
            self._keys_beyond.update(dict.fromkeys(keys, queue_id))
            self._beyond.listen(self._heard_beyond, self._missed_beyond)
        if self._listeners is None or self._has_ended:
            return
        if self._is_listened_for(self._listeners, queue_id, keys):
            return
        with self._lock:
            opened = self._listen_for(self._listeners, queue_id, keys)
        if opened is not None:
            self._start(opened)

    def _is_listened_for(self, listeners: Listeners, queue_id: str, keys: list[str]) -> bool:
        bells = self._bells
        return bells is not None and all(
            self._keys.get(key) == queue_id and listeners.is_found(bells.listener, key)
            for key in keys
        )

    def _listen_for(
        self, listeners: Listeners, queue_id: str, keys: list[str]
    ) -> _BellSocket | None:
        """Enter a queue; return the socket if this call opened it.  The caller holds the lock."""
        bells = self._bells
        if bells is not None and not bells.listener.socket.exists():
            self._leave()
            bells = None
        if bells is None and time.monotonic() < self._reopen_at:
            return None
        opened = None
        try:
            if bells is None:
                self._bells = bells = opened = _BellSocket(listeners)
            for key in keys:
                listeners.enter(bells.listener, key)
                self._keys[key] = queue_id
        except (OSError, RuntimeError, SpoolUnavailable) as error:
            self._give_up(error)
            if opened is not None:
                opened.close()  # no thread listens to it yet
            return None
        return opened

    def _give_up(self, error: Exception) -> None:
        """Poll only, for some time.  The caller holds the lock."""
        logger.debug("no doorbell, so consumers only poll: %s", error)
        self._reopen_at = time.monotonic() + REOPEN_SECONDS
        self._leave()

    def _heard_beyond(self, key: str) -> None:
        queue_id = self._keys_beyond.get(key)
        if queue_id is not None and self._is_consumed(queue_id):
            self._on_ring(queue_id)

    def _missed_beyond(self) -> None:
        """Report a bell for each queue, because some may have been missed."""
        for queue_id in set(self._keys_beyond.copy().values()):  # several keys may name a queue
            if self._is_consumed(queue_id):
                self._on_ring(queue_id)

    def is_alone(self, queue_id: str) -> bool:
        """Whether, as far as is known, no other process hears the bells of a queue."""
        bells = self._bells
        if bells is None or self._listeners is None or self._beyond is not None:
            return False
        keys = [key for key, one in list(self._keys.items()) if one == queue_id]
        return not any(self._listeners.has_others(bells.listener, key) for key in keys)

    def close(self) -> None:
        """Stop listening for good, because the process ends."""
        self._has_ended = True
        with self._lock:
            self._leave()

    def _leave(self) -> None:
        """Remove the socket's files from the folder.  The caller holds the lock."""
        bells, self._bells = self._bells, None
        keys, self._keys = self._keys, {}
        if bells is not None and self._listeners is not None:
            for key in keys:
                self._listeners.withdraw(bells.listener, key)
            self._listeners.leave(bells.listener)

    def _start(self, bells: _BellSocket) -> None:
        if not self._closes_at_exit:
            self._closes_at_exit = True
            call_at_exit(partial(_close, weakref.ref(self)))
        error = start_thread("cfqueues-doorbell", partial(self._serve, bells))
        if error is not None:
            with self._lock:
                self._give_up(error)
            bells.close()

    def _serve(self, bells: _BellSocket) -> None:
        """Hear bells until no queue is consumed any more."""
        tidy_at = time.monotonic() + TIDY_SECONDS
        # A forked child may have inherited this greenlet: the socket is not its own.
        while self._bells is bells:
            key = bells.hear()
            if key is None:
                break
            queue_id = self._keys.get(key)
            if queue_id is not None:
                self._on_ring(queue_id)
            if time.monotonic() >= tidy_at:
                tidy_at = time.monotonic() + TIDY_SECONDS
                self._tidy(bells)
        bells.close()

    def _tidy(self, bells: _BellSocket) -> None:
        """Withdraw from the queues that are no longer consumed; leave if none is left."""
        with self._lock:
            if self._bells is not bells or self._listeners is None:
                return
            for key, queue_id in list(self._keys.items()):
                if not self._is_consumed(queue_id):
                    del self._keys[key]
                    self._listeners.withdraw(bells.listener, key)
            if not self._keys:
                self._leave()


class _BellSocket:
    """The socket at which this process hears its bells.

    Raises:
        OSError: The folder cannot hold a socket.
        SpoolUnavailable: No folder can be used.
    """

    def __init__(self, listeners: Listeners) -> None:
        with contextlib.ExitStack() as undo:
            self._socket = undo.enter_context(_socket())
            self.listener: Listener = listeners.join()
            undo.callback(listeners.leave, self.listener)
            with _reachable(self.listener.socket) as path:
                self._socket.bind(path)
            self.listener.socket.chmod(self.listener.mode)  # the umask may have kept others out
            self._socket.settimeout(TIDY_SECONDS)
            undo.pop_all()

    def hear(self) -> str | None:
        """Wait for a bell and return its key; ``""`` after some seconds, None once it is closed."""
        try:
            return self._socket.recv(KEY_CHARACTERS).decode("ascii", "replace")
        except TimeoutError:
            return ""
        except OSError:  # a greenlet of the parent that goes on in a forked child
            return None

    def close(self) -> None:
        """Close the socket.  Only the thread that listens may do this."""
        self._socket.close()

    def abandon(self) -> None:
        """Close the parent's socket and lock in a forked child, and leave their files alone."""
        self.listener.lock.release()
        abandon(self._socket, [self._socket.fileno()])


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


@functools.lru_cache(maxsize=1024)  # called for each request
def _key(account_id: str, name: str) -> str:
    text = f"{account_id}\n{name.lower()}"
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_CHARACTERS]


def _send(sender: socket.socket, target: Path, key: str) -> bool:
    """Send a datagram; return False if the owner of the socket may be dead."""
    try:
        with _reachable(target) as path:
            sender.sendto(key.encode(), path)
    except OSError:
        # A full socket was rung already, but its owner may be dead and a child may hold it open.
        return False
    return True


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield a path of the same socket that is short enough for a socket's address."""
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _close(reference: weakref.ref[Doorbell]) -> None:
    notice_fork()
    doorbell = reference()
    if doorbell is not None:
        doorbell.close()
