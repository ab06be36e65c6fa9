"""Kombu's queue names as Cloudflare allows them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_cfqueues import errors
from kombu_cfqueues.api.queue_names import to_cloudflare_name


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("emails", "emails"),
        ("Emails", "Emails"),
        ("emails.high_priority", "emails-high-priority"),
        ("a@b/c d:e", "a-b-c-d-e"),
        ("_private_", "private"),
        ("grüße", "gr--e-8285d1ad"),
        ("5", "5"),
        ("x" * 63, "x" * 63),
    ],
)
def test_names_are_translated_to_what_cloudflare_allows(name, title):
    assert to_cloudflare_name(name) == title


@given(st.text(st.characters(), max_size=200))
def test_every_name_becomes_a_legal_one_or_is_refused(name):
    try:
        title = to_cloudflare_name(name)
    except errors.ConfigurationError:
        assert not re.search("[A-Za-z0-9]", name)
    else:
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", title)
        assert to_cloudflare_name(name) == title


def test_long_names_that_begin_alike_stay_apart():
    first, second = (to_cloudflare_name("x" * 70 + end) for end in "ab")

    assert first != second
    assert len(first) == len(second) == 63
