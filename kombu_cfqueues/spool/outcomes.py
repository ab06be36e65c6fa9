"""What the outcome of a claim changes in the file.

The caller of each function is in a transaction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .. import limits
from ..errors import CFQueuesError, as_text
from ..runtime.rng import rng
from ..waiting_room import ClaimOutcome, Item, Kind
from .schema import State

if TYPE_CHECKING:
    import sqlite3


def settle_item(
    connection: sqlite3.Connection, claim: int, item: Item, error: CFQueuesError | None
) -> None:
    """Delete a claimed message, or keep its outcome for its owner; *error* is None if accepted."""
    which = (item.place[1], claim)
    if item.owned_here or (item.kind is Kind.SPOOLED and error is None):
        connection.execute("DELETE FROM message WHERE id = ? AND claim = ?", which)
        return
    state = State.ACCEPTED if error is None else State.REFUSED
    connection.execute(
        "UPDATE message SET state = ?, error = ?, uncertain = uncertain | ?, claim = NULL, "
        "poster = NULL WHERE id = ? AND claim = ?",
        (state, error and as_text(error), item.uncertain, *which),
    )


def return_item(
    connection: sqlite3.Connection, claim: int, item: Item, max_batch: int | None
) -> None:
    """Let a claimed message wait again; its batch limit stays if *max_batch* is None."""
    connection.execute(
        "UPDATE message SET state = 0, claim = NULL, poster = NULL, "
        "uncertain = uncertain | ?, max_batch = coalesce(?, max_batch) WHERE id = ? AND claim = ?",
        (item.uncertain, max_batch, item.place[1], claim),
    )


def note_delay(connection: sqlite3.Connection, queue: int, outcome: ClaimOutcome) -> None:
    """Record why a queue's messages are delayed, for display; clear it once one is accepted."""
    if outcome.error is not None:
        connection.execute("UPDATE queue SET trouble = ? WHERE id = ?", (str(outcome.error), queue))
    elif None in outcome.settled.values():
        connection.execute(
            "UPDATE queue SET paused_until = 0, pauses = 0, trouble = NULL "
            "WHERE id = ? AND trouble IS NOT NULL",
            (queue,),
        )


def pause_spooled(
    connection: sqlite3.Connection, queue: int, outcome: ClaimOutcome, now: float
) -> None:
    """Back off from a queue's spooled messages, longer each time.

    The queue's id is forgotten and looked up again, unless the outcome gives up a split batch.
    """
    if outcome.pause is None:
        return
    (pauses,) = connection.execute("SELECT pauses FROM queue WHERE id = ?", (queue,)).fetchone()
    ceiling = replace(outcome.pause, failures=pauses + 1).ceiling_seconds
    connection.execute(
        "UPDATE queue SET pauses = pauses + 1, paused_until = ?, "
        "cloudflare_id = CASE WHEN ? THEN cloudflare_id END WHERE id = ?",
        (now + ceiling * rng.uniform(0.5, 1), outcome.give_up is not None, queue),
    )


def refuse_suspects(
    connection: sqlite3.Connection, queue: int, error: CFQueuesError, me: str
) -> list[int]:
    """Refuse the confirmed messages of a queue that wait in reduced batches, without a request.

    Returns:
        The rows that process *me* owned.  They are deleted; the others keep *error* for their
        owners.
    """
    suspects = "state = 0 AND queue = ? AND max_batch < ? AND kind != ?"
    which = (queue, limits.BATCH_MESSAGES, Kind.SPOOLED)
    owned_here = f"message WHERE {suspects} AND owner = ?"
    rows = connection.execute(f"SELECT id FROM {owned_here}", (*which, me)).fetchall()  # noqa: S608
    connection.execute(f"DELETE FROM {owned_here}", (*which, me))  # noqa: S608
    connection.execute(
        f"UPDATE message SET state = ?, error = ? WHERE {suspects}",  # noqa: S608
        (State.REFUSED, as_text(error), *which),
    )
    return [row for (row,) in rows]
