"""Pytest fixtures for projects that publish to, or consume from, Cloudflare Queues.

In a ``conftest.py``::

    pytest_plugins = ["kombu_cfqueues.testing"]

Then a test that asks for ``cfqueues_emulator`` has Cloudflare's Queues API to itself, on this
machine, and ``cfqueues_url`` is its broker URL::

    def test_signing_up_sends_a_mail(cfqueues_emulator, cfqueues_celery):
        cfqueues_celery(app)
        sign_up("ada@example.com")
        [message] = cfqueues_emulator.messages("celery")
        assert message.task == "shop.tasks.send_welcome_mail"

Needs ``pip install 'kombu-cfqueues[emulator]'``.
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
    """Return the arguments of ``Emulator``; override it to turn knobs or keep to a request limit.

    ::

        @pytest.fixture
        def cfqueues_emulator_options():
            return {"rate_limit": 1200, "first_attempt": 0}
    """
    return {}


@pytest.fixture
def cfqueues_emulator(cfqueues_emulator_options: dict[str, Any]) -> Iterator[Emulator]:
    """Return an emulator of one's own: empty, on a free port, stopped when the test is over.

    It runs in a thread, which no fork and no gevent survives; for a worker that forks, start
    ``cfqueues emulator`` as a process.
    """
    # An account of its own too: what a client remembers of queues from another test's emulator,
    # which may have had the same port, then belongs to another account.
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
    """Return a function that has a Celery application publish here until the test is over.

    ``cfqueues_celery(app, publish_timeout=5)``: the names are ``broker_transport_options``, beside
    the application's own.

    Celery keeps its connections, so giving it another ``broker_url`` is not enough once it has
    published; this closes them, before and after.
    """
    for name in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        monkeypatch.delenv(name, raising=False)  # Celery prefers them to what is configured
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
