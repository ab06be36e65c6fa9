"""How a Celery worker ends, and its children: by signals, supervisors, autoscaling or a kill.

The regular run has each once; ``CFQUEUES_WORKER_MATRIX=1`` repeats what a race may break.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.forms import first_of

from .workers import HERE, MATRIX, Worker, send_many, states, until, within

GROUP_SIZES = [4, 16] if MATRIX else [4]
TIMES = 20 if MATRIX else 1
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def assert_all_is_there(emulator, worker, count: int, told: float) -> None:
    """Each task has ended once or is ready to run: none is lost, leased, or runs twice.

    A child may be killed, just after *told*, when its task has ended and before it could say so.
    """
    ended = Counter(worker.values("nap ended"))
    perhaps = sum(run["at"] > told - 0.5 for run in worker.runs("nap ended"))
    assert not [task for task, times in ended.items() if times > 1]
    assert set(states(emulator)) == {"ready"}
    assert 0 <= states(emulator)["ready"] - (count - len(ended)) <= perhaps


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", GROUP_SIZES)
def test_a_signal_to_the_process_group_ends_a_worker_in_the_middle_of_work(
    emulator, tasks, tmp_path, size
):
    """As systemd, ``supervisord`` with ``stopasgroup`` and ``dumb-init`` send it."""
    for _ in range(TIMES):
        (tmp_path / "runs").unlink(missing_ok=True)
        with Worker(
            emulator, tmp_path, pool="prefork", concurrency=size,
            task_acks_late=True, task_reject_on_worker_lost=True,
        ) as worker:  # fmt: skip
            send_many(tasks.nap, range(8 * size), 1)
            until(lambda worker=worker: len(worker.runs("nap")) >= 2 * size)
            told = time.time()
            os.killpg(worker.process.pid, signal.SIGTERM)
            assert worker.wait(60) == 0
            assert time.time() - told < within(5, 60)
            assert_all_is_there(emulator, worker, 8 * size, told)
        tasks.app.control.purge()


@pytest.mark.timeout(600)
def test_work_goes_on_after_scaling_down(emulator, tasks, tmp_path):
    with Worker(
        emulator, tmp_path, pool="prefork", arguments=("--autoscale=8,1",),
        environ={"AUTOSCALE_KEEPALIVE": "1"}, options={"max_polling_interval": 1},
        task_acks_late=True,
    ) as worker:  # fmt: skip
        for times in range(1, 21 if MATRIX else 3):
            send_many(tasks.nap, [f"{times} {n}" for n in range(16)], 0.1)
            until(lambda times=times: len(worker.runs("nap ended")) == 16 * times)
            until(lambda times=times: worker.log.count("Scaling down") >= times)
        send_many(tasks.note, range(8))
        until(lambda: len(worker.runs("note")) == 8)
        until(lambda: not states(emulator))


def test_a_task_whose_child_is_killed_begins_again_soon(emulator, tasks, tmp_path):
    with Worker(emulator, tmp_path) as worker:
        tasks.die_once.delay(1)
        first, second = until(lambda: (runs := worker.runs("die_once"))[1:] and runs)
        # The pool is told of a child's end at once, or looks after it every 5 seconds.
        assert second["at"] - first["at"] < within(7, 30)
        until(lambda: not states(emulator))


@pytest.mark.parametrize("supervisor", first_of(["dumb-init", "supervisord"]))
def test_a_supervisor_ends_a_worker_in_the_middle_of_work(emulator, tasks, tmp_path, supervisor):
    program = shutil.which(supervisor, path=TOOLS)
    if program is None:
        pytest.skip(f"needs {supervisor}, from PyPI")
    worker = Worker(
        emulator, tmp_path, pool="prefork", concurrency=4,
        task_acks_late=True, task_reject_on_worker_lost=True,
    )  # fmt: skip
    if supervisor == "dumb-init":
        worker.command = [program, "--", *worker.command]
    else:
        settings = tmp_path / "supervisord.conf"
        settings.write_text(
            f"[supervisord]\nnodaemon=true\nlogfile=/dev/stdout\nlogfile_maxbytes=0\n"
            f"pidfile={tmp_path}/pid\nuser=%(ENV_SUPERVISED_AS)s\n"
            f"[program:worker]\ncommand={' '.join(worker.command)}\ndirectory={HERE}\n"
            "stopasgroup=true\nkillasgroup=true\nstopwaitsecs=60\nredirect_stderr=true\n"
            "stdout_logfile=/dev/stdout\nstdout_logfile_maxbytes=0\n"
        )
        worker.environ["SUPERVISED_AS"] = subprocess.run(
            ["id", "-un"], capture_output=True, text=True, check=True
        ).stdout.strip()
        worker.command = [program, "-c", str(settings)]
    with worker:
        send_many(tasks.nap, range(32), 1)
        until(lambda: len(worker.runs("nap")) >= 8)
        told = time.time()
        worker.stop()  # the supervisor ends after its worker
        assert_all_is_there(emulator, worker, 32, told)


@pytest.mark.parametrize("pool", first_of(["solo", "threads", "gevent"]))
def test_an_idle_worker_ends_at_once(emulator, tasks, tmp_path, pool):
    with Worker(emulator, tmp_path, pool=pool, concurrency=1) as worker:
        told = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - told < within(2, 30)
