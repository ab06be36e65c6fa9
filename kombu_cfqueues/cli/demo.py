"""``cfqueues demo``: publishes to and consumes from an emulator on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final

import click
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.message import Message

from ..emulator import Emulator
from ..options import Options
from . import _console as console
from ._address import cannot_listen
from ._broker import RawOptions
from ._compose import Composer
from ._help import examples
from ._messages import COLUMNS, by_age, decode, row
from ._session import Session, open_session

DEMO_QUEUE: Final = "demo"

DEMO_SECONDS: Final = 20.0
"""Longest wait for the three messages to arrive."""

DRAIN_SECONDS: Final = 0.5
"""Longest wait of one call of ``drain_events`` for a message."""

POLLING_SECONDS: Final = 0.2
"""The consumer's ``polling_interval``: short, so that the demo is quick."""

MESSAGES: Final = 3
"""Number of messages that the demo publishes."""


@click.command(epilog=examples("demo", "demo --stay"))
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=0,
    help="Set the port of the emulator.  [default: a free port]",
)
@click.option("--stay", is_flag=True, help="Keep the emulator and its page running until Ctrl-C.")
@console.takes_json
def command(port: int, stay: bool, as_json: bool) -> None:
    """Publish and consume on an emulated Cloudflare, without an account.

    The exit status is 0 if every message arrived.
    """
    emulator = Emulator(port=port)
    try:
        emulator.start()
    except OSError as error:
        emulator.stop()
        raise cannot_listen("emulator", "127.0.0.1", port, error) from error
    with emulator:
        options = RawOptions(emulator.broker_url, {}, token=True).read()
        with open_session(options) as session:
            arrived = _play(session, options, emulator, as_json=as_json)
        if as_json:
            console.emit({"published": MESSAGES, "arrived": arrived})
        else:
            click.echo(f"\n{arrived} of {MESSAGES} messages arrived.")
            if stay:
                click.echo(f"The emulator runs until Ctrl-C: {emulator.page_url}")
                _wait_for_ctrl_c()
    if arrived != MESSAGES:
        raise click.ClickException(
            f"not every message arrived within {DEMO_SECONDS:g} s: run the demo again with "
            "--stay, and look at the page of the emulator"
        )


def _play(session: Session, options: Options, emulator: Emulator, *, as_json: bool) -> int:
    def say(text: str) -> None:
        if not as_json:
            click.echo(text)

    say(f"Emulating Cloudflare Queues; page while this runs: {emulator.page_url}")
    queue = session.call(session.client.create_queue, DEMO_QUEUE)
    kinds = "JSON, a Celery task, and a delayed one"
    say(f"\n1. Publish three messages to queue {DEMO_QUEUE!r}: {kinds}.")
    plain = Composer(DEMO_QUEUE, options)
    task = Composer(DEMO_QUEUE, options, task="shop.tasks.send_mail")
    delayed = Composer(DEMO_QUEUE, options, delay=1)
    session.publish(
        queue,
        [
            plain.pack(b'{"hello": "world"}'),
            task.pack(b'["ada@example.com"]'),
            delayed.pack(b'{"due": "in a second"}'),
        ],
    )
    say("\n2. What 'cfqueues peek' shows: the first two, because the third is still delayed.\n")
    raws = by_age(session.call(session.client.peek, queue.id, batch_size=10))
    if not as_json:
        console.table(COLUMNS, [row(decode(raw, DEMO_QUEUE)) for raw in raws], numbers=COLUMNS[:2])
    say("\n3. Consume and acknowledge them with Kombu.\n")
    return _consume(emulator.broker_url, say)


def _consume(url: str, say: Callable[[str], None]) -> int:
    arrived: list[Any] = []
    started = time.monotonic()

    def receive(body: Any, message: Message) -> None:
        arrived.append(body)
        name = message.headers.get("task")
        content = f"{name} with {body[0]}" if name else body
        say(f"after {time.monotonic() - started:.1f} s: {content}")
        message.ack()

    with Connection(url, transport_options={"polling_interval": POLLING_SECONDS}) as connection:
        consumer = connection.Consumer([Queue(DEMO_QUEUE)], callbacks=[receive], accept=["json"])
        with consumer:
            while len(arrived) < MESSAGES and time.monotonic() - started < DEMO_SECONDS:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=DRAIN_SECONDS)
    return len(arrived)


def _wait_for_ctrl_c() -> None:
    with contextlib.suppress(KeyboardInterrupt):  # the expected end
        while True:
            time.sleep(3600)
