"""What stands around a group commit in its tests: a server, permits."""

from itertools import count

from kombu_cfqueues.envelope import Address, Packed
from kombu_cfqueues.errors import ConnectionFailed, InvalidMessage, RateLimited
from kombu_cfqueues.publish.group_commit import GroupCommit
from kombu_cfqueues.publish.memory_room import MemoryRoom
from kombu_cfqueues.publish.sender import Sender

ROUND_TRIP = 0.030
POST_SECONDS = 100.0
ADDRESS = Address("jobs", cloudflare_id="id-of-jobs")


def bad(*items):
    """A server that refuses each request with one of these *items* in it."""

    def refuse(posted):
        return InvalidMessage("bad", status=400, code=10203) if set(items) & set(posted) else None

    return refuse


class NoLimit:
    """Permits for whoever asks."""

    def try_take(self, place, *, queue):
        return None

    def leave(self, place):
        pass


class Commit:
    """A group commit whose messages are any objects: ``post(items, deadline)`` gets these."""

    def __init__(
        self, post, permits=None, *, max_in_flight=1, retry_uncertain=True, clock=None, room=None,
        **given,
    ):  # fmt: skip
        # What was not accepted is kept: what a caller has left behind may still be posted.
        self._items, self._numbers = {}, count()
        self._post = post
        self.room = room or MemoryRoom(
            permits or NoLimit(), "", extends=max_in_flight == 1, clock=clock, **given
        )
        sender = Sender(self.room, self._send, post_seconds=POST_SECONDS, clock=clock)
        self.commit = GroupCommit(
            self.room, sender, max_in_flight=max_in_flight, repeats=retry_uncertain, clock=clock
        )

    def _send(self, address, messages, deadline):
        self._post([self._items[message.fragment] for message in messages], deadline)

    def _packed(self, item, size):
        fragment = b"%d" % next(self._numbers)
        self._items[fragment] = item
        return Packed(fragment, size)

    def hand_over(self, item, size, deadline):
        message = self._packed(item, size)
        self.commit.submit(ADDRESS, message, deadline=deadline)
        del self._items[message.fragment]

    submit = hand_over  # tests look for the frame of this name

    def submit_many(self, items, deadline):
        messages = [self._packed(item, size) for item, size in items]
        outcomes = self.commit.submit_many(ADDRESS, messages, deadline=deadline)
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome is None:
                del self._items[message.fragment]
        return outcomes


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
        self.waiting = []

    def try_take(self, place, *, queue):
        now = self.time.monotonic()
        if self.at:
            place.ready_at = self.at[0]
            if place.ready_at > now:
                self.waiting = [place]
                return RateLimited("no permit yet", retry_after=place.ready_at - now)
            self.at.pop(0)
        self.taken += 1
        return None

    def leave(self, place):
        self.waiting = [other for other in self.waiting if other is not place]
