"""Modules that are imported late, and processes that fork meanwhile."""

from __future__ import annotations

import os
import threading

import pytest

from kombu_cfqueues.runtime.imports import importing


def fork(in_child):
    """Fork; returns whether *in_child* returned a true value there."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if in_child() else 1)
        finally:
            os._exit(2)
    return os.waitpid(pid, 0)[1] == 0


def can_import():
    """Whether another thread could import something."""
    done = []

    def enter():
        with importing:
            done.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(30)
    return bool(done)


def test_a_fork_waits_for_a_module_that_another_thread_imports():
    """In the child, the module would stay half loaded for ever."""
    begun, go_on, loaded = threading.Event(), threading.Event(), []

    def load():
        with importing:
            begun.set()
            go_on.wait(30)
            loaded.append(True)

    thread = threading.Thread(target=load)
    thread.start()
    begun.wait(30)
    threading.Timer(0.2, go_on.set).start()

    assert fork(lambda: loaded and can_import())

    assert loaded
    assert can_import()
    thread.join(30)


@pytest.mark.parametrize("again", [False, True])
def test_a_signal_handler_may_fork_while_its_thread_imports(again):
    with importing:
        if again:
            assert fork(lambda: True)
        assert fork(can_import)
    assert can_import()
