"""Which processes of this machine listen for messages of a queue: files beside the spool.

::

    doorbells/alive/NAME        locked while the process NAME listens
    doorbells/sockets/NAME      its socket
    doorbells/queues/KEY/NAME   empty: this process listens for the queue KEY

For each request, a publisher looks at one folder, which does not exist if no process listens.  The
process that finds files of a dead process removes them.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

from . import place
from .liveness import KernelLock, LivenessLocks

DOORBELLS_FOLDER: Final = "doorbells"

_NAME: Final = re.compile(r"\d+-[0-9a-f]{16}")  # only files with such names are removed


class Listener(NamedTuple):
    """This process as a listener.

    Attributes:
        name: The unique name of the process.
        socket: Path of its socket.
        mode: Permissions of the socket.
        lock: Shows other processes that this one is alive.
    """

    name: str
    socket: Path
    mode: int
    lock: KernelLock


class Listeners:
    """The processes that listen, in the folder of the spool.

    Args:
        spool_dir: The option of this name.
    """

    def __init__(self, spool_dir: str | None) -> None:
        self._spool_dir = spool_dir
        self._place: place.Place | None = None  # set in a single step, so there is no lock

    # -- for a process that consumes

    def join(self) -> Listener:
        """Become one of the listeners; create the folder if it is missing.

        Raises:
            SpoolUnavailable: No folder can be used.
            OSError: No file or lock can be made in the folder.
        """
        self._place = here = place.find(self._spool_dir)
        root = here.folder / DOORBELLS_FOLDER
        for folder in (root, root / "sockets", root / "queues"):
            _make(folder, here.folder_mode)
        locks = _locks(here)
        self._remove_dead(here, locks)
        name, lock = locks.register()
        return Listener(name, root / "sockets" / name, here.file_mode, lock)

    def enter(self, listener: Listener, key: str) -> None:
        """Let publishers find *listener* for the queue *key*.

        Raises:
            OSError: The folder was removed, or cannot be written to.
        """
        here = self._place
        assert here is not None  # noqa: S101  it has joined
        folder = _queues(here) / key
        while True:
            _make(folder, here.folder_mode)
            with contextlib.suppress(FileNotFoundError):  # a process removed the empty folder
                file = os.open(folder / listener.name, os.O_CREAT | os.O_CLOEXEC, here.file_mode)
                os.close(file)
                return

    def is_found(self, listener: Listener, key: str) -> bool:
        """Whether publishers find *listener* for the queue *key*, because its files still exist."""
        if self._place is None:
            return False
        root = f"{self._place.folder}/{DOORBELLS_FOLDER}"  # runs before each pull: the cheap form
        return all(
            os.path.exists(path)  # noqa: PTH110
            for path in (f"{root}/queues/{key}/{listener.name}", f"{root}/sockets/{listener.name}")
        )

    def withdraw(self, listener: Listener, key: str) -> None:
        """Undo `enter`.  Never raises."""
        if self._place is not None:
            _remove_entry(self._place, key, listener.name)

    def leave(self, listener: Listener) -> None:
        """Undo `join`.  Never raises."""
        if self._place is not None:
            _remove_process(self._place, listener.name)
        listener.lock.release()

    def has_others(self, listener: Listener, key: str) -> bool:
        """Whether a living process other than *listener* listens for the queue *key*."""
        return any(name != listener.name and self._is_alive(name) for name in self.of(key))

    # -- for a process that publishes

    def of(self, key: str) -> list[str]:
        """Return the names of the processes that listen for the queue *key*; some may be dead.

        Looks at one folder, and creates nothing.
        """
        here = self._place
        if here is None:
            self._place = here = place.look(self._spool_dir)
        if here is None:
            return []
        try:
            # Runs after each request: the cheap form.
            names = os.listdir(f"{here.folder}/{DOORBELLS_FOLDER}/queues/{key}")  # noqa: PTH208
        except OSError:
            return []
        return [name for name in names if _NAME.fullmatch(name)]

    def socket_of(self, name: str) -> Path:
        """Return the path of the socket of the process *name*, a name that `of` has returned."""
        assert self._place is not None  # noqa: S101  `of` has found it
        return self._place.folder / DOORBELLS_FOLDER / "sockets" / name

    def remove_if_dead(self, name: str, key: str) -> None:
        """Remove the files of the process *name* if it does not hold its lock.  Never raises."""
        if self._place is not None and not self._is_alive(name):
            _remove_entry(self._place, key, name)
            _remove_process(self._place, name)

    # -- dead processes

    def _is_alive(self, name: str) -> bool:
        return self._place is not None and _locks(self._place).is_alive(name)

    def _remove_dead(self, here: place.Place, locks: LivenessLocks) -> None:
        for name in locks.dead():
            if _NAME.fullmatch(name):
                _remove_process(here, name)
        for key in os.listdir(_queues(here)):  # noqa: PTH208
            for name in self.of(key):
                if not locks.is_alive(name):
                    _remove_entry(here, key, name)


def _locks(here: place.Place) -> LivenessLocks:
    return LivenessLocks(here.folder / DOORBELLS_FOLDER / "alive", here.folder_mode, here.file_mode)


def _queues(here: place.Place) -> Path:
    return here.folder / DOORBELLS_FOLDER / "queues"


def _make(folder: Path, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(mode)


def _remove_entry(here: place.Place, key: str, name: str) -> None:
    folder = _queues(here) / key
    with contextlib.suppress(OSError):
        (folder / name).unlink(missing_ok=True)
        folder.rmdir()  # only if it is empty


def _remove_process(here: place.Place, name: str) -> None:
    for folder in ("sockets", "alive"):
        with contextlib.suppress(OSError):
            (here.folder / DOORBELLS_FOLDER / folder / name).unlink(missing_ok=True)
