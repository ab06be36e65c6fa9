"""A spool as several processes see it, in one process, with a clock that a test moves."""

from __future__ import annotations

from itertools import count as numbers
from math import inf

from kombu_cfqueues.envelope import Address, Packed
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.runtime.clock import Clock
from kombu_cfqueues.spool.file import File
from kombu_cfqueues.spool.message_table import Spooled
from kombu_cfqueues.spool.shared_budget import Permits
from kombu_cfqueues.spool.spool import Spool
from kombu_cfqueues.waiting_room import Claim, ClaimOutcome, ClaimTerms, Item, Kind, Wait

BASE_URL = "http://127.0.0.1:1/client/v4"
CLAIM_SECONDS = 20.0
ONE_A_SECOND = Limit(1.0, 1)


class Hours(Clock):
    """Time stands still until somebody moves it, or sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Peer:
    """One process, as far as the file can tell: a poster of its own."""

    def __init__(self, folder, clock, *, limit=ONE_A_SECOND, token="token", boot="boot"):
        self.clock = clock
        self.token = token
        self.file = File(
            BASE_URL,
            "account",
            limit,
            lambda: self.token,
            spool_dir=str(folder),
            clock=clock,
            boot=lambda: boot,
        )
        self.spool_ = Spool(self.file, CLAIM_SECONDS)
        self.room = self.spool_.room
        self.permits = Permits(self.file)
        self.numbers = numbers(1)

    def enter(
        self, text="x", *, queue="jobs", seconds=900.0, kind=Kind.SINGLE, count=1, may_skip=False,
        **given,
    ):  # fmt: skip
        """Let confirmed messages wait; return the first; None if it skipped the line."""
        now = self.clock.monotonic()
        address = Address(queue, cloudflare_id=f"id-of-{queue}")
        items = [
            Item(
                address,
                packed(text),
                kind,
                deadline=now + seconds,
                half_time=now + seconds / 2,
                owner=self,
                **given,
            )
            for _ in range(count)
        ]
        number = next(self.numbers)
        if self.room.enter(items, number=number, may_skip=may_skip, until=inf) is not None:
            return None
        return items[0]

    def request_permit(self, request, deadline, kind=Kind.ADMIN, since=None):
        """Ask for a permit for a request that carries no message."""
        since = self.clock.monotonic() if since is None else since
        return self.permits.request_permit(request, deadline, kind, since)

    def spool(self, text="x", *, queue="jobs", count=1, expires=None, max_bytes=1 << 30, **given):
        """Keep messages; return their rows."""
        messages = [Spooled(Address(queue), packed(text), expires)] * count
        return self.spool_.messages.spool(messages, max_bytes=max_bytes, **given)

    def try_claim(self, **given) -> Claim | Wait:
        """Claim what is to be had now."""
        return self.room.claim(ClaimTerms(next(self.numbers), **given))

    def claim(self, **given) -> Claim:
        """Claim what is to be had after a quiet minute."""
        self.clock.now += 60
        found = self.try_claim(**given)
        assert isinstance(found, Claim), found
        return found

    def settle(self, claim, settled=None, **given):
        """Say what became of a claim; without more, all of it was accepted."""
        if settled is None and not given:
            settled = dict.fromkeys(claim.items)
        return self.room.settle(claim, ClaimOutcome(settled or {}, **given), until=inf)

    def outcomes(self):
        """What others said of this process's messages, and whether any still waits."""
        news = self.room.outcomes(until=inf)
        return dict(news.settled), news.waiting

    def die(self):
        """End as a killed process does: the kernel frees its lock, and nothing else happens."""
        self.file._alive.release()


def packed(text="x") -> Packed:
    fragment = b'{"body":"%b","content_type":"text"' % text.encode()
    return Packed(fragment, len(fragment))


def texts(claim: Claim) -> list[str]:
    """The bodies that a claim holds, in their order."""
    return [item.message.fragment.split(b'"')[3].decode() for item in claim.items]
