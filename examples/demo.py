"""From Python to Cloudflare Queues and back, on one machine and without an account.

An emulated Cloudflare Queues is started.  A plain Kombu producer and Celery tasks publish to it.
A reader that knows neither Kombu nor Celery pulls the messages over HTTP.  Exit status 0 says that
every message arrived as it was sent, and none before its time.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, NamedTuple

import requests
from celery import Celery
from kombu import Connection

import kombu_cfqueues  # noqa: F401  makes cfqueues:// known to Kombu
from kombu_cfqueues.emulator import Emulator

COUNTDOWN = 3  # seconds
PATIENCE = 20  # seconds after which a message is given up

app = Celery("demo")
app.conf.task_default_queue = "reports"
app.conf.task_ignore_result = True


@app.task(name="reports.render")
def render(month: str, pages: int) -> None:
    """Here it is only published; a worker would run it."""


@app.task(name="reports.remind")
def remind(address: str) -> None:
    """Here it is only published, with a countdown."""


class Message(NamedTuple):
    """A message, as its publisher or its reader sees it."""

    queue: str
    task: str | None
    content: Any  # of a task: its arguments

    def __str__(self) -> str:
        if self.task is None:
            return json.dumps(self.content, ensure_ascii=False)
        args, kwargs = self.content
        words = [*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())]
        return f"{self.task}({', '.join(words)})"


def publish(broker_url: str) -> dict[str, Message]:
    """Publish as an application would.  Each call returns once Cloudflare has the message."""
    mail = {"to": "ada@example.com", "subject": "Grüße"}
    with Connection(broker_url) as connection:
        connection.Producer().publish(mail, routing_key="emails")

    app.conf.broker_url = broker_url
    render.delay("November", pages=12)
    remind.apply_async(["ada@example.com"], countdown=COUNTDOWN)

    return {
        "Kombu, publish()": Message("emails", None, mail),
        "Celery, delay()": Message("reports", "reports.render", [["November"], {"pages": 12}]),
        f"Celery, countdown={COUNTDOWN}": Message(
            "reports", "reports.remind", [["ada@example.com"], {}]
        ),
    }


class Reader:
    """Cloudflare's HTTP pull by `requests` alone, as a program in any language would do it."""

    def __init__(self, base_url: str, account_id: str, token: str) -> None:
        self.queues_url = f"{base_url}/accounts/{account_id}/queues"
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy and no ~/.netrc between here and here
        self.session.headers["Authorization"] = f"Bearer {token}"

    def call(self, method: str, path: str = "", body: Any = None) -> Any:
        """The result of one call of the API."""
        answer = self.session.request(method, self.queues_url + path, json=body, timeout=10)
        answer.raise_for_status()
        return answer.json()["result"]

    def open_queues(self) -> dict[str, str]:
        """Let every queue be pulled; queue name -> queue id."""
        queues = {queue["queue_name"]: queue["queue_id"] for queue in self.call("GET")}
        for queue_id in queues.values():
            self.call("POST", f"/{queue_id}/consumers", {"type": "http_pull"})
        return queues

    def take(self, queue_id: str) -> list[dict[str, Any]]:
        """Pull the messages that are due, and acknowledge them."""
        pulled = self.call("POST", f"/{queue_id}/messages/pull", {"batch_size": 10})["messages"]
        acks = [{"lease_id": message["lease_id"]} for message in pulled]
        if acks:
            self.call("POST", f"/{queue_id}/messages/ack", {"acks": acks})
        return pulled


def understand(queue: str, raw: dict[str, Any]) -> Message:
    """A pulled message: Kombu's envelope is JSON, and so is the message or the task in it."""
    envelope = json.loads(raw["body"])
    content, task = json.loads(envelope["body"]), envelope["headers"].get("task")
    # A task is [args, kwargs, what Celery adds for callbacks and chains].
    return Message(queue, task, content if task is None else content[:2])


def show(*cells: str) -> None:
    """A line of a table."""
    print(" ", *(f"{cell:<20}" for cell in cells[:-1]), cells[-1], flush=True)


def main() -> int:
    """Publish, read back, compare; the exit status."""
    with Emulator() as emulator:
        print(f"Cloudflare Queues, emulated at {emulator.base_url}\n")

        show("PUBLISHED BY", "TO QUEUE", "MESSAGE")
        started = time.monotonic()
        sent = publish(emulator.broker_url)
        for publisher, message in sent.items():
            show(publisher, message.queue, str(message))

        print("\nNow a reader without Kombu and Celery pulls them over HTTP.\n")
        show("ARRIVED AFTER", "FROM QUEUE", "MESSAGE")
        reader = Reader(emulator.base_url, emulator.account_id, emulator.token)
        queues = reader.open_queues()
        missing, wrong = list(sent.values()), 0
        while missing and time.monotonic() - started < PATIENCE:
            for queue, queue_id in queues.items():
                for raw in reader.take(queue_id):
                    after, message = time.monotonic() - started, understand(queue, raw)
                    delay = raw["metadata"].get("CF-msg-delay-secs")
                    show(
                        f"{after:.1f} s" + (f" (delay {delay} s)" if delay else ""),
                        queue,
                        str(message),
                    )
                    early = message.task == "reports.remind" and after < COUNTDOWN
                    if message in missing and not early:
                        missing.remove(message)
                    else:
                        wrong += 1
            time.sleep(0.1)

    print(f"\n{len(sent) - len(missing)} of {len(sent)} messages arrived as they were sent.")
    return 1 if missing or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
