"""A client that knows nothing but HTTP."""

from __future__ import annotations

from typing import Any

import requests

from kombu_cfqueues.emulator import Emulator


class Api:
    """Calls the emulator as any HTTP client would."""

    def __init__(self, emulator: Emulator, token: str | None = None) -> None:
        self.emulator = emulator
        self.queues_url = f"{emulator.base_url}/accounts/{emulator.account_id}/queues"
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {token or emulator.token}"

    def call(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Call a path below ``/queues``; ``{jobs}`` in it stands for the id of that queue."""
        ids = {name: self.emulator.queue_id(name) for name in self.emulator.queue_names()}
        kwargs.setdefault("timeout", 10)
        kwargs.setdefault("allow_redirects", False)
        return self.session.request(method, self.queues_url + path.format_map(ids), **kwargs)

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        return self.call("GET", path, **kwargs)

    def post(self, path: str, body: Any = None, **kwargs: Any) -> requests.Response:
        return self.call("POST", path, json={} if body is None else body, **kwargs)

    def push(self, body: Any, queue: str = "jobs", **fields: Any) -> requests.Response:
        if isinstance(body, str):
            fields.setdefault("content_type", "text")
        return self.post(f"/{{{queue}}}/messages", {"body": body, **fields})

    def batch(self, *messages: Any, **fields: Any) -> requests.Response:
        return self.post("/{jobs}/messages/batch", {"messages": list(messages), **fields})

    def pull(self, queue: str = "jobs", **fields: Any) -> list[dict[str, Any]]:
        answer = self.post(f"/{{{queue}}}/messages/pull", fields)
        assert answer.status_code == 200, answer.text
        messages: list[dict[str, Any]] = answer.json()["result"]["messages"]
        return messages

    def ack(self, *lease_ids: str) -> dict[str, Any]:
        return self.settle(acks=[{"lease_id": lease_id} for lease_id in lease_ids])

    def retry(self, *lease_ids: str, **fields: Any) -> dict[str, Any]:
        return self.settle(retries=[{"lease_id": lease_id, **fields} for lease_id in lease_ids])

    def settle(self, **fields: Any) -> dict[str, Any]:
        answer = self.post("/{jobs}/messages/ack", fields)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()["result"]
        return result

    def metrics(self, queue: str = "jobs") -> dict[str, Any]:
        result: dict[str, Any] = self.get(f"/{{{queue}}}/metrics").json()["result"]
        return result


def errors_of(answer: requests.Response) -> tuple[int, list[int]]:
    """Return the status and the codes of an answer that has to be a refusal."""
    envelope = answer.json()
    assert envelope["success"] is False
    assert envelope["result"] is None
    assert envelope["messages"] == []
    return answer.status_code, [error["code"] for error in envelope["errors"]]
