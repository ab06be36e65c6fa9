"""A small shop that is busy: what the page is looked at with."""

from __future__ import annotations

import json
import random
import threading
import time
from typing import Any

import requests

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator.contents import celery_task

PULL = {"type": "http_pull"}


def messages(page: Any) -> Any:
    """The rows of the page that show messages."""
    return page.locator("#message-rows > li")


class Shop:
    """Queues of a shop, with messages of each kind and state, and traffic while it is open."""

    def __init__(self, emulator: Emulator, agent: str = "kombu-cfqueues/0.1") -> None:
        self.emulator = emulator
        self._chance = random.Random(1)
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {emulator.token}"
        self._session.headers["User-Agent"] = agent

    def fill(self) -> None:
        """Make the queues and what waits in them."""
        emulator = self.emulator
        emulator.create_queue(
            "emails", consumer={**PULL, "dead_letter_queue": "emails-dead", "settings": {}}
        )
        emulator.create_queue("emails-dead", consumer=PULL)
        emulator.create_queue("thumbnails", consumer={**PULL, "settings": {"max_retries": 10}})
        emulator.create_queue("orders", consumer={"type": "worker", "script_name": "order-worker"})
        emulator.create_queue("webhooks", consumer=PULL, delivery_paused=True)
        for n in range(2):
            self.push("emails", celery_task("shop.tasks.send_receipt", [990 + n], {"locale": "xx"}))
        self._bury()
        for n in range(14):
            task = self._chance.choice(["send_receipt", "send_reset_link", "send_newsletter"])
            body = celery_task(
                f"shop.tasks.{task}", [1040 + n], {"locale": self._chance.choice(["de", "en"])}
            )
            self.push("emails", body, delay_seconds=900 if n % 6 == 5 else 0)
        for n in range(40):
            value = {"image": f"products/{n:04}.jpg", "sizes": [160, 640, 1280]}
            self.push("thumbnails", value)
        for n in range(7):
            self.push("orders", {"order": 7001 + n, "total": "19.90", "currency": "EUR"})
        self.push("orders", "Ping from the warehouse: scanner 4 is back online.")
        for n in range(12):
            self.push("webhooks", {"event": "order.paid", "order": 7001 + n})
        self.pull("emails", 3)
        self.pull("thumbnails", 5)

    def open_for(self, seconds: float) -> None:
        """Publish, pull and settle for a while, in a thread of its own; wait until it is over."""
        traffic = threading.Thread(target=self._trade, args=(time.monotonic() + seconds,))
        traffic.start()
        traffic.join()

    def push(self, queue: str, body: Any, **fields: Any) -> None:
        """Publish one message."""
        kind = "text" if isinstance(body, str) else "json"
        self.call(queue, "", {"body": body, "content_type": kind, **fields})

    def pull(self, queue: str, size: int) -> list[str]:
        """Pull messages; return their leases."""
        answer = self.call(queue, "/pull", {"batch_size": size})
        return [message["lease_id"] for message in answer["result"]["messages"]]

    def call(self, queue: str, path: str, body: Any) -> Any:
        """Call a message route."""
        url = f"{self.emulator.base_url}/accounts/{self.emulator.account_id}/queues"
        url += f"/{self.emulator.queue_id(queue)}/messages{path}"
        return self._session.post(url, data=json.dumps(body), timeout=10).json()

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    def _bury(self) -> None:
        """Have two messages of ``emails`` run out of retries."""
        for _ in range(4):
            leases = self.pull("emails", 2)
            self.call("emails", "/ack", {"retries": [{"lease_id": lease} for lease in leases]})

    def _trade(self, until: float) -> None:
        n = 0
        while time.monotonic() < until:
            n += 1
            body = celery_task("shop.tasks.send_receipt", [2000 + n], {"locale": "en"})
            self.push("emails", body)
            if n % 11 == 0:
                self.emulator.faults.error("batch", status=503)
                self.call("emails", "/batch", {"messages": []})
            if n % 2:
                self.push("thumbnails", {"image": f"products/{1000 + n}.jpg", "sizes": [640]})
            leases = self.pull("emails", self._chance.randint(0, 2) or 1)
            # One in four is still at work when the picture is taken.
            done = [lease for lease in leases if self._chance.random() < 0.75]
            self.call("emails", "/ack", {"acks": [{"lease_id": lease} for lease in done]})
            if n % 9 == 0:
                self.call("orders", "/pull", {})  # a Worker's queue: 405
            time.sleep(self._chance.uniform(0.05, 0.5))
