"""Who is alive: each process holds a kernel lock as long as it lives, and nobody can forget it.

A claim's age says little: a slow request is no death, and a dead process must not hold what
others wait for until a timeout.  The kernel frees the lock in the moment in which its holder ends.
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
"""Whether this system has such locks; Windows has none."""


class KernelLock:
    """A lock on a file of its own, held until `release`, or until the process ends.

    Args:
        path: The file; made if it is missing.
        mode: Its permissions.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._file: int | None = None

    def acquire(self, *, shared: bool = False) -> bool:
        """Take it, if nobody else has it; never blocks.

        Args:
            shared: Together with others who want it shared.

        Raises:
            OSError: The file cannot be made, or its file system has no locks.
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
            except PermissionError:  # of another user of the group, who set the mode
                pass
            except BaseException:
                os.close(file)
                raise
            self._file = file
        return True

    def release(self) -> None:
        """Give it back; in a forked child, leave it to the parent.  The file stays."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)  # a lock ends with the last descriptor of its opening

    def __del__(self) -> None:
        # Its poster is dead: nobody is left who could use it.
        self.release()


def pid_of(name: str) -> int:
    """Return the process id in a name."""
    return int(name.partition("-")[0])


class LivenessLocks:
    """The locks of all processes that use one spool, a file each.

    Args:
        folder: Where they are; made if it is missing.
        folder_mode: Its permissions.
        file_mode: Those of the files.
    """

    def __init__(self, folder: Path, folder_mode: int, file_mode: int) -> None:
        self._folder = folder
        self._folder_mode = folder_mode
        self._file_mode = file_mode

    def register(self, name: str | None = None) -> tuple[str, KernelLock]:
        """Take the lock that tells others that this process is alive.

        Args:
            name: The name that others know it by already, whose lock's file has vanished.

        Returns:
            The name, which no other process has, and the lock.

        Raises:
            OSError: The lock cannot be had.
        """
        while True:
            self._make_folder()
            mine = name or f"{os.getpid()}-{secrets.token_hex(8)}"
            lock = KernelLock(self._folder / mine, self._file_mode)
            # Until the lock is there, anybody may take the file for a dead process's and remove it.
            with contextlib.suppress(FileNotFoundError):  # the folder may vanish at any moment
                if lock.acquire() and self.is_alive(mine):
                    return mine, lock
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
            return True  # it cannot be told: then time decides
        try:
            # Shared, so that two who ask at once do not take each other for the poster.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(file)
        return False

    def living(self) -> list[str]:
        """Return the names of those who live."""
        return [name for name in self._names() if self.is_alive(name)]

    def dead(self) -> list[str]:
        """Return the names of those who have died, and left their files behind."""
        return [name for name in self._names() if not self.is_alive(name)]

    def remove_lock_file(self, name: str) -> None:
        """Remove what a process left behind."""
        (self._folder / name).unlink(missing_ok=True)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._folder)  # noqa: PTH208
        except FileNotFoundError:  # somebody has removed the folder
            return []
