"""Code that repeats what the page shows: publishes a message, or makes a request."""

from __future__ import annotations

import base64
import json
import pprint
import shlex
import textwrap
from dataclasses import dataclass
from typing import Any, Final

from .access import TOKEN
from .log import LoggedRequest
from .stored_messages import StoredMessage

TOKEN_VARIABLE: Final = "CFQUEUES_EMULATOR_TOKEN"  # noqa: S105 - its name, not its value
"""The environment variable that stands for a token which is not the default one."""

_MAX_ARGUMENT: Final = 100_000
"""A body that is longer than this is piped: Linux allows an argument 128 KB."""

_NOT_SENT: Final = ("delivery_info", "delivery_tag", "body_encoding", "delivery_mode")
"""Properties that the transport sets itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where code finds the emulator.

    Attributes:
        address: Host and port, as the caller of the page names them.
        account_id: The account.
        token: The token, which code shows only if it is the default one.
    """

    address: str
    account_id: str
    token: str

    @property
    def is_local(self) -> bool:
        """Whether a client uses plain HTTP to this address without ``allow_insecure_http``."""
        return self.address.startswith(("127.", "localhost:", "[::1]"))

    @property
    def base_url(self) -> str:
        """The URL of the API."""
        return f"http://{self.address}/client/v4"

    def bearer(self) -> str:
        """Return curl's option for the token."""
        token = TOKEN if self.token == TOKEN else f"${TOKEN_VARIABLE}"
        return f'-H "Authorization: Bearer {token}"'

    def client(self) -> list[str]:
        """Return the lines of Python that make a client of Cloudflare's SDK."""
        public = self.token == TOKEN
        token = repr(TOKEN) if public else f'os.environ["{TOKEN_VARIABLE}"]'
        return [
            *([] if public else ["import os", ""]),
            "from cloudflare import Cloudflare",
            "",
            f'client = Cloudflare(api_token={token}, base_url="{self.base_url}")',
        ]

    def broker(self) -> list[str]:
        """Return the lines of Python that name the broker URL ``broker``."""
        if self.token == TOKEN:
            return [f'broker = "cfqueues://{self.account_id}:{TOKEN}@{self.address}/"']
        return [
            f'token = quote(os.environ["{TOKEN_VARIABLE}"], safe="")',
            f'broker = f"cfqueues://{self.account_id}:{{token}}@{self.address}/"',
        ]

    def imports(self, line: str) -> list[str]:
        """Return the imports of Python that uses ``broker()``, with another *line*."""
        own = [] if self.token == TOKEN else ["import os", "from urllib.parse import quote", ""]
        return [*own, line, ""]


def first_steps(place: Place) -> dict[str, str]:
    """Return how to reach an empty emulator: ``broker_url``, ``python`` and ``curl``."""
    token = TOKEN if place.token == TOKEN else f"${TOKEN_VARIABLE}"
    allow = 'app.conf.broker_transport_options = {"allow_insecure_http": True}'
    python = [
        *place.imports("from celery import Celery"),
        *place.broker(),
        'app = Celery("example", broker=broker)',
        *([] if place.is_local else [allow]),
        'print(app.send_task("hello", ["world"], queue="jobs"))',
        "",
    ]
    url = f"{place.base_url}/accounts/{place.account_id}/queues"
    return {
        "broker_url": f"cfqueues://{place.account_id}:{token}@{place.address}/",
        "python": "\n".join(python),
        "curl": _curl("POST", url, place, "application/json", b'{"queue_name": "jobs"}'),
    }


def of_message(message: StoredMessage, queue: tuple[str, str], place: Place) -> dict[str, str]:
    """Return code that publishes *message* again: ``curl``, ``sdk`` and ``kombu``.

    Args:
        message: The message.
        queue: The id and the name of its queue.
        place: Where to publish it.
    """
    queue_id, name = queue
    fields: dict[str, Any] = {"content_type": message.content_type}
    if message.delay_seconds:
        fields["delay_seconds"] = message.delay_seconds
    is_text = message.content_type == "text"
    body = json.dumps(message.body, ensure_ascii=False) if is_text else message.body
    sent = f'{{"body": {body}, {json.dumps(fields)[1:]}'
    path = f"/accounts/{place.account_id}/queues/{queue_id}/messages"
    # This route refuses JSON other than arrays and objects; the batch route accepts it.
    if not is_text and body.lstrip()[:1] not in ("{", "["):
        path, sent = f"{path}/batch", f'{{"messages": [{sent}]}}'
        sdk = _call(
            "client.queues.messages.bulk_push",
            [repr(queue_id)],
            account_id=place.account_id,
            messages=[{"body": message.value, **fields}],
        )
    else:
        sdk = _call(
            "client.queues.messages.push",
            [repr(queue_id)],
            account_id=place.account_id,
            body=message.value,
            **fields,
        )
    return {
        "curl": _curl("POST", place.base_url + path, place, "application/json", sent.encode()),
        "sdk": "\n".join([*place.client(), sdk, ""]),
        "kombu": _kombu(message, name, place),
    }


def of_request(request: LoggedRequest, place: Place) -> dict[str, str]:
    """Return code that makes *request* again: ``curl``, and ``sdk`` unless its body is not JSON."""
    path = request.path.removeprefix("/client/v4")
    query = f"?{request.query}" if request.query else ""
    content_type = request.headers.get("content-type", "")
    url = f"http://{place.address}{request.path}{query}"
    code = {"curl": _curl(request.method, url, place, content_type, request.body)}
    verb = request.method.lower()
    if verb not in ("get", "post", "put", "patch", "delete"):
        return code
    options: dict[str, Any] = {}
    if request.body:
        try:
            options["body"] = json.loads(request.body)
        except (ValueError, RecursionError):
            return code
    call = _call(f"client.{verb}", [repr(path + query), "cast_to=object"], **options)
    return {**code, "sdk": "\n".join([*place.client(), f"print({call})", ""])}


def _curl(method: str, url: str, place: Place, content_type: str, body: bytes) -> str:
    lines = [f"curl -X {method} {shlex.quote(url)}", place.bearer()]
    if content_type:
        lines.append(f"-H {shlex.quote(f'Content-Type: {content_type}')}")
    if not body:
        return " \\\n  ".join(lines) + "\n"
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and len(body) < _MAX_ARGUMENT and "\0" not in text:
        return " \\\n  ".join([*lines, f"--data-binary {shlex.quote(text)}"]) + "\n"
    lines.append("--data-binary @-")
    return f"base64 -d <<'END' | {' '.join(lines)}\n{base64.encodebytes(body).decode()}END\n"


def _kombu(message: StoredMessage, queue: str, place: Place) -> str:
    transport: dict[str, Any] = {}
    if message.content_type == "json":
        transport["content_type"] = "json"
    options: dict[str, Any] = {"routing_key": queue}
    body: Any = message.value
    envelope = _envelope(message)
    if envelope is None:
        transport["body_format"] = "plain"
        if message.content_type == "text":
            options |= {"content_type": "text/plain", "content_encoding": "utf-8"}
    else:
        properties = envelope["properties"]
        options |= {name: value for name, value in properties.items() if name not in _NOT_SENT}
        options |= {
            "headers": envelope["headers"],
            "content_type": envelope.get("content-type"),
            "content_encoding": envelope.get("content-encoding"),
        }
        body = envelope["body"]
        if isinstance(body, str) and properties.get("body_encoding") == "base64":
            body = base64.b64decode(body)
    call = _call("connection.Producer().publish", [_literal(body)], **options)
    if not place.is_local:
        transport["allow_insecure_http"] = True
    more = f", transport_options={transport!r}" if transport else ""
    lines = [
        *place.imports("from kombu import Connection"),
        "import kombu_cfqueues  # makes cfqueues:// known to Kombu",
        "",
        *place.broker(),
        f"with Connection(broker{more}) as connection:",
        textwrap.indent(call, "    "),
        "",
    ]
    return "\n".join(lines)


def _envelope(message: StoredMessage) -> dict[str, Any] | None:
    try:
        value = json.loads(message.body)
    except (ValueError, RecursionError):
        return None
    if (
        isinstance(value, dict)
        and "body" in value
        and isinstance(value.get("headers"), dict)
        and isinstance(value.get("properties"), dict)
    ):
        return dict(value)
    return None


def _call(function: str, arguments: list[str], **named: Any) -> str:
    lines = [*arguments, *(f"{name}={_literal(value)}" for name, value in named.items())]
    return "\n".join([f"{function}(", *(f"    {line}," for line in lines), ")"])


def _literal(value: Any) -> str:
    """Return Python that makes *value*, in as many lines as it needs."""
    if isinstance(value, str | bytes):
        return repr(value)
    text = pprint.pformat(value, width=92, sort_dicts=False)
    return text.replace("\n", "\n    ")
