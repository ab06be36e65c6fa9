"""What the ledgers of a run prove: nothing lost, nothing that was refused ran, and why what ran twice
did so."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from .ledger import Line

#: Why a message ran once more than it should have.
CAUSES = {
    "uncertain": "posted again, because the answer to the first post never came",
    "poster killed": "posted again, because its poster was killed before it could note the answer",
    "worker killed": "delivered again, because its worker was killed with it",
    "given back": "delivered again, because a worker gave it back whose child was killed",
    "lease ended": "delivered again, because its lease ended: the clock was advanced",
    "server": "delivered twice by the server, as it was ordered to",
}


@dataclass
class Post:
    process: str
    at: float
    outcome: str = ""  # "" until the answer: its process was killed in between


@dataclass
class Pull:
    process: str
    at: float
    server_id: str
    lease: str


@dataclass
class Settling:
    at: float
    gives_back: bool
    outcome: str = ""


@dataclass
class Message:
    """What is known of one message."""

    told: str = ""  # "" for a publisher that was killed before it was told
    error: str = ""
    posts: list[Post] = field(default_factory=list)
    pulls: list[Pull] = field(default_factory=list)
    runs: int = 0


@dataclass
class Verdict:
    """What a run came to.

    Attributes:
        told: Messages by what their publisher was told: yes, no, unknown; "" if it was killed first.
        lost: Accepted, and never run.
        ghosts: Their publisher was told that they surely were not accepted, and they ran.
        ran: Different messages that ran.
        twice: Runs above one for each message.
        causes: Of these runs, by `CAUSES`.
        unexplained: Messages that ran more often than anything explains.
        faults: What was ordered and done, by kind.
        growth: MiB that each long-lived process grew by, and its MiB at the end.
    """

    told: Counter[str]
    lost: list[str]
    ghosts: list[str]
    ran: int
    twice: int
    causes: Counter[str]
    unexplained: list[str]
    faults: Counter[str]
    errors: Counter[str]
    growth: dict[str, tuple[float, float]]

    @property
    def share_twice(self) -> float:
        return self.twice / max(1, self.ran)

    def __str__(self) -> str:
        told = ", ".join(f"{count} {what or 'killed first'}" for what, count in self.told.items())
        lines = [
            f"told: {told}",
            f"ran: {self.ran} messages; {len(self.lost)} lost, {len(self.ghosts)} ran although "
            "their publisher was told that they surely will not",
            f"twice: {self.twice} ({self.share_twice:.2%}), {len(self.unexplained)} unexplained",
            *(f"  {count} {CAUSES[cause]}" for cause, count in self.causes.most_common()),
            "what happened: " + ", ".join(f"{n} {kind}" for kind, n in sorted(self.faults.items())),
            "errors: " + ", ".join(f"{n} {kind}" for kind, n in self.errors.most_common()),
            *(
                f"memory of {name}: {grown:+.1f} MiB, to {last:.0f}"
                for name, (grown, last) in sorted(self.growth.items())
            ),
        ]
        return "\n".join(lines)


def judge(lines: Iterable[Line], *, lease_seconds: float) -> Verdict:
    """Judge a run by all that was written down in it."""
    messages: dict[str, Message] = defaultdict(Message)
    posts: dict[tuple[str, int], list[Post]] = {}
    settlings: dict[str, list[Settling]] = defaultdict(list)  # by lease
    settling: dict[tuple[str, int], list[Settling]] = {}
    killed: dict[str, float] = {}
    children_killed: list[float] = []
    advanced: list[float] = []
    faults: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for process, what, at, rest in lines:
        if what == "try":
            messages[rest[0]].told = ""
        elif what == "told":
            name, told, _seconds, error = rest
            messages[name].told, messages[name].error = told, error
            errors.update([error] if error else [])
        elif what == "post":
            number, names = rest
            posts[process, number] = [Post(process, at) for _ in names]
            for name, post in zip(names, posts[process, number], strict=True):
                messages[name].posts.append(post)
        elif what == "settle":
            number, acks, retries = rest
            settling[process, number] = made = []
            for leases, gives_back in ((acks, False), (retries, True)):
                for lease in leases:
                    made.append(Settling(at, gives_back))
                    settlings[lease].append(made[-1])
        elif what == "answer":
            number, outcome = rest
            for one in [*posts.get((process, number), []), *settling.get((process, number), [])]:
                one.outcome = outcome
        elif what == "pulled":
            for name, server_id, lease in rest[0]:
                if name is not None:
                    messages[name].pulls.append(Pull(process, at, server_id, lease))
        elif what == "ran":
            messages[rest[0]].runs += 1
        elif what == "killed":
            killed[rest[0]] = at
            faults[f"{rest[0].partition('.')[0]} killed"] += 1
        elif what == "child killed":
            children_killed.append(at)
            faults["child of a pool killed"] += 1
        elif what == "advanced":
            advanced.append(at)
            faults["clock advanced"] += 1
        elif what in ("fault", "cut"):
            faults[f"{what}: {rest[0]}"] += 1
        elif what == "sample":
            samples[rest[0]].append((at, rest[1]))
        elif what == "requests":
            faults["requests"] = rest[0]

    def causes_of(message: Message) -> list[str]:
        found = []
        message.posts.sort(key=lambda post: post.at)
        for post in message.posts[:-1]:
            if post.outcome == "unknown":
                found.append("uncertain")
            elif post.outcome != "no" and post.process in killed:
                found.append("poster killed")
        by_id: dict[str, list[Pull]] = defaultdict(list)
        for pull in sorted(message.pulls, key=lambda pull: pull.at):
            by_id[pull.server_id].append(pull)
        for pulls in by_id.values():
            for before, after in zip(pulls, pulls[1:], strict=False):
                found.append(_cause_of_return(before, after))
        return found

    def _cause_of_return(before: Pull, after: Pull) -> str:
        said = [one for one in settlings[before.lease] if one.at < after.at]
        if any(one.gives_back for one in said) and children_killed:
            return "given back"
        if before.at < killed.get(before.process, 0.0) < after.at + lease_seconds:
            return "worker killed"
        if after.at - before.at > lease_seconds or any(
            before.at < moment < after.at for moment in advanced
        ):
            return "lease ended"
        return "server"

    causes: Counter[str] = Counter()
    unexplained = []
    for name, message in messages.items():
        if message.runs > 1:
            found = causes_of(message)
            causes.update(found[: message.runs - 1])
            if len(found) < message.runs - 1:
                unexplained.append(name)
    if not faults["fault: duplicate"] and causes["server"]:
        unexplained.append(f"{causes['server']} times by the server, which had no such order")
    return Verdict(
        told=Counter(message.told for message in messages.values()),
        lost=[name for name, m in messages.items() if m.told == "yes" and not m.runs],
        ghosts=[name for name, m in messages.items() if m.told == "no" and m.runs],
        ran=sum(1 for message in messages.values() if message.runs),
        twice=sum(message.runs - 1 for message in messages.values() if message.runs),
        causes=causes,
        unexplained=unexplained,
        faults=faults,
        errors=errors,
        growth=_growth(samples),
    )


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
