"""One WebSocket to a hub: it sends and receives texts, and blocks for seconds at most.

``websockets`` implements the protocol, and this file uses the socket.  So it needs no thread and no
lock, and nothing special for gevent and eventlet.  Only one thread at a time may use it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import time
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from ..errors import AuthenticationFailed, ConfigurationError, ConnectionFailed
from .readable import readable

HUB_OPERATION_SECONDS: Final = 5.0
"""Maximum time for the hub to take what is sent, and to answer one operation."""

MAX_FRAME_BYTES: Final = 1024 * 1024
"""Maximum size of what the hub sends at once; see ``docs/hub.md``."""

RECEIVE_BYTES: Final = 65_536
"""How much is read from the socket at once.  A TLS record is smaller, so no part of it stays in the
TLS layer, where waiting for the socket would not notice it."""


class Address(NamedTuple):
    """Where a namespace of a hub is."""

    host: str
    port: int
    is_secure: bool
    namespace: str

    @property
    def url(self) -> str:
        """The URL of its WebSocket."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "wss" if self.is_secure else "ws"
        return f"{scheme}://{host}:{self.port}/hub/{quote(self.namespace, safe='')}"


def checked_token(token: str) -> str:
    """Return *token* if a header can carry it.

    Raises:
        ConfigurationError: Otherwise.
    """
    if not re.fullmatch("[!-~]+", token):
        raise ConfigurationError(
            "the URL of the hub needs a token in the password's place, of visible ASCII "
            "characters: cfhub://:TOKEN@HOST/NAMESPACE"
        )
    return token


class HubSocket:
    """An open WebSocket.

    Args:
        address: Where to connect to.
        token: The token of the hub.
        seconds: Maximum time for connecting.

    Attributes:
        heard_at: When the hub last sent anything, in monotonic seconds.
        pongs: How many pings it has answered.

    Raises:
        ConnectionFailed: The address does not answer, or not as a WebSocket.
        AuthenticationFailed: The hub does not know the token.
        ConfigurationError: The token cannot be sent.
    """

    def __init__(self, address: Address, token: str, seconds: float) -> None:
        self.address = address
        self.heard_at = time.monotonic()
        self.pongs = 0
        self._parts: list[bytes] = []
        self._pid = os.getpid()
        self._protocol = ClientProtocol(parse_uri(address.url), max_size=MAX_FRAME_BYTES)
        self._is_connected = False  # before that, nothing of a message is sent
        self._socket = self._open(seconds)
        try:
            self._socket.settimeout(seconds)
            self._shake_hands(token, time.monotonic() + seconds)
            self._socket.settimeout(HUB_OPERATION_SECONDS)
            self._is_connected = True
        except OSError as error:
            raise self._lost(error) from error
        finally:
            if not self._is_connected:
                self._socket.close()

    def _open(self, seconds: float) -> socket.socket:
        host, port, is_secure, _ = self.address
        try:
            plain = socket.create_connection((host, port), timeout=seconds)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not is_secure:
                return plain
            return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        except OSError as error:
            raise self._lost(error) from error

    def _shake_hands(self, token: str, deadline: float) -> None:
        request = self._protocol.connect()
        request.headers["Authorization"] = f"Bearer {checked_token(token)}"
        self._protocol.send_request(request)
        self._transmit()
        while time.monotonic() < deadline:
            for event in self._read():
                if isinstance(event, Response):
                    self._check(event)
                    return
                raise ConnectionFailed(f"{self._where} does not answer as a WebSocket server")
            if self._protocol.handshake_exc is not None:
                self._check(None)
        raise ConnectionFailed(f"{self._where} did not answer in time")

    def _check(self, response: Response | None) -> None:
        failure = self._protocol.handshake_exc
        if failure is None:
            return
        status = response.status_code if response is not None else 0
        if isinstance(failure, InvalidStatus):
            status = failure.response.status_code
        if status in (401, 403):
            raise AuthenticationFailed(
                f"{self._where} refused the token with status {status}: use one of its secrets "
                "TOKEN_... in the URL's password",
                status=status,
            )
        why = "its emulator lacks the package websockets" if status == 501 else "is it a hub?"
        raise ConnectionFailed(
            f"{self._where} does not accept a WebSocket (status {status or 'unknown'}): {why}",
            status=status or None,
        )

    @property
    def _where(self) -> str:
        return f"the hub at {self.address.host}:{self.address.port}"

    def _lost(self, error: Exception | None, what: str = "") -> ConnectionFailed:
        why = what or f"{type(error).__name__}: {error}"
        return ConnectionFailed(
            f"no connection to {self._where}: {why}",
            delivered="unknown" if self._is_connected else "no",
        )

    def fileno(self) -> int:
        """Return the descriptor, which is readable when something arrives; -1 if it is closed."""
        return self._socket.fileno()

    # Sending

    def send(self, text: str) -> None:
        """Send a text.

        Raises:
            ConnectionFailed: The connection is lost, or the hub does not read.
        """
        self._check_process()
        try:
            self._protocol.send_text(text.encode())
        except WebSocketException as error:
            raise self._lost(error, self._end()) from error
        self._transmit()

    def ping(self) -> None:
        """Ask the hub for a sign of life; it costs nothing and does not wake the hub."""
        self._check_process()
        try:
            self._protocol.send_ping(b"")
        except WebSocketException as error:
            raise self._lost(error, self._end()) from error
        self._transmit()

    def _transmit(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._socket.sendall(data)
        except OSError as error:
            raise self._lost(error) from error

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise self._lost(None, "it belongs to the parent of this process")

    # Receiving

    def receive(self, seconds: float) -> list[str]:
        """Return the texts that arrive within *seconds*; at once if some have arrived.

        Raises:
            ConnectionFailed: The connection is lost.
        """
        self._check_process()
        texts: list[str] = []
        if self.fileno() < 0:
            raise self._lost(None, "it is closed")
        if not readable([self.fileno()], max(0.0, seconds)):
            return texts
        for event in self._read():
            if isinstance(event, Frame):
                self._take(event, texts)
        if not texts and (why := self._end()):
            raise self._lost(None, why)
        return texts

    def _read(self) -> list[Any]:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except (TimeoutError, ssl.SSLWantReadError):
            return []
        except OSError as error:
            raise self._lost(error) from error
        if not data:
            raise self._lost(None, self._end() or "the hub has closed it")
        self.heard_at = time.monotonic()
        try:
            self._protocol.receive_data(data)
        except WebSocketException as error:
            raise self._lost(error) from error
        self._transmit()  # answers to a ping or a close
        return list(self._protocol.events_received())

    def _take(self, frame: Frame, texts: list[str]) -> None:
        if frame.opcode is Opcode.PONG:
            self.pongs += 1
        elif frame.opcode in (Opcode.TEXT, Opcode.CONT):
            self._parts.append(bytes(frame.data))
            if frame.fin:
                text, self._parts = b"".join(self._parts), []
                texts.append(text.decode())

    def _end(self) -> str:
        """Return why the hub has ended the connection."""
        if self._protocol.parser_exc is not None:
            return f"what it sends is not valid: {self._protocol.parser_exc}"
        closed = self._protocol.close_rcvd
        return f"the hub has closed it ({closed.code} {closed.reason})" if closed else ""

    # Closing

    def close(self) -> None:
        """Close the connection; in a forked child, only this process's part of it."""
        if os.getpid() == self._pid and self.fileno() >= 0:
            with contextlib.suppress(OSError, ConnectionFailed, WebSocketException):
                self._socket.settimeout(0)  # nobody waits for this
                self._protocol.send_close(1000)
                self._transmit()
        self._socket.close()
