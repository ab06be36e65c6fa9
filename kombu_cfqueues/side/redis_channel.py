"""What a channel at a Redis control broker does differently from Kombu's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def open_files(poller: Any) -> list[int]:
    """Remove closed files from Kombu's poller, and return the open ones.

    A closed file would look readable forever, and its number may belong to another file by now.
    """
    sockets: dict[Any, Any] = poller._chan_to_sock
    for key in [key for key, sock in sockets.items() if sock.fileno() < 0]:
        del sockets[key]
    files = {sock.fileno() for sock in sockets.values()}
    for file in poller._fd_to_chan.keys() - files:
        del poller._fd_to_chan[file]
    return list(files)


def control_channel(base: Any) -> Any:
    """Return a channel class for Redis.

    The class is defined in here, because only applications that use Redis can import its base.

    Args:
        base: Kombu's class.
    """
    from redis.backoff import NoBackoff  # noqa: PLC0415  only where Redis is used
    from redis.retry import Retry  # noqa: PLC0415

    class ControlChannel(base):  # type: ignore[misc]
        """A channel that does not retry for seconds, and can publish many messages at once."""

        _one_client: Any = None
        _pipeline: Any = None
        _gathers = False

        def _connparams(self, *given: Any, **more: Any) -> Any:
            return {**super()._connparams(*given, **more), "retry": Retry(NoBackoff(), 0)}

        def _create_client(self, asynchronous: bool = False) -> Any:
            if asynchronous:
                return super()._create_client(asynchronous=True)
            # Kombu makes a client for each command, which takes as long as the command.
            if self._one_client is None:
                self._one_client = super()._create_client()
            return self._one_client

        @contextlib.contextmanager
        def one_request(self) -> Iterator[None]:
            """At its end, send what the block published to fanout exchanges, in one request.

            Otherwise the thread would wait for an answer, and for the GIL, for each message.
            """
            with self._create_client().pipeline(transaction=False) as pipeline:
                self._pipeline = pipeline
                try:
                    yield
                finally:
                    self._pipeline = None
                pipeline.execute()

        def _put_fanout(self, *given: Any, **more: Any) -> None:
            self._gathers = self._pipeline is not None
            try:
                super()._put_fanout(*given, **more)
            finally:
                self._gathers = False

        def conn_or_acquire(self, client: Any = None) -> Any:
            if client is None and self._gathers:
                return contextlib.nullcontext(self._pipeline)
            return super().conn_or_acquire(client)

    return ControlChannel
