"""What Windows lacks is taken from a process, before it imports the library."""

from __future__ import annotations

import os
import subprocess
import sys

from .processes import ROOT

#: What each process begins with.  The rest of Python and other packages are imported first: on
#: Windows they have code of their own.
HIDE = """
import asyncio, concurrent.futures, multiprocessing, os, select, signal, socket, subprocess, sys
import click, kombu, requests, rich.console, starlette.applications, urllib3, uvicorn
import click.testing, importlib.resources, sqlite3, tempfile
import rich.live, rich.progress, rich.table, starlette.routing, starlette.responses
import uvicorn.protocols.http.httptools_impl, uvicorn.lifespan.off
try:
    import celery.app.amqp, celery.app.utils, celery.loaders.app, celery.backends.base
except ImportError:
    pass

for name in [name for name in sys.modules if name.partition(".")[0] == "kombu_cfqueues"]:
    del sys.modules[name]  # Kombu loads the package where it is installed

for name in ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"):
    sys.modules[name] = None

OS = '''O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK WNOHANG chown chroot confstr ctermid fchdir
fchmod fchown fdatasync fork forkpty fstatvfs getegid geteuid getgid getgroups getloadavg getpgid
getpgrp getpriority getresuid getsid getuid initgroups killpg lchown lockf mkfifo mknod nice openpty
pathconf pipe2 posix_fadvise posix_fallocate posix_spawn posix_spawnp pread preadv pwrite pwritev
readv register_at_fork sched_getaffinity sched_yield sendfile set_blocking setegid seteuid setgid
setpgid setpriority setsid setuid statvfs sync sysconf tcgetpgrp tcsetpgrp uname wait wait3 wait4
waitid writev'''
SIGNAL = '''ITIMER_REAL SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP
SIGUSR1 SIGUSR2 SIGWINCH alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt
sigwait sigpending sigtimedwait sigwaitinfo'''
for module, names in ((os, OS), (signal, SIGNAL)):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
for name in ("poll", "epoll"):
    delattr(select, name)
family = socket.AF_UNIX
del socket.AF_UNIX
del socket.SO_REUSEPORT
socket.socketpair = lambda *_, real=socket.socketpair: real(family)

def only_sockets(*lists, real=select.select):
    for one in [one for some in lists[:3] for one in some]:
        if not isinstance(one, socket.socket):
            raise OSError(10038, "an operation was attempted on something that is not a socket")
    return real(*lists)

select.select = only_sockets

class Proactor(asyncio.SelectorEventLoop):
    '''The loop that Windows prefers.'''

    def add_reader(self, *_):
        raise NotImplementedError

    remove_reader = add_writer = remove_writer = add_signal_handler = add_reader

asyncio.new_event_loop = asyncio.events.new_event_loop = Proactor
"""


def start(code: str, *arguments: str, **given) -> subprocess.Popen:
    """Start *code* as a process without what Windows lacks."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | given.pop("environment", {})
    return subprocess.Popen(
        [sys.executable, "-c", HIDE + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **given,
    )


def run(code: str, *arguments: str, **given) -> str:
    """Run *code* as such a process; return what it printed."""
    process = start(code, *arguments, **given)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out
