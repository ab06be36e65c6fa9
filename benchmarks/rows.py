"""What is measured: one row a contender and number of threads."""

from __future__ import annotations

from typing import Final, NamedTuple

BLOCK: Final = 5_000
"""Messages of one `Producer.batch` block."""


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        label: What readers see.
        contender: A name of `contenders.CONTENDERS`.
        threads: How many publish at once.
        in_flight: This transport's ``max_in_flight``.
        block: Messages of one call.
        in_table: Else it is a point of the plot only.
    """

    label: str
    contender: str
    threads: int = 1
    in_flight: int = 1
    block: int = 1
    in_table: bool = True

    @property
    def needs_redis(self) -> bool:
        """Whether a Redis server is what it publishes to."""
        return self.contender.startswith("redis")


ONE_IN_FLIGHT: Final = "kombu_cfqueues"
FOUR_IN_FLIGHT: Final = "kombu_cfqueues, `max_in_flight=4`"
BATCH: Final = "kombu_cfqueues, `Producer.batch()`"
SDK: Final = "Cloudflare's SDK, `push`"
SDK_BULK: Final = "Cloudflare's SDK, `bulk_push` of 100"
REQUESTS: Final = "requests, one POST a message"

# Neighbours are compared with each other, and run within seconds of each other.
ROWS: Final = (
    Row(ONE_IN_FLIGHT, "confirmed", 1),
    Row(REQUESTS, "bare_requests", 1),
    Row(SDK, "sdk", 1),
    Row(ONE_IN_FLIGHT, "confirmed", 8),
    Row(REQUESTS, "bare_requests", 8),
    Row(SDK, "sdk", 8),
    Row(ONE_IN_FLIGHT, "confirmed", 64),
    Row(FOUR_IN_FLIGHT, "confirmed", 64, in_flight=4),
    Row(REQUESTS, "bare_requests", 64),
    Row(SDK, "sdk", 64),
    Row(ONE_IN_FLIGHT, "confirmed", 200),
    Row(FOUR_IN_FLIGHT, "confirmed", 200, in_flight=4),
    Row(REQUESTS, "bare_requests", 200),
    Row(SDK, "sdk", 200),
    Row(BATCH, "batch", block=BLOCK),
    Row("Kombu's memory transport, the same loop", "memory", block=BLOCK),
    Row(SDK_BULK, "sdk_bulk", block=100),
    Row("Kombu's Redis transport", "redis", 1),
    Row("Kombu's Redis transport", "redis", 8),
    Row("Kombu's Redis transport", "redis", 64),
    Row("Kombu's Redis transport, `Producer.batch()`", "redis_batch", block=BLOCK),
)

#: More points for the plot.
POINTS: Final = tuple(
    Row(label, contender, threads, in_flight, in_table=False)
    for threads in (2, 4, 16, 32, 128)
    for label, contender, in_flight in (
        (ONE_IN_FLIGHT, "confirmed", 1),
        (FOUR_IN_FLIGHT, "confirmed", 4),
        (REQUESTS, "bare_requests", 1),
        (SDK, "sdk", 1),
    )
) + tuple(Row(FOUR_IN_FLIGHT, "confirmed", threads, 4, in_table=False) for threads in (1, 8))
