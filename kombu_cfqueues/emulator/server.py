"""The emulator: the emulated service, its API, and the thread that serves it."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from . import admin, fault_orders
from .access import TOKEN, Access, Permission
from .app import PREFIX, Api, application
from .clock import Clock
from .console import Console
from .faults import Fault, Faults, Seconds
from .hub import MAX_FRAME_BYTES
from .hub_sockets import TRANSPORT, Hub, websocket_class
from .knobs import Knobs
from .log import RequestLog
from .queues import Consumer, Queue
from .service import Service
from .snippets import TOKEN_VARIABLE
from .stored_messages import StoredMessage

ACCOUNT_ID: Final = "0123456789abcdef0123456789abcdef"
"""The default account id."""

_EVERY_ADDRESS: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  not bound
"""The hosts that listen on every address, and where this machine reaches them."""


class Emulator:
    """Cloudflare's Queues API on this machine.

    ::

        with Emulator() as emulator:
            connection = kombu.Connection(emulator.broker_url)

    It runs in its own thread from ``start()`` (or ``with``) to ``stop()``.  Its methods and
    properties may be used from any thread.

    Args:
        host: The address to listen on.
        port: The port; 0 for a free one.
        account_id: The account of all queues.
        token: A token with every permission.
        tokens: More tokens, each with ``"edit"`` or ``"read"``: ``{"viewer": "read"}``.
        db: A file that keeps the queues and messages across restarts; None for memory.
        latency: Seconds before each request takes effect, or the bounds of a random time.
        knobs: Positions of ``Knobs``, by name.

    Raises:
        ValueError: The address is not loopback and the token is the default one, a knob does not
            have the position, the account id or a token does not fit into a URL or header, or the
            file cannot be used.
        OSError: (``start()``) The server cannot listen on the address.
        RuntimeError: (``start()``, ``stop()``) The server's thread failed.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        account_id: str = ACCOUNT_ID,
        token: str = TOKEN,
        tokens: Mapping[str, Permission] | None = None,
        db: Path | str | None = None,
        latency: Seconds = 0.0,
        **knobs: Any,
    ) -> None:
        if not _is_loopback(host) and token == TOKEN:
            how = f"choose a token of your own ({TOKEN_VARIABLE}, or token=)"
            raise ValueError(f"other machines can reach {host}: {how}")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", account_id):
            raise ValueError("an account id consists of letters, digits, dashes and underscores")
        self.host = host
        self.port = port
        self.account_id = account_id
        self.token = token
        _check_latency(latency)
        access = Access({**(tokens or {}), token: "edit"})
        self._service = Service(account_id, db, Knobs(**knobs))
        self._api = Api(self._service, access, latency)
        self._hub = Hub(access)
        self._console = Console(
            self._service,
            access,
            self._api.requests,
            self._api.allowance,
            token,
            hub=self._hub,
            requires_token=not self.is_private,
        )
        self._thread: _ServerThread | None = None

    def __repr__(self) -> str:
        return f"<Emulator at {self.base_url}>"

    # --- running

    def start(self) -> Emulator:
        """Start the server; block until it answers requests."""
        if self._thread is None:
            thread = _ServerThread(
                application(self._api, self._console, self._hub), self.host, self.port
            )
            thread.start()
            self.port, self._thread = thread.port, thread
        return self

    def stop(self) -> None:
        """Cut all connections, stop the server, and close the database."""
        try:
            self._disconnect()
        finally:
            self._service.close()

    def __enter__(self) -> Emulator:  # noqa: PYI034 - Self is not in Python 3.10
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Refuse connections during the block; the queues and the port stay the same."""
        self._disconnect()
        try:
            yield
        finally:
            self.start()

    # --- URLs

    @property
    def base_url(self) -> str:
        """The counterpart of ``https://api.cloudflare.com/client/v4``."""
        return f"http://{self._address}{PREFIX}"

    @property
    def page_url(self) -> str:
        """The URL of the page, which asks for the token unless it is on loopback."""
        return f"http://{self._address}/"

    @property
    def broker_url(self) -> str:
        """The broker URL for Kombu and Celery, including the account and the token."""
        return f"cfqueues://{self.account_id}:{quote(self.token, safe='')}@{self._address}/"

    @property
    def control_url(self) -> str:
        """The ``control_url`` of the emulated hub, including the token.

        The hub needs the package ``websockets``.
        """
        return f"cfhub://:{quote(self.token, safe='')}@{self._address}/emulator"

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach the emulator."""
        return _is_loopback(self.host)

    @property
    def _address(self) -> str:
        # Nothing can be sent to the addresses that mean every address of this machine.
        host = _EVERY_ADDRESS.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    # --- state that tests read and change

    @property
    def requests(self) -> RequestLog:
        """The log of the API's requests."""
        return self._api.requests

    @property
    def clock(self) -> Clock:
        """The emulator's clock; move it with ``clock.advance(seconds)``."""
        return self._service.clock

    @property
    def faults(self) -> Faults:
        """The active faults."""
        return self._service.faults

    def order_fault(self, text: str) -> Fault:
        """Set a fault in the command line's syntax: ``"error push status=503 times=3"``.

        Raises:
            ValueError: The text is not a valid fault.
        """
        return fault_orders.order(self.faults, fault_orders.parse(text))

    @property
    def knobs(self) -> Knobs:
        """The current knobs; assign others at any time (``dataclasses.replace()``)."""
        return self._service.knobs

    @knobs.setter
    def knobs(self, knobs: Knobs) -> None:
        self._service.knobs = knobs

    @property
    def latency(self) -> Seconds:
        """Seconds before each request takes effect, or the bounds of a random time."""
        return self._api.latency

    @latency.setter
    def latency(self, seconds: Seconds) -> None:
        _check_latency(seconds)
        self._api.latency = seconds

    def create_queue(
        self, name: str, *, consumer: Mapping[str, Any] | None = None, **settings: Any
    ) -> str:
        """Create a queue and return its id.

        ``emulator.create_queue("jobs", delivery_delay=5, consumer={"type": "http_pull"})``

        Args:
            name: Its name.
            consumer: Its consumer, as the body of a request that creates one.
            settings: ``delivery_delay``, ``delivery_paused``, ``message_retention_period``.

        Raises:
            ValueError: The API would refuse the request.
            TypeError: A queue does not have the setting.
        """
        _check_settings(settings)
        with admin.refusals_as_value_errors():
            admin.check_name(name)
            queues = self._service.queues
            if queues.named(name, fold=self.knobs.fold_names) is not None:
                raise ValueError(f"queue {name!r} already exists")
            new_consumer = None
            if consumer is not None:
                new_consumer = admin.new_consumer(self.clock.now_ms(), consumer)
            queue = queues.create(name, None, admin.queue_settings({"settings": settings}))
            if new_consumer is not None:
                queues.put_consumer(queue, new_consumer)
        return queue.id

    def configure_queue(
        self, name: str, *, consumer: Mapping[str, Any] | None = None, **settings: Any
    ) -> str:
        """Create a queue, or change the existing one; return its id.  Its messages stay.

        Args:
            name: Its name.
            consumer: Its consumer, which replaces any other; None keeps the current one.
            settings: As for ``create_queue()``.

        Raises:
            ValueError, TypeError: As for ``create_queue()``, except that the queue may exist.
        """
        queues = self._service.queues
        queue = queues.named(name, fold=self.knobs.fold_names)
        if queue is None:
            return self.create_queue(name, consumer=consumer, **settings)
        _check_settings(settings)
        with admin.refusals_as_value_errors():
            checked = admin.queue_settings({"settings": settings})
            new_consumer = None
            if consumer is not None:
                new_consumer = admin.new_consumer(self.clock.now_ms(), consumer)
        for setting, value in checked.items():
            setattr(queue, setting, value)
        queues.save(queue)
        if new_consumer is not None:
            for old in list(queue.consumers.values()):
                queues.delete_consumer(queue, old)
            queues.put_consumer(queue, new_consumer)
        return queue.id

    def queue_names(self) -> list[str]:
        """Return the names of all queues, the oldest first."""
        return [queue.name for queue in self._service.queues]

    def queue_id(self, name: str) -> str:
        """Return a queue's id.

        Raises:
            KeyError: The queue does not exist.
        """
        return self._queue(name).id

    def consumers(self, name: str) -> list[Consumer]:
        """Return a queue's consumers.

        Raises:
            KeyError: The queue does not exist.
        """
        return list(self._queue(name).consumers.values())

    def messages(self, name: str) -> list[StoredMessage]:
        """Return all messages of a queue, including delayed and leased ones, the oldest first.

        Raises:
            KeyError: The queue does not exist.
        """
        return self._service.store.stored(self._queue(name))

    def reset_rate_limit(self) -> None:
        """Reset the request limit: forget all counts and end all blocks."""
        self._api.allowance.reset()

    def _queue(self, name: str) -> Queue:
        queue = self._service.queues.named(name, fold=self.knobs.fold_names)
        if queue is None:
            raise KeyError(
                f"queue {name!r} does not exist; existing queues: "
                f"{', '.join(self.queue_names()) or 'none'}"
            )
        return queue

    def _disconnect(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()


ACCEPTING_ROUNDS: Final = 5
"""Rounds of the event loop that turn an accepted socket into a connection.

asyncio takes three rounds; two more are a margin."""


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 that passes the connection to the application, whose faults cut it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]


class _Server(uvicorn.Server):
    """A uvicorn server that signals when it is ready, and stops without waiting for clients."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._halt: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._halt = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        halt = self._halt
        if halt is None:
            raise RuntimeError("the server has not started up")
        counter = 0
        while not await self.on_tick(counter) and not halt.is_set():
            # uvicorn counts ticks of 0.1 seconds and renews its Date header every 10 ticks.
            counter += 10
            _, pending = await asyncio.wait([asyncio.ensure_future(halt.wait())], timeout=1)
            for waiting in pending:
                waiting.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Stop accepting, then let accepted sockets become connections.  Once the server is closed,
        # asyncio would forget such a socket and leave it open.
        for listener in [sock for server in self.servers for sock in server.sockets]:
            asyncio.get_running_loop().remove_reader(listener)
        for _ in range(ACCEPTING_ROUNDS):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # let the protocols see the abort
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.gather(*self.server_state.tasks, return_exceptions=True)

    def halt(self) -> None:
        """Stop the server; called from another thread."""
        if self._loop is not None and self._halt is not None:
            with suppress(RuntimeError):  # the loop is closed: the server has failed already
                self._loop.call_soon_threadsafe(self._halt.set)


class _ServerThread:
    """One run of the server: listens from its creation, serves from ``start()`` to ``stop()``."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # Name the protocol, because asyncio sets TCP_NODELAY only if it is named.  Without
        # TCP_NODELAY, each response waits 40 ms for the client's acknowledgement of its headers.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":  # on Windows, two servers could listen on one port with it
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws=websocket_class(),
            # The hub refuses a large frame itself, once it has read it.  uvicorn does not read it
            # first, so the client would meet a reset connection instead of the reason.
            ws_max_size=4 * MAX_FRAME_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=None,  # clients do that
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=60,
        )
        self._server = _Server(config)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="cfqueues-emulator", daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.ready.wait(0.05):
            if not self._thread.is_alive():
                raise RuntimeError("the emulator did not start") from self._failure

    def stop(self) -> None:
        self._server.halt()
        self._thread.join()
        self._socket.close()
        if self._failure is not None:
            raise RuntimeError("the emulator did not stop as it should") from self._failure

    def _run(self) -> None:
        # Not the loop of `asyncio.run`: on Windows, that one has no `remove_reader`.
        loop = asyncio.SelectorEventLoop()
        try:
            loop.run_until_complete(self._server.serve(sockets=[self._socket]))
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as failure:  # noqa: BLE001 - start() raises it in the caller's thread
            self._failure = failure
        finally:
            loop.close()


def _check_settings(settings: Mapping[str, Any]) -> None:
    unknown = set(settings) - {"delivery_delay", "delivery_paused", "message_retention_period"}
    if unknown:
        raise TypeError(f"a queue has no setting {min(unknown)!r}")


def _check_latency(seconds: Seconds) -> None:
    low, high = seconds if isinstance(seconds, tuple) else (seconds, seconds)
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"latency must be seconds or the bounds of a random time, not {seconds}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
