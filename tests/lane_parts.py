"""What stands around a lane in its tests: a server, permits, a judge."""

from kombu_cfqueues.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    InvalidMessage,
    RateLimited,
)
from kombu_cfqueues.publish.group_commit import Verdict

ROUND_TRIP = 0.030


def judge(error):
    if isinstance(error, InvalidMessage):
        return Verdict.THE_ITEMS
    if isinstance(error, AuthenticationFailed):
        return Verdict.NEVER
    return Verdict.NOT_NOW


def bad(*items):
    """A server that refuses each request with one of these *items* in it."""

    def refuse(posted):
        return InvalidMessage("bad", status=400, code=10203) if set(items) & set(posted) else None

    return refuse


class Server:
    """Answers after a round trip.  ``refuse(items)`` returns the error to raise, or None."""

    def __init__(self, time, refuse=lambda items: None):
        self.time, self.refuse = time, refuse
        self.round_trip = ROUND_TRIP
        self.requests, self.deadlines, self.sent_at = [], [], []
        self.accepted = []
        self.in_flight = self.most_in_flight = 0

    def post(self, items, deadline):
        self.requests.append(list(items))
        self.deadlines.append(deadline)
        self.sent_at.append(self.time.monotonic())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            left = deadline - self.time.monotonic()
            self.time.sleep(min(self.round_trip, left))
            if left < self.round_trip:
                raise ConnectionFailed("no answer in time", delivered="unknown")
            error = self.refuse(items)
        finally:
            self.in_flight -= 1
        if error is not None:
            raise error
        self.accepted += items


class Permits:
    """Gives out permits at certain times, and after the last of them whenever one is asked for."""

    def __init__(self, time, *at):
        self.time, self.at, self.taken = time, list(at), 0

    def take(self, deadline):
        if self.at:
            if self.at[0] > deadline:
                raise RateLimited("no permit before the deadline")
            at = self.at.pop(0)
            self.time.sleep(max(0.0, at - self.time.monotonic()))
        self.taken += 1
