"""The short form of the chaos; ``make chaos`` is the long one.  And: the verdict can say no."""

from __future__ import annotations

import os
import random

import pytest

from . import ledger
from .ledger import Line
from .scene import FEW, LEASE_SECONDS, Plan, Scene
from .verdict import judge

MESSAGES = 900
EVENTS = {
    "kill_server": 1, "kill_publisher": 2, "kill_worker": 1, "kill_child": 1, "advance_clock": 1,
    "cut_network": 1,
}  # fmt: skip


@pytest.mark.long
def test_whoever_is_killed_and_whatever_fails_no_accepted_message_is_lost(tmp_path):
    """``CFQUEUES_CHAOS_SEED`` repeats the orders of a run, which are printed if it fails."""
    seed = int(os.environ.get("CFQUEUES_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"CFQUEUES_CHAOS_SEED={seed}")
    Scene(tmp_path, seed, Plan(MESSAGES, 150.0, FEW, EVENTS)).run()
    verdict = judge(ledger.read(tmp_path / "ledger"), lease_seconds=LEASE_SECONDS)
    print(verdict)
    assert verdict.lost == []
    assert verdict.ghosts == []
    assert verdict.unexplained == []
    # All of it has happened: a chaos in which nothing goes wrong shows nothing.
    assert verdict.told["yes"] > MESSAGES / 2
    struck = sum(n for what, n in verdict.faults.items() if what.startswith("fault"))
    assert struck > 0.05 * verdict.faults["requests"]
    assert verdict.faults["emulator killed"] == 1
    assert verdict.faults["prefork killed"] == 1


# -- the verdict


def told(outcome: str, name: str = "m-a-1-m") -> list[Line]:
    return [
        Line("lanes.1", "try", 1.0, [name]),
        Line("lanes.1", "told", 2.0, [name, outcome, 0.1, ""]),
    ]


def post(number: int, outcome: str | None, *, by: str = "lanes.1") -> list[Line]:
    made = [Line(by, "post", 1.0 + number / 10, [number, ["m-a-1-m"]])]
    return made + ([Line(by, "answer", 1.05 + number / 10, [number, outcome])] if outcome else [])


def pull(
    at: float, *, asked: float | None = None, server_id: str = "x", by: str = "threads.1"
) -> Line:
    return Line(by, "pulled", at, [asked or at, [["m-a-1-m", server_id, f"lease {at}"]]])


RAN = Line("threads.1", "ran", 9.0, ["m-a-1-m", 1.0])
TWICE = [*told("yes"), RAN, RAN]


def judged(*lines: Line):
    return judge(lines, lease_seconds=60)


def test_an_accepted_message_that_never_ran_is_lost():
    assert judged(*told("yes")).lost == ["m-a-1-m"]
    assert judged(*told("yes"), RAN).lost == []
    assert judged(*told("unknown")).lost == []
    assert judged(Line("lanes.1", "try", 1.0, ["m-a-1-m"])).lost == []


def test_a_message_that_surely_was_not_accepted_must_not_run():
    assert judged(*told("no"), RAN).ghosts == ["m-a-1-m"]
    assert judged(*told("unknown"), RAN).ghosts == []


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ([*post(1, "unknown"), *post(2, "yes")], "uncertain"),
        ([*post(1, "yes"), *post(2, "yes"), Line("director", "killed", 8.0, ["lanes.1"])],
         "poster killed"),
        ([*post(1, None), *post(2, "yes", by="b.1"), Line("director", "killed", 8.0, ["lanes.1"])],
         "poster killed"),
        ([*post(1, None), *post(2, "yes", by="b.1"), Line("lanes.1", "done", 1.5, [])],
         "poster ended"),
        ([pull(3), pull(64)], "lease ended"),
        ([pull(3), Line("director", "advanced", 3.5, [3.4]), pull(4)], "lease ended"),
        ([pull(3.6, asked=3), Line("director", "jumped", 3.5, [3.4]), pull(4)], "lease ended"),
        ([pull(3), Line("director", "killed", 3.5, ["threads.1"]), pull(50)], "worker killed"),
        ([pull(3), Line("threads.1", "settle", 3.5, [1, [], ["lease 3"]]),
          Line("prefork.1", "child killed", 3.4, []), pull(4)], "given back"),
        ([pull(3), pull(4), Line("director", "fault", 1.0, ["duplicate"])], "server"),
    ],
)  # fmt: skip
def test_what_ran_twice_is_explained_by_what_went_wrong(lines, cause):
    verdict = judged(*TWICE, *lines)
    assert verdict.twice == 1
    assert verdict.unexplained == []
    assert verdict.causes == {cause: 1}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [*post(1, "yes")],
        [*post(1, "yes"), *post(2, "yes")],
        [*post(1, "no"), *post(2, "yes")],
        [pull(3)],
        [pull(3), pull(4)],
    ],
)
def test_what_ran_twice_for_no_reason_is_not(lines):
    assert judged(*TWICE, *lines).unexplained


def test_how_many_posts_had_no_answer_and_what_that_repeated():
    lines = [*post(1, "unknown"), *post(2, "yes"), *post(3, "no"), *post(4, None)]
    verdict = judged(*TWICE, *lines)
    assert (verdict.posts, verdict.unanswered, verdict.in_unanswered) == (4, 1, 1)
    assert (verdict.share_repeated, verdict.share_otherwise) == (1, 0)
    assert judged(*TWICE, pull(3), pull(64)).share_otherwise == 1
