"""What the ledgers of a run prove: what was lost, what ran although it was surely refused, and why
what ran twice did so.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from .ledger import Line

#: Why a message ran once more than it should have.
CAUSES = {
    "uncertain": "posted again, because the answer to the first post never came",
    "poster killed": "posted again, because its poster was killed before it could note the answer",
    "poster ended": "posted again, because its poster ended, which waits for few seconds only",
    "worker killed": "delivered again, because its worker was killed with it",
    "given back": "delivered again, because a worker gave it back whose child was killed",
    "lease ended": "delivered again, because its lease ended: the clock was advanced",
    "server": "delivered twice by the server, as it was ordered to",
}


@dataclass
class Post:
    process: str
    at: float
    outcome: str = ""  # "" until the answer: its process was killed in between, or ended


@dataclass
class Pull:
    process: str
    asked: float  # the lease began between the two
    at: float
    server_id: str
    lease: str


@dataclass
class Message:
    """What is known of one message."""

    told: str = ""  # "" for a publisher that was killed before it was told
    posts: list[Post] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    runs: int = 0


@dataclass
class Verdict:
    """What a run came to.

    Attributes:
        told: Messages by what their publisher was told: yes, no, unknown; "": it was killed first.
        lost: Accepted, and never run.
        ghosts: Their publisher was told that they surely were not accepted, and they ran.
        ran: Different messages that ran.
        twice: Runs above one for each message.
        causes: Of these runs, by `CAUSES`.
        posts: Requests that published.
        unanswered: Those of them whose answer never came, or did not say what became of them.
        in_unanswered: Messages in them.
        unexplained: Messages that ran more often than anything explains.
        stories: What is known of each of them.
        faults: What was ordered and done, by kind.
        growth: MiB that each long-lived process grew by, and its MiB at the end.
    """

    told: Counter[str]
    lost: list[str]
    ghosts: list[str]
    ran: int
    twice: int
    causes: Counter[str]
    posts: int
    unanswered: int
    in_unanswered: int
    unexplained: list[str]
    stories: list[str]
    faults: Counter[str]
    errors: Counter[str]
    growth: dict[str, tuple[float, float]]

    @property
    def share_twice(self) -> float:
        return self.twice / max(1, self.ran)

    @property
    def share_unanswered(self) -> float:
        """Of the posts."""
        return self.unanswered / max(1, self.posts)

    @property
    def share_repeated(self) -> float:
        """How many of the messages in unanswered posts ran once more for that."""
        return self.causes["uncertain"] / max(1, self.in_unanswered)

    @property
    def share_otherwise(self) -> float:
        """Runs above one for each message that have other causes, of the messages."""
        return (self.twice - self.causes["uncertain"]) / max(1, self.ran)

    def __str__(self) -> str:
        told = ", ".join(f"{count} {what or 'killed first'}" for what, count in self.told.items())
        lines = [
            f"told: {told}",
            f"ran: {self.ran} messages",
            f"lost: {len(self.lost)}; ran although surely refused: {len(self.ghosts)}",
            f"posts: {self.posts}, {self.unanswered} unanswered ({self.share_unanswered:.1%})",
            f"in these: {self.in_unanswered} messages, {self.share_repeated:.1%} ran once more",
            f"twice: {self.twice} ({self.share_twice:.2%}), {len(self.unexplained)} unexplained",
            *(f"  {count} {CAUSES[cause]}" for cause, count in self.causes.most_common()),
            "what happened: " + ", ".join(f"{n} {kind}" for kind, n in sorted(self.faults.items())),
            "errors: " + ", ".join(f"{n} {kind}" for kind, n in self.errors.most_common()),
            *(
                f"memory of {name}: {grown:+.1f} MiB, to {last:.0f}"
                for name, (grown, last) in sorted(self.growth.items())
            ),
            *self.stories,
        ]
        return "\n".join(lines)


def judge(lines: Iterable[Line], *, lease_seconds: float) -> Verdict:
    """Judge a run by all that was written down in it."""
    book = _Book(lease_seconds)
    for line in lines:
        enter = getattr(book, f"_{line.what.replace(' ', '_')}", None)
        if enter is not None:
            enter(line.process, line.at, *line.rest)
    return book.verdict()


class _Book:
    """All ledgers in one; it has a method for each kind of line."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._messages: dict[str, Message] = defaultdict(Message)
        self._calls: dict[tuple[str, int], list[Post]] = {}  # by process and number
        self._given_back: dict[str, float] = {}  # by lease: when
        self._deaths: dict[str, float] = {}  # by process: when it was killed
        self._children_killed = False
        self._ended: set[str] = set()  # publishers that had nothing more to publish
        self._jumps: list[tuple[float, float]] = []  # of the server's clock: some time between
        self._faults: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._samples: dict[str, list[tuple[float, float]]] = defaultdict(list)

    # -- lines of publishers

    def _try(self, process: str, at: float, name: str) -> None:
        self._messages[name].told = ""

    def _told(
        self, process: str, at: float, name: str, told: str, seconds: float, error: str
    ) -> None:
        self._messages[name].told = told
        self._errors.update([error] if error else [])

    def _done(self, process: str, at: float) -> None:
        self._ended.add(process)

    def _post(self, process: str, at: float, number: int, names: list[str]) -> None:
        self._calls[process, number] = [Post(process, at) for _ in names]
        for name, post in zip(names, self._calls[process, number], strict=True):
            self._messages[name].posts.append(post)

    def _answer(self, process: str, at: float, number: int, outcome: str) -> None:
        for post in self._calls.get((process, number), []):
            post.outcome = outcome

    # -- lines of workers

    def _pulled(
        self, process: str, at: float, asked: float, found: list[tuple[str | None, str, str]]
    ) -> None:
        for name, server_id, lease in found:
            if name is not None:
                self._messages[name].pulls.append(Pull(process, asked, at, server_id, lease))

    def _settle(
        self, process: str, at: float, number: int, acks: list[str], retries: list[str]
    ) -> None:
        self._given_back.update(dict.fromkeys(retries, at))

    def _ran(self, process: str, at: float, name: str, sent: float) -> None:
        self._messages[name].runs += 1

    def _child_killed(self, process: str, at: float) -> None:
        self._children_killed = True
        self._faults["child of a pool killed"] += 1

    # -- lines of the director and the network

    def _killed(self, process: str, at: float, name: str) -> None:
        self._deaths[name] = at
        self._faults[f"{name.partition('.')[0]} killed"] += 1

    def _advanced(self, process: str, at: float, began: float) -> None:
        self._jumped(process, at, began)
        self._faults["clock advanced"] += 1

    def _jumped(self, process: str, at: float, began: float) -> None:
        self._jumps.append((began, at))

    def _fault(self, process: str, at: float, kind: str) -> None:
        self._faults[f"fault: {kind}"] += 1

    def _cut(self, process: str, at: float, kind: str) -> None:
        self._faults[f"cut: {kind}"] += 1

    def _requests(self, process: str, at: float, count: int) -> None:
        self._faults["requests"] = count

    def _sample(
        self, process: str, at: float, name: str, mib: float, files: int, threads: int
    ) -> None:
        self._samples[name].append((at, mib))

    # -- what they prove

    def verdict(self) -> Verdict:
        causes: Counter[str] = Counter()
        unexplained = []
        for name, message in self._messages.items():
            more = message.runs - 1
            found = self._causes_of(message) if more > 0 else []
            causes.update(found[:more])
            if len(found) < more:
                unexplained.append(name)
        if causes["server"] and not self._faults["fault: duplicate"]:
            unexplained.append(f"{causes['server']} times by the server, without an order")
        messages = self._messages.items()
        unanswered = [posts for posts in self._calls.values() if posts[0].outcome == "unknown"]
        return Verdict(
            told=Counter(message.told for _, message in messages),
            lost=[name for name, m in messages if m.told == "yes" and not m.runs],
            ghosts=[name for name, m in messages if m.told == "no" and m.runs],
            ran=sum(1 for _, message in messages if message.runs),
            twice=sum(message.runs - 1 for _, message in messages if message.runs),
            causes=causes,
            posts=len(self._calls),
            unanswered=len(unanswered),
            in_unanswered=sum(map(len, unanswered)),
            unexplained=unexplained,
            stories=[f"{name}: {self._messages.get(name)}" for name in unexplained[:10]],
            faults=self._faults,
            errors=self._errors,
            growth=_growth(self._samples),
        )

    def _causes_of(self, message: Message) -> list[str]:
        """Why there was one delivery more than one, as often as there was."""
        found = []
        for post in sorted(message.posts, key=lambda post: post.at)[:-1]:
            if post.outcome == "unknown":
                found.append("uncertain")
            elif post.outcome != "no" and post.process in self._deaths:
                found.append("poster killed")
            elif not post.outcome and post.process in self._ended:
                found.append("poster ended")
        pulls: dict[str, list[Pull]] = defaultdict(list)
        for pull in sorted(message.pulls, key=lambda pull: pull.at):
            pulls[pull.server_id].append(pull)
        return found + [
            self._why_again(before, after)
            for of_one in pulls.values()
            for before, after in itertools.pairwise(of_one)
        ]

    def _why_again(self, before: Pull, after: Pull) -> str:
        """Why the server delivered again what it had delivered."""
        if self._children_killed and self._given_back.get(before.lease, after.at) < after.at:
            return "given back"
        if before.at < self._deaths.get(before.process, 0.0) < after.at:
            return "worker killed"
        if after.at - before.asked > self._lease_seconds or any(
            before.asked < ended and began < after.at for began, ended in self._jumps
        ):
            return "lease ended"
        return "server"


def _growth(samples: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """How much each process that was there for most of the time grew, from its second fifth on."""
    if not samples:
        return {}
    longest = max(figures[-1][0] - figures[0][0] for figures in samples.values())
    grown = {}
    for name, figures in samples.items():
        if len(figures) < 10 or figures[-1][0] - figures[0][0] < 0.6 * longest:
            continue
        memory = [mib for _, mib in figures]
        fifth = len(memory) // 5
        early, late = memory[fifth : 2 * fifth], memory[-fifth:]
        grown[name] = statistics.median(late) - statistics.median(early), late[-1]
    return grown
