"""Forks wait for what must not be in use, in an order that no thread crosses."""

from __future__ import annotations

import os

from kombu_cfqueues.runtime.fork import pause_at_fork


class Thing:
    def __init__(self, number: int, paused: list[int]) -> None:
        self.number, self.paused = number, paused
        pause_at_fork(self)

    def pause_for_fork(self) -> None:
        self.paused.append(self.number)

    def resume_after_fork(self) -> None:
        pass


def test_a_fork_pauses_first_what_was_registered_last():
    """As a thread does that moves messages from an old file to a new one."""
    paused: list[int] = []
    things = [Thing(number, paused) for number in range(10)]
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert paused == [thing.number for thing in reversed(things)]
