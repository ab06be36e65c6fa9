"""Which processes are alive: each holds a kernel lock until it ends.

The age of a claim does not show whether its process is alive, because a request may be slow.  The
kernel releases the lock at the moment the process ends, so no process waits for a timeout.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # pragma: no cover  Windows
    fcntl = None  # type: ignore[assignment]

AVAILABLE: Final = fcntl is not None
"""Whether this system has such locks; Windows does not."""


class KernelLock:
    """A lock on a file of its own, held until `release`, or until the process ends.

    Args:
        path: The file, which is created if it is missing.
        mode: Its permissions.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._file: int | None = None

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if no other holder excludes it; return whether it is held.  Never blocks.

        Args:
            shared: Whether other holders may share it.

        Raises:
            OSError: The file cannot be created, or its file system has no locks.
        """
        if self._file is None:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, self._mode)
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                if os.fstat(file).st_mode & 0o777 != self._mode:
                    os.fchmod(file, self._mode)  # the umask may have kept the group out
            except BlockingIOError:
                os.close(file)
                return False
            except PermissionError:  # another user of the group owns the file and set its mode
                pass
            except BaseException:
                os.close(file)
                raise
            self._file = file
        return True

    def release(self) -> None:
        """Release the lock; in a forked child, leave it to the parent.  The file stays."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)  # the lock ends when the last copy of the descriptor is closed

    def __del__(self) -> None:
        # No reference is left, so no thread can use the lock.
        self.release()


def pid_of(name: str) -> int:
    """Return the process id that is part of a process's name in the file."""
    return int(name.partition("-")[0])


class LivenessLocks:
    """The locks of all processes that use one spool, one file per process.

    Args:
        folder: Holds the locks' files; it is created if it is missing.
        folder_mode: Its permissions.
        file_mode: Permissions of the locks' files.
    """

    def __init__(self, folder: Path, folder_mode: int, file_mode: int) -> None:
        self._folder = folder
        self._folder_mode = folder_mode
        self._file_mode = file_mode

    def register(self, name: str | None = None) -> tuple[str, KernelLock]:
        """Take the lock that shows other processes that this one is alive.

        Args:
            name: The name this process already has, if only its lock's file was removed.

        Returns:
            The name, which is unique, and the lock.

        Raises:
            OSError: The lock cannot be taken.
        """
        while True:
            self._make_folder()
            own = name or f"{os.getpid()}-{secrets.token_hex(8)}"
            lock = KernelLock(self._folder / own, self._file_mode)
            # Before the lock is taken, another process may think this one dead and remove the file.
            with contextlib.suppress(FileNotFoundError):  # the folder may be removed at any moment
                if lock.acquire() and self.is_alive(own):
                    return own, lock
            lock.release()

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir()
        except FileExistsError:
            return
        self._folder.chmod(self._folder_mode)

    def path_of(self, name: str) -> Path:
        """Return the file of *name*'s lock."""
        return self._folder / name

    def is_alive(self, name: str) -> bool:
        """Whether the process *name* still holds its lock."""
        try:
            file = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # unknown; its claims expire anyway
        try:
            # A shared lock: otherwise two processes that check at once would each seem to hold it.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(file)
        return False

    def living(self) -> list[str]:
        """Return the names of processes that are alive."""
        return [name for name in self._names() if self.is_alive(name)]

    def dead(self) -> list[str]:
        """Return the names of processes that died and left their files behind."""
        return [name for name in self._names() if not self.is_alive(name)]

    def remove_lock_file(self, name: str) -> None:
        """Remove the file of a process's lock."""
        (self._folder / name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._folder)  # noqa: PTH208
        except FileNotFoundError:  # the folder was removed
            return []
