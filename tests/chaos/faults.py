"""What goes wrong at the emulator: every way of failing that it knows, at random."""

from __future__ import annotations

import random
from typing import Any

#: Whatever strikes these, somebody tries again.
ANY: list[str] = []

#: What cannot pass is told to publishers, and ends a worker that pulls, on purpose: a token that is
#: revoked and a queue that is gone are for people to see.  So answers of that kind go to these.
PUBLISHING_AND_SETTLING = ["push", "batch", "ack"]


def some_fault(chance: random.Random) -> dict[str, Any]:
    """An order for `POST /_emulator/faults`, to strike once."""
    weights, makers = zip(*_KINDS, strict=True)
    (maker,) = chance.choices(makers, weights)
    return {"times": 1, **maker(chance)}


def _error(chance: random.Random) -> dict[str, Any]:
    status, code = chance.choice(
        [(500, 15000), (502, None), (503, None), (504, None), (500, 10201)]
    )
    after = status != 503 and _seldom(chance)  # 503 says that nothing was done
    return {"kind": "error", "routes": ANY, "status": status, "code": code, "after_effect": after}


def _too_many(chance: random.Random) -> dict[str, Any]:
    # With how long to wait: without, a client must assume five minutes.
    code, seconds = chance.choice([(971, 1), (10250, 1), (10251, 1), (10252, 1)])
    return {
        "kind": "error", "routes": ["push", "batch", "pull"], "status": 429, "code": code,
        "retry_after": seconds,
    }  # fmt: skip


def _refusal(chance: random.Random) -> dict[str, Any]:
    status, code = chance.choice(
        [(400, 10203), (401, 10000), (403, 10000), (404, 10104), (409, None), (413, 10204)]
    )
    return {"kind": "error", "routes": PUBLISHING_AND_SETTLING, "status": status, "code": code}


def _redirect(chance: random.Random) -> dict[str, Any]:
    return {
        "kind": "redirect", "routes": PUBLISHING_AND_SETTLING, "location": "https://127.0.0.1:9/",
    }  # fmt: skip


def _unreadable(kind: str):
    def make(chance: random.Random) -> dict[str, Any]:
        return {"kind": kind, "routes": ANY, "after_effect": _seldom(chance)}

    return make


def _simple(kind: str, **arguments: Any):
    return lambda chance: {"kind": kind, "routes": ANY, **arguments}


def _seldom(chance: random.Random) -> bool:
    """Whether it strikes after the effect, so that the message is written all the same."""
    return chance.random() < 0.1


_KINDS = [
    (3, _error),
    (1, _too_many),
    (2, _refusal),
    (1, _redirect),
    (1, _unreadable("unsuccessful")),
    (2, _unreadable("html_page")),
    (1, _unreadable("empty_body")),
    (1, _unreadable("broken_json")),
    (0.5, _simple("null_result")),
    (0.5, _simple("no_result")),
    (2, _simple("reset")),
    (1, _simple("lost_response")),
    (0.3, _simple("hang")),
    (1, _simple("latency", seconds=[0.1, 1.0])),
    (0.1, lambda chance: {"kind": "duplicate"}),
    (1, lambda chance: {"kind": "short_batch", "most": chance.randrange(3)}),
    (1, lambda chance: {"kind": "late", "seconds": chance.uniform(0, 5)}),
]
