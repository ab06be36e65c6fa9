"""Taking messages back at a deadline."""

from kombu_cfqueues.publish.withdrawal import withdraw


def test_a_busy_room_is_not_waited_for_after_the_deadline():
    class Room:
        def withdraw(self, items, *, claimed, until):
            asked.append((items, claimed, until))
            return {}

    asked = []
    assert withdraw(Room(), [], claimed=True, now=5.0, reason=None, pause=None) == {}
    assert asked == [([], True, 5.0)]
