"""Where the spool's files may be: a folder that only this user can write to, on a local disk.

All processes that share a token must find the same folder; otherwise each group of them has its
own allowance.  So a folder that the user sets is used or refused, never replaced.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import SpoolUnavailable

FOLDER: Final = "kombu-cfqueues"

#: File systems of other machines.  SQLite's shared memory does not work across machines, and locks
#: depend on the server.
NETWORK_FILE_SYSTEMS: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs",
    "fuse.sshfs", "gfs2", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb2", "smb3",
    "smbfs",
})  # fmt: skip


class Place(NamedTuple):
    """A folder that can hold the spool.

    Attributes:
        folder: An existing folder in which files can be created.
        shared: Whether the folder's group may write to it; then the files belong to the group too.
    """

    folder: Path
    shared: bool

    @property
    def file_mode(self) -> int:
        """Permissions of a file there."""
        return 0o660 if self.shared else 0o600

    @property
    def folder_mode(self) -> int:
        """Permissions of a folder there.  A shared folder passes its group on (setgid)."""
        return 0o2770 if self.shared else 0o700


def find(spool_dir: str | None, environ: Mapping[str, str] = os.environ) -> Place:
    """Choose the folder, and create it if it is missing.

    If *spool_dir*, the option, is set, no other folder is tried.

    Raises:
        SpoolUnavailable: No folder can be used; the text gives the reason for each.
    """
    if spool_dir is not None:
        folder = Path(spool_dir).expanduser()
        try:
            return _configured(folder)
        except OSError as error:
            raise SpoolUnavailable(_sentence(folder, error)) from error
    reasons = []
    for folder in _own_folders(environ):
        try:
            return _own(folder)
        except OSError as error:  # noqa: PERF203  at most four rounds
            reasons.append(_sentence(folder, error))
    raise SpoolUnavailable(
        "no folder of this machine can hold the spool; set spool_dir: " + "; ".join(reasons)
    )


def look(spool_dir: str | None, environ: Mapping[str, str] = os.environ) -> Place | None:
    """Return the folder that `find` would choose if it exists; else None.  Creates nothing."""
    folders = _own_folders(environ) if spool_dir is None else [Path(spool_dir).expanduser()]
    check = _check_own if spool_dir is None else _check_configured
    for folder in folders:
        try:
            found = check(folder)
            if os.access(folder, os.W_OK | os.X_OK):
                return found
        except FileNotFoundError:  # noqa: PERF203  at most four rounds
            if _can_be_made(folder):
                return None
        except OSError:
            pass
    return None


def _can_be_made(folder: Path) -> bool:
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    return os.access(above, os.W_OK | os.X_OK)


def _own_folders(environ: Mapping[str, str]) -> Iterator[Path]:
    state = environ.get("XDG_STATE_HOME")
    if state and os.path.isabs(state):  # noqa: PTH117  the value is a text
        yield Path(state) / FOLDER
    else:
        with contextlib.suppress(RuntimeError):  # the user has no home
            yield Path.home() / ".local" / "state" / FOLDER
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime) / FOLDER
    yield Path(tempfile.gettempdir()) / f"{FOLDER}-{os.geteuid()}"


def _own(folder: Path) -> Place:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = _check_own(folder)
    _try_out(folder)
    return found


def _check_own(folder: Path) -> Place:
    found = folder.lstat()  # a link may point to a folder that others can write to
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError("it is not a folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"it belongs to another user (uid {found.st_uid})")
    if found.st_mode & 0o077:
        folder.chmod(0o700)
    kind = _file_system(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        raise OSError(f"it is on a network file system ({kind})")
    return Place(folder, shared=False)


def _configured(folder: Path) -> Place:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = _check_configured(folder)
    _try_out(folder)
    return found


def _check_configured(folder: Path) -> Place:
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError("it is not a folder")
    if found.st_mode & 0o002:
        raise PermissionError("every user of this machine can write to it (chmod o-w)")
    return Place(folder, shared=bool(found.st_mode & 0o020))


def _try_out(folder: Path) -> None:
    # Permissions are not enough: the file system may be mounted read-only.
    with tempfile.TemporaryFile(dir=folder):
        pass


def _file_system(folder: Path) -> str | None:
    """Return the type of the file system that holds *folder*; None if it is unknown."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().split(b"\n")
    except OSError:
        return None
    path = folder.resolve()
    best, kind = "", None
    for line in lines:
        left, separator, right = line.partition(b" - ")
        if not separator:
            continue
        # The kernel writes spaces and backslashes as octal numbers, and other bytes as they are.
        escaped = left.split()[4]
        mount = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), escaped))
        if len(mount) >= len(best) and path.is_relative_to(mount):  # later ones cover earlier ones
            best, kind = mount, os.fsdecode(right.split()[0])
    return kind


def _sentence(folder: Path, error: OSError) -> str:
    return f"{folder} cannot be used ({error.strerror or error})"
