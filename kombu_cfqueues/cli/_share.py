"""What this machine has learned of its share of the token, as text for people."""

from __future__ import annotations

from ..account import open_spool
from ..errors import CFQueuesError
from ..options import Options
from ..rate_limit import WAYS_OUT
from ..spool import LearnedShare, Spool
from . import _console as console


def share_of(options: Options) -> LearnedShare | None:
    """Return the share that the machine has learned; None if it uses all of the rate.

    Raises:
        SpoolUnavailable, SpoolFull: The spool's file cannot be used.
    """
    if options.request_rate is None or options.budget_scope != "host" or not Spool.available:
        return None
    spool = open_spool(options)
    try:
        return spool.listing.share()
    finally:
        spool.close()


def share_if_readable(options: Options) -> LearnedShare | None:
    """Return what `share_of` returns, or None if the spool's file cannot be used."""
    try:
        return share_of(options)
    except CFQueuesError:
        return None


def in_short(share: LearnedShare) -> str:
    """Describe *share* in a few words."""
    return (
        f"this machine has used {share.part:.0%} of request_rate for "
        f"{console.duration(share.age_seconds)}"
    )


def in_full(share: LearnedShare) -> str:
    """Describe *share*, why it is so, and what to do."""
    more = (
        f"tries more in {console.duration(share.held_seconds)}"
        if share.held_seconds
        else "tries more while publishing waits"
    )
    return (
        f"{in_short(share)}, {share.rate:.3g} requests per second: the token was blocked, and "
        f"about {share.own:,.0f} of the 1,200 requests before the block were made here; it {more}. "
        f"If several machines use the token, {WAYS_OUT}"
    )
