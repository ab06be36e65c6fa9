"""The regular form of the suite (``make test``), and its long form (``make long``).

``@pytest.mark.long`` leaves a test to the long form: it repeats another one with other parameters,
or looks for what is rare.  ``@pytest.mark.longer`` marks a test that does more there.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

LONG = bool(os.environ.get("CFQUEUES_LONG"))


def long(*values: Any, id: str | None = None) -> Any:  # noqa: A002  as in pytest
    """Parameters that only the long form has."""
    return pytest.param(*values, marks=pytest.mark.long, id=id)


def first_of(values: Any) -> list[Any]:
    """Return *values* as parameters, of which the regular form has the first only."""
    first, *rest = values
    return [first, *(long(*(each if isinstance(each, tuple) else (each,))) for each in rest)]
