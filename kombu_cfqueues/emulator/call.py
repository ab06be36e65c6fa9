"""One authorized request, as the handler of its route receives it."""

from __future__ import annotations

from dataclasses import dataclass

from . import fields
from .answers import Refusal
from .faults import NO_CHANGE, EffectChange
from .knobs import Knobs
from .queues import Queue
from .routes import Found, Route
from .service import Service


@dataclass(frozen=True, slots=True)
class Call:
    """The argument of a handler.

    Attributes:
        service: The emulated account.
        route: The route of the request.
        found: The ids in its path.
        query: Names and values of its query.
        body: Its raw body.
        change: What faults change about its effect.
    """

    service: Service
    route: Route
    found: Found
    query: list[tuple[str, str]]
    body: bytes
    change: EffectChange = NO_CHANGE

    @property
    def knobs(self) -> Knobs:
        """The current knobs."""
        return self.service.knobs

    def queue(self) -> Queue:
        """Return the queue that the path names.

        Raises:
            Refusal: The id is malformed (10107) or unknown (10104, 11000).
        """
        queue_id = self.found.queue_id
        queue = self.service.queues.get(queue_id)
        if queue is None:
            if not fields.is_id(queue_id):
                raise Refusal(400, 10107, "The queue id is malformed")
            code = self.knobs.missing_queue_code
            if code == "by_route":
                code = "10104" if self.route.kind == "message" else "11000"
            raise Refusal(404, int(code), "Queue not found")
        return queue
