"""Where background threads can run: everywhere but in some processes of uWSGI."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from kombu_cfqueues.runtime.threads import threads_can_run


def test_threads_run_outside_uwsgi() -> None:
    assert threads_can_run()


@pytest.mark.parametrize(
    ("has_threads", "worker", "mule", "spooler", "expected"),
    [
        (1, 0, 0, None, False),  # the master, before it forks
        (1, 2, 0, None, True),
        (1, 0, 1, None, True),
        (1, 0, 0, True, True),
        (0, 2, 0, None, False),  # enable-threads is off
    ],
)
def test_threads_run_in_workers_of_uwsgi_that_have_threads(
    monkeypatch, has_threads, worker, mule, spooler, expected
) -> None:
    uwsgi = SimpleNamespace(
        has_threads=has_threads,
        worker_id=lambda: worker,
        mule_id=lambda: mule,
        i_am_the_spooler=lambda: spooler,
    )
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    assert threads_can_run() is expected
