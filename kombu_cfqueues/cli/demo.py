"""``cfqueues demo``: publishing and consuming, on this machine and without an account."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Final

import click
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.message import Message

from ..emulator import Emulator
from ..options import Options
from . import _console as console
from ._broker import Given
from ._compose import Composer
from ._messages import COLUMNS, by_age, row, show
from ._session import Session, opened

QUEUE: Final = "demo"

PATIENCE: Final = 20.0
"""Seconds after which what has not arrived is given up."""


@click.command(short_help="See it work, without an account.")
@click.option("--port", default=0, help="Port of the emulator.  [default: a free one]")
@click.option("--stay", is_flag=True, help="Keep the emulator, and its page, until Ctrl-C.")
@console.takes_json
def command(port: int, stay: bool, as_json: bool) -> None:
    """Publish and consume on an emulated Cloudflare: two minutes, no account.

    Exit status 0 says that each message arrived as it was sent.
    """
    try:
        emulator = Emulator(port=port)
        emulator.start()
    except OSError as error:
        raise click.ClickException(f"cannot listen on port {port}: {error.strerror}") from error
    with emulator:
        options = Given(emulator.broker_url, {}, token=True).read()
        with opened(options) as session:
            arrived = _play(session, options, emulator, as_json=as_json)
        if as_json:
            console.emit({"published": 3, "arrived": arrived})
        else:
            click.echo(f"\n{arrived} of 3 messages arrived.")
            if stay:
                click.echo(f"The emulator stays until Ctrl-C: {emulator.page_url}")
                _stay()
    if arrived != 3:
        raise click.ClickException("not every message arrived")


def _play(session: Session, options: Options, emulator: Emulator, *, as_json: bool) -> int:
    def say(text: str = "") -> None:
        if not as_json:
            click.echo(text)

    say(f"Cloudflare Queues, emulated at {emulator.page_url} (look, while this runs)")
    queue = session.call(session.client.create_queue, QUEUE)
    say(f"\n1. A queue {QUEUE!r}, and three messages: JSON, a Celery task, and one for later.")
    plain = Composer(QUEUE, options)
    task = Composer(QUEUE, options, task="shop.tasks.send_mail")
    later = Composer(QUEUE, options, delay=1)
    session.publish(
        queue,
        [
            plain.pack(b'{"hello": "world"}'),
            task.pack(b'["ada@example.com"]'),
            later.pack(b'{"due": "in a second"}'),
        ],
    )
    say("\n2. What 'cfqueues peek' shows: the first two, as nobody may have the third yet.\n")
    raws = by_age(session.call(session.client.peek, queue.id, batch_size=10))
    if not as_json:
        console.table(COLUMNS, [row(show(raw, QUEUE)) for raw in raws], numbers=COLUMNS[:2])
    say("\n3. A Kombu consumer takes and acknowledges them.\n")
    return _consume(emulator.broker_url, say)


def _consume(url: str, say: Any) -> int:
    arrived: list[Any] = []
    began = time.monotonic()

    def take(body: Any, message: Message) -> None:
        arrived.append(body)
        name = message.headers.get("task")
        words = f"{name} with {body[0]}" if name else body
        say(f"after {time.monotonic() - began:.1f} s: {words}")
        message.ack()

    with Connection(url, transport_options={"polling_interval": 0.2}) as connection:
        consumer = connection.Consumer([Queue(QUEUE)], callbacks=[take], accept=["json"])
        with consumer:
            while len(arrived) < 3 and time.monotonic() - began < PATIENCE:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.5)
    return len(arrived)


def _stay() -> None:
    with contextlib.suppress(KeyboardInterrupt):  # as it said
        while True:
            time.sleep(3600)
