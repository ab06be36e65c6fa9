"""For all unit tests."""

import pytest
from hypothesis import settings
from support.spools import ONE_A_SECOND, Hours, Peer

# A busy machine is no failure.
settings.register_profile("suite", deadline=None, max_examples=50)
settings.load_profile("suite")


@pytest.fixture
def clock():
    """Of the processes that share a spool."""
    return Hours()


@pytest.fixture
def limit():
    """Of their requests."""
    return ONE_A_SECOND


@pytest.fixture
def peer(tmp_path, clock, limit):
    """Makes processes that share one spool, and its allowance."""
    made = []

    def make(**given):
        made.append(Peer(tmp_path / "spool", clock, **{"limit": limit, **given}))
        return made[-1]

    yield make
    for each in made:
        each.file.close()
