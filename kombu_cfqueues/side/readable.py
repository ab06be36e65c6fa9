"""Waits until files can be read, also under gevent and eventlet."""

from __future__ import annotations

import select


def readable(files: list[int], seconds: float) -> list[int]:
    """Wait until one of *files* can be read; return those that can."""
    # gevent and eventlet replace these functions; eventlet removes `poll`.
    if not hasattr(select, "poll"):
        return list(select.select(files, [], [], seconds)[0])
    poll = select.poll()
    for file in files:
        poll.register(file, select.POLLIN)
    return [file for file, _ in poll.poll(seconds * 1000)]
