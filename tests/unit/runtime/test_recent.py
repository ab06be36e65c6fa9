"""What is forgotten because nobody used it."""

from virtual_time import VirtualTime

from kombu_cfqueues.runtime.recent import Recent


def test_what_is_used_is_kept_and_what_is_not_is_forgotten():
    time = VirtualTime(now=100.0)
    recent = Recent(60.0, clock=time)
    made = iter(range(100))
    assert [recent.get(key, lambda: next(made)) for key in "aba"] == [0, 1, 0]
    for _ in range(3):
        time.now += 40
        assert recent.get("a", lambda: next(made)) == 0
    assert len(recent) == 1
    assert recent.get("b", lambda: next(made)) == 2
