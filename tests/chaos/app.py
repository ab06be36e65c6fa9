"""The Celery application of the chaos: what its publishers send and its workers run.

``celery -A chaos.app worker``, with its settings in the environment as JSON.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import signal
from pathlib import Path

from celery import Celery

from . import witness
from .ledger import FOLDER, KILL_CHILD, SETTINGS, write

_imported_by = os.getpid()

app = Celery("chaos")
app.conf.update(
    broker_transport="kombu_cfqueues:Transport",
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_acks_late=True,  # else a worker that is killed loses what it runs, as Celery documents
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_hijack_root_logger=False,
    **json.loads(os.environ.get(SETTINGS, "{}")),
)

# Whoever hangs is asked where.
faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
witness.install()


@functools.partial(app.task, bind=True)
def note(self, sent: float) -> None:
    """Do nothing but say so; die of it, as of too little memory, if a child of a pool is to."""
    write("ran", self.request.id, sent)
    if os.getpid() != _imported_by:
        with contextlib.suppress(FileNotFoundError):
            Path(os.environ[FOLDER]).with_name(KILL_CHILD).unlink()
            write("child killed")
            os.kill(os.getpid(), signal.SIGKILL)
