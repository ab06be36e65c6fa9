"""Pytest fixtures for projects that publish to, or consume from, Cloudflare Queues.

In a ``conftest.py``::

    pytest_plugins = ["kombu_cfqueues.testing"]

A test that uses ``cfqueues_emulator`` gets an emulator of Cloudflare's Queues API of its own, on
this machine; ``cfqueues_url`` is its broker URL::

    def test_signing_up_sends_a_mail(cfqueues_emulator, cfqueues_celery):
        cfqueues_celery(app)
        sign_up("ada@example.com")
        [message] = cfqueues_emulator.messages("celery")
        assert message.task == "shop.tasks.send_welcome_mail"

Needs the extra ``emulator``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from .emulator import Emulator

if TYPE_CHECKING:
    from celery import Celery

__all__ = [
    "cfqueues_celery",
    "cfqueues_emulator",
    "cfqueues_emulator_options",
    "cfqueues_url",
]


@pytest.fixture
def cfqueues_emulator_options() -> dict[str, Any]:
    """Return the arguments of the ``Emulator``.

    Override this fixture to set knobs or a request limit::

        @pytest.fixture
        def cfqueues_emulator_options():
            return {"rate_limit": 1200, "first_attempt": 0}
    """
    return {}


@pytest.fixture
def cfqueues_emulator(cfqueues_emulator_options: dict[str, Any]) -> Iterator[Emulator]:
    """Start an empty emulator on a free port, and stop it at the end of the test.

    It runs in a thread, which does not survive a fork and does not work under gevent.  For a worker
    that forks, start ``cfqueues emulator`` as a process instead.
    """
    # Each emulator has its own account id.  A client remembers queues by account and URL, and
    # another test's emulator may have had the same port.
    options = {"account_id": secrets.token_hex(16), **cfqueues_emulator_options}
    with Emulator(**options) as emulator:
        yield emulator


@pytest.fixture
def cfqueues_url(cfqueues_emulator: Emulator) -> str:
    """Return the broker URL of ``cfqueues_emulator``, for Kombu and Celery."""
    return cfqueues_emulator.broker_url


@pytest.fixture
def cfqueues_celery(
    cfqueues_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Return a function that makes a Celery application publish to the emulator during the test.

    Keyword arguments become ``broker_transport_options``, in addition to the application's own::

        cfqueues_celery(app, publish_timeout=5)

    Celery keeps its connections, so a new ``broker_url`` is not enough once the application has
    published.  This fixture also closes the connections, before and after the test.
    """
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.delenv(name, raising=False)  # Celery prefers these to its settings
    with ExitStack() as applications:

        def publish_here(app: Celery, **transport_options: Any) -> None:
            applications.enter_context(_publishing_to(cfqueues_url, app, transport_options))

        yield publish_here


@contextmanager
def _publishing_to(url: str, app: Celery, transport_options: dict[str, Any]) -> Iterator[None]:
    conf = app.conf
    names = ("broker_url", "broker_write_url", "broker_transport_options", "broker_transport")
    before = {name: conf[name] for name in names}
    conf.update(
        broker_url=url,
        broker_write_url=url,
        broker_transport="kombu_cfqueues:Transport",
        broker_transport_options={**before["broker_transport_options"], **transport_options},
    )
    _forget_connections(app)
    try:
        yield
    finally:
        _forget_connections(app)
        conf.update(before)


def _forget_connections(app: Celery) -> None:
    app.close()
    app.__dict__.pop("amqp", None)  # a cached property, which holds the pool of producers
