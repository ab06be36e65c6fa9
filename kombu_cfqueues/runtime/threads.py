"""Whether this process can have background threads: under uWSGI, not every process can."""

from __future__ import annotations

import sys


def threads_can_run() -> bool:
    """Whether a thread that is started now would run, without causing deadlocks.

    uWSGI imports an application in its master, and then forks the workers in C.  Python cannot
    prepare such a fork: what a thread of the master is doing at that moment, for instance in
    SQLite, leaves its locks locked in every worker.  And without ``enable-threads``, threads run
    only while a request is handled, and stop in the middle of what they do.
    """
    uwsgi = sys.modules.get("uwsgi")  # exists only inside uWSGI
    if uwsgi is None:
        return True
    forked = uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler()
    return bool(uwsgi.has_threads and forked)
