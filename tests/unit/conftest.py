"""For all unit tests."""

from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("suite", deadline=None, max_examples=50)
settings.load_profile("suite")
