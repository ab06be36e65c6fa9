"""A user's mistakes, made through Celery: each ends in a line that says what to do."""

from __future__ import annotations

import random
import re

import pytest
from celery import Celery

from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN, Emulator


@pytest.fixture
def emulator():
    with Emulator(tokens={"viewer": "read"}) as running:
        running.create_queue("jobs")
        running.create_queue("emails-new")
        yield running


def mistaken(url, *args, options=None, **how):
    """The last line of what a user sees who sends a task so."""
    app = Celery("app", broker=url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    app.conf.broker_transport_options = {"publish_timeout": 5, **(options or {})}
    *before, last = how.pop("queues", ["jobs"])
    with app:
        for queue in before:
            app.send_task("shop.add", args, queue=queue, **how)
        with pytest.raises(Exception) as raised:  # noqa: PT011  of which family, other tests say
            app.send_task("shop.add", args, queue=last, retry=False, **how)
    line = str(raised.value)
    assert "\n" not in line
    assert TOKEN not in line
    return line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((TOKEN, "another"), "Queues Edit"),
        ((TOKEN, "viewer"), "Queues Edit"),
        ((TOKEN, "two%20words"), "check api_token"),
        ((ACCOUNT_ID, "f" * 32), "account"),
        ((f"{ACCOUNT_ID}:{TOKEN}@", ""), "CLOUDFLARE_ACCOUNT_ID"),
        ((f":{TOKEN}@", "@"), "CLOUDFLARE_API_TOKEN"),
        (("127.0.0.1", "no-such-host.invalid"), "check the host"),
        ((r":\d+/", ":1/"), "nothing listens on 127.0.0.1:1"),
    ],
)
def test_in_the_url(emulator, monkeypatch, change, words):
    for name in ("CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    assert words in mistaken(re.sub(*change, emulator.broker_url))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"publish_timeout": "soon"}, "publish_timeout"),
        ({"create_missing_queues": False, "queue_name_prefix": "no-"}, "create"),
        ({"queues": {"jobs": "f" * 32}}, "the option 'queues'"),
    ],
)
def test_in_the_options(emulator, options, words):
    assert words in mistaken(emulator.broker_url, options=options)


def test_plain_http_to_another_machine():
    options = {"base_url": "http://10.0.0.1:8787"}

    assert "allow_insecure_http" in mistaken(f"cfqueues://{ACCOUNT_ID}:{TOKEN}@/", options=options)


@pytest.mark.parametrize(
    ("args", "how", "words"),
    [
        ([random.Random(1).randbytes(200_000).hex()], {}, "send a reference"),
        ([], {"headers": {"weight": float("nan")}}, "only what JSON can"),
        ([], {"queues": ["..."]}, "letter or digit"),
        ([], {"queues": ["emails.new", "emails_new"]}, "rename one"),
        ([], {"countdown": 40 * 86_400}, "retention"),
    ],
)
def test_in_a_message(emulator, args, how, words):
    assert words in mistaken(emulator.broker_url, *args, **how)
    assert not emulator.messages("jobs")
