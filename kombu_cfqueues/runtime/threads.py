"""Background threads: whether this process can have any, and how they start."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


def threads_can_run() -> bool:
    """Whether a thread that is started now would run, without causing deadlocks.

    uWSGI imports an application in its master, and then forks the workers in C.  Python cannot
    prepare such a fork: locks that a thread of the master holds at that moment, for instance in
    SQLite, stay locked in every worker.  Without ``enable-threads``, threads run only while a
    request is handled, and stop in the middle of their work.
    """
    uwsgi = sys.modules.get("uwsgi")  # exists only inside uWSGI
    if uwsgi is None:
        return True
    forked = uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler()
    return bool(uwsgi.has_threads and forked)


def start_thread(name: str, work: Callable[[], None]) -> RuntimeError | None:
    """Start a daemon thread; return the error if the interpreter is exiting and starts none.

    Hold no lock.  Under gevent and eventlet, starting a thread switches to another greenlet, which
    may wait for that lock.
    """
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:
        return error
    return None
