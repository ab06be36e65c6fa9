"""A spool as several processes see it, in one process, with a clock that a test moves."""

from __future__ import annotations

from kombu_cfqueues.envelope import Address, Packed
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.runtime.clock import Clock
from kombu_cfqueues.spool.claims import Claim, Claims
from kombu_cfqueues.spool.file import File
from kombu_cfqueues.spool.gate import Permits
from kombu_cfqueues.spool.intake import Intake, Spooled
from kombu_cfqueues.spool.schema import Kind

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
        self.intake = Intake(self.file)
        self.claims = Claims(self.file, CLAIM_SECONDS)
        self.permits = Permits(self.file)

    def enter(self, text="x", *, queue="jobs", seconds=900.0, kind=Kind.SINGLE, count=1, **given):
        """Let confirmed messages wait; return the row of the first."""
        rows = self.intake.enter(
            kind,
            Address(queue, cloudflare_id=f"id-of-{queue}"),
            [packed(text)] * count,
            deadline=self.clock.monotonic() + seconds,
            **given,
        )
        return rows and rows[0]

    def spool(self, text="x", *, queue="jobs", count=1, expires=None, max_bytes=1 << 30, **given):
        """Keep messages; return their rows."""
        messages = [Spooled(Address(queue), packed(text), expires)] * count
        return self.intake.spool(messages, max_bytes=max_bytes, **given)

    def claim(self, **given) -> Claim:
        """Claim what is to be had after a quiet minute."""
        self.clock.now += 60
        found = self.claims.claim(**given)
        assert isinstance(found, Claim), found
        return found

    def die(self):
        """End as a killed process does: the kernel frees its lock, and nothing else happens."""
        self.file._alive.release()


def packed(text="x") -> Packed:
    fragment = b'{"body":"%b","content_type":"text"' % text.encode()
    return Packed(fragment, len(fragment))


def texts(claim: Claim) -> list[str]:
    """The bodies that a claim holds, in their order."""
    return [entry.packed.fragment.split(b'"')[3].decode() for entry in claim.entries]
