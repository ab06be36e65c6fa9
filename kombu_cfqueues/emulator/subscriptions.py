"""Event subscriptions: other products of Cloudflare's that would publish into a queue.

They can be made, listed, changed and deleted, as Cloudflare's SDK and wrangler do.  Nothing comes
of them here: there is no R2 and no Images that could have an event.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

from . import fields
from .answers import Answer, Json, Refusal, success
from .call import Call
from .queues import timestamp

_bad: Final = fields.with_code(10026)

_SOURCES: Final = (
    "images",
    "kv",
    "r2",
    "superSlurper",
    "vectorize",
    "workersAi.model",
    "workersBuilds.worker",
    "workers.script",
    "workflows.workflow",
)
_ORDERS: Final = ("created_at", "name", "enabled", "source")
_MOST_PER_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class _Page:
    number: int
    size: int


def list_subscriptions(call: Call) -> Answer:
    """``GET …/event_subscriptions/subscriptions``: a page of them."""
    query = dict(call.query)
    page = _Page(
        _whole(query, "page", 1), _whole(query, "per_page", call.knobs.list_page_size or 1)
    )
    order, direction = query.get("order", "created_at"), query.get("direction", "asc")
    if order not in _ORDERS or direction not in ("asc", "desc"):
        raise _bad("order is created_at, name, enabled or source; direction is asc or desc")
    found = _all(call)
    found.sort(key=lambda one: _sorted_by(one, order), reverse=direction == "desc")
    shown = found[(page.number - 1) * page.size : page.number * page.size]
    info = {
        "page": page.number,
        "per_page": page.size,
        "count": len(shown),
        "total_count": len(found),
        "total_pages": -(-len(found) // page.size),
    }
    return success(shown, result_info=info)


def create_subscription(call: Call) -> Answer:
    """``POST …/event_subscriptions/subscriptions``."""
    sent = fields.parse_object(call.body, _bad)
    now = timestamp(call.service.clock.now_ms())
    made: dict[str, Json] = {
        "id": secrets.token_hex(16),
        "created_at": now,
        "modified_at": now,
        "enabled": True,
        "name": "",
        **_changes(call, sent),
        "source": _source(sent),
    }
    for required in ("destination", "events"):
        if required not in made:
            raise _bad(f"{required} is required")
    _keep(call, made)
    return success(made)


def get_subscription(call: Call) -> Answer:
    """``GET …/event_subscriptions/subscriptions/{subscription_id}``."""
    return success(_one(call))


def update_subscription(call: Call) -> Answer:
    """``PATCH …/event_subscriptions/subscriptions/{subscription_id}``: what is sent."""
    sent = fields.parse_object(call.body, _bad)
    now = timestamp(call.service.clock.now_ms())
    changed = {**_one(call), **_changes(call, sent), "modified_at": now}
    _keep(call, changed)
    return success(changed)


def delete_subscription(call: Call) -> Answer:
    """``DELETE …/event_subscriptions/subscriptions/{subscription_id}``."""
    gone = _one(call)
    with call.service.database.transaction() as sql:
        sql.execute("DELETE FROM subscriptions WHERE id = ?", (gone["id"],))
    return success(gone)


# --- reading what was sent


def _changes(call: Call, sent: dict[str, Json]) -> dict[str, Json]:
    """Check what a subscription may be made of and changed to; return what was sent of it."""
    changes: dict[str, Json] = {}
    if "destination" in sent:
        changes["destination"] = _destination(call, sent["destination"])
    if "events" in sent:
        events = sent["events"]
        if not isinstance(events, list) or not all(isinstance(event, str) for event in events):
            raise _bad("events: Expected array of strings")
        changes["events"] = events
    name = fields.string(sent, "name", _bad)
    enabled = fields.boolean(sent, "enabled", _bad)
    if name is not None:
        changes["name"] = name
    if enabled is not None:
        changes["enabled"] = enabled
    return changes


def _destination(call: Call, sent: Json) -> dict[str, str]:
    if not isinstance(sent, dict) or sent.get("type") != "queues.queue":
        raise _bad('destination is {"type": "queues.queue", "queue_id": …}')
    queue_id = fields.string(sent, "queue_id", _bad)
    if queue_id is None or call.service.queues.get(queue_id) is None:
        raise Refusal(404, 11000, "Queue not found")
    return {"type": "queues.queue", "queue_id": queue_id}


def _source(sent: dict[str, Json]) -> dict[str, Any]:
    source = sent.get("source")
    if not isinstance(source, dict) or source.get("type") not in _SOURCES:
        raise _bad(f"source.type is one of {', '.join(_SOURCES)}")
    if not all(isinstance(value, str) for value in source.values()):
        raise _bad("source: Expected strings")
    return source


def _whole(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1):
        raise _bad(f"{name} is a number from 1")
    return int(text) if name == "page" else min(int(text), _MOST_PER_PAGE)


# --- keeping


def _all(call: Call) -> list[dict[str, Any]]:
    with call.service.database.transaction() as sql:
        rows = sql.execute("SELECT subscription FROM subscriptions ORDER BY rowid").fetchall()
    return [json.loads(row[0]) for row in rows]


def _one(call: Call) -> dict[str, Any]:
    with call.service.database.transaction() as sql:
        row = sql.execute(
            "SELECT subscription FROM subscriptions WHERE id = ?", (call.found.subscription_id,)
        ).fetchone()
    if row is None:
        raise Refusal(404, 7003, "No subscription of that id")
    found: dict[str, Any] = json.loads(row[0])
    return found


def _keep(call: Call, subscription: dict[str, Any]) -> None:
    with call.service.database.transaction() as sql:
        sql.execute(
            "INSERT INTO subscriptions VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET subscription = excluded.subscription",
            (subscription["id"], json.dumps(subscription)),
        )


def _sorted_by(subscription: dict[str, Any], order: str) -> str:
    return str(subscription["source"]["type"] if order == "source" else subscription[order])
