"""JSON for people: every digit stays, text can be read, and nothing reorders what is around it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_cfqueues.emulator.contents import describe, texts
from kombu_cfqueues.emulator.readable_json import elements, members, pretty, readable

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_what_is_made_readable_means_the_same(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    assert json.loads(readable(text)) == value
    assert json.loads(pretty(text)) == value
    if isinstance(value, list):
        assert [json.loads(part) for part in elements(text)] == value
    if isinstance(value, dict):
        assert {key: json.loads(part) for key, part in members(text).items()} == value


@given(JSON)
def test_lines_are_those_that_python_writes(value):
    text = json.dumps(value)

    assert pretty(text) == readable(json.dumps(value, indent=2))


@pytest.mark.parametrize("number", ["12345678901234567890", "1.10", "1e400", "-0.0", "1E+2"])
def test_a_number_keeps_its_digits(number):
    assert pretty(f'{{"n":{number}}}') == f'{{\n  "n": {number}\n}}'
    assert f"{number}" in texts("text", f'{{"n":{number}}}')["content"]


def test_text_is_readable_and_what_cannot_be_seen_is_not_there():
    text = r'"\u00fc\ud83d\ude00 \u202e\u0000\u2028 \" \\u00fc"'
    assert readable(text) == r'"ü😀 \u202e\u0000\u2028 \" \\u00fc"'
    assert readable('"\u202e"') == r'"\u202e"'


def test_previews_are_readable_whoever_escaped_them():
    """Kombu and Celery escape everything that is not ASCII."""
    inner = json.dumps({"greeting": "grüß", "n": 12345678901234567890})
    envelope = {
        "body": inner,
        "headers": {"ключ": "ü"},
        "properties": {},
        "content-type": "application/json",
    }

    assert describe("text", json.dumps(envelope))["summary"] == (
        '{"greeting": "grüß", "n": 12345678901234567890}'
    )
    assert describe("json", '{"t":"\\u00fc"}')["summary"] == '{"t":"ü"}'
    shown = texts("text", json.dumps(envelope))
    assert shown["headers"] == '{\n  "ключ": "ü"\n}'
    assert shown["content"] == '{\n  "greeting": "grüß",\n  "n": 12345678901234567890\n}'
    assert "ключ" in shown["raw"]
