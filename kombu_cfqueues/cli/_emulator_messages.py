"""``cfqueues emulator export`` and ``import``: a queue's messages as JSON lines, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Final
from urllib.parse import quote

import click
import requests

from ..emulator import TOKEN
from ..emulator.message_lines import CONTENT_TYPE
from ..emulator.snippets import TOKEN_VARIABLE
from ._help import examples

TIMEOUT_SECONDS: Final = 30.0
"""Timeout for each part of an answer."""

_PART_BYTES: Final = 8_000_000
"""Bytes that an import reads for one request; it then adds the rest of the last line."""

_CHUNK_BYTES: Final = 1 << 16

_takes_place: Final = (
    click.option(
        "--url",
        default="http://127.0.0.1:8787",
        show_default=True,
        help="Use the emulator whose page has this URL.",
    ),
    click.option(
        "--token",
        envvar=TOKEN_VARIABLE,
        default=TOKEN,
        help=f"Set the token, if the emulator has one of its own.  [env: {TOKEN_VARIABLE}]",
    ),
)


class _Emulator:
    """A queue of a running emulator."""

    def __init__(self, url: str, token: str, queue: str) -> None:
        self._url = f"{url.rstrip('/')}/_emulator"
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy does not lead to this machine
        self._session.headers["Authorization"] = f"Bearer {token}"
        self._queue = self._find(queue)

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """Call an endpoint.

        Raises:
            ClickException: The emulator does not answer, or refuses.
        """
        try:
            answer = self._session.request(
                method, f"{self._url}{path}", timeout=TIMEOUT_SECONDS, **more
            )
        except requests.RequestException as error:
            raise click.ClickException(
                f"no emulator answers at {self._url.removesuffix('/_emulator')}: start one with "
                "'cfqueues emulator', or name its URL with --url"
            ) from error
        if answer.ok:
            return answer
        try:
            text = answer.json()["error"]
        except (ValueError, LookupError, TypeError):
            text = f"the server at --url answered {answer.status_code}; is it an emulator?"
        raise click.ClickException(str(text))

    def export(self) -> Iterator[bytes]:
        """Yield the messages of the queue as JSON lines, in parts of any size."""
        answer = self.call("GET", f"/queues/{self._queue}/export", stream=True)
        try:
            yield from answer.iter_content(_CHUNK_BYTES)
        except requests.RequestException as error:
            raise click.ClickException(
                f"the emulator broke off the export ({error}), which is incomplete: export again"
            ) from error

    def publish(self, lines: bytes, first: int) -> int:
        """Publish JSON lines, numbered from *first*; return the number of messages."""
        answer = self.call(
            "POST",
            f"/queues/{self._queue}/import?first_line={first}",
            data=lines,
            headers={"Content-Type": CONTENT_TYPE},
        )
        return int(answer.json()["published"])

    def _find(self, name: str) -> str:
        queues = self.call("GET", "/state").json()["queues"]
        for queue in queues:
            if queue["name"] == name:
                return quote(queue["id"])
        names = ", ".join(queue["name"] for queue in queues) or "none"
        raise click.ClickException(f"the emulator has no queue {name!r}; its queues: {names}")


@click.command("export", epilog=examples("emulator export jobs --to jobs.jsonl"))
@click.argument("queue")
@click.option(
    "--to",
    "target",
    type=click.File("wb", atomic=True),
    default="-",
    help="Write to this file.  [default: standard output]",
)
@_takes_place[0]
@_takes_place[1]
def export_command(queue: str, target: BinaryIO, url: str, token: str) -> None:
    """Write all messages of QUEUE of a running emulator as JSON lines.

    Delayed and leased messages are included. Nothing is leased, acknowledged or deleted.
    """
    number = 0
    for part in _Emulator(url, token, queue).export():
        target.write(part)
        number += part.count(b"\n")
    click.echo(f"Exported {number:,} messages of {queue}.", err=True)


@click.command("import", epilog=examples("emulator import jobs lines.jsonl"))
@click.argument("queue")
@click.argument("source", type=click.File("rb"), default="-")
@_takes_place[0]
@_takes_place[1]
@click.option("--json", "as_json", is_flag=True, help="Print the number of messages as JSON.")
def import_command(queue: str, source: BinaryIO, url: str, token: str, as_json: bool) -> None:
    """Publish the messages in SOURCE, a file of JSON lines, to QUEUE of a running emulator.

    Each line is an object with a body, and may have content_type ("json" or "text") and
    delay_seconds. The default of SOURCE is standard input.
    """
    emulator = _Emulator(url, token, queue)
    published, line = 0, 1
    while part := source.read(_PART_BYTES):
        part += source.readline()
        try:
            published += emulator.publish(part, line)
        except click.ClickException:
            if published:
                click.echo(
                    f"Imported {published:,} messages, from the lines before {line}.", err=True
                )
            raise
        line += part.count(b"\n")
    if as_json:
        click.echo(json.dumps({"imported": published}))
    else:
        click.echo(f"Imported {published:,} messages into {queue}.", err=True)
