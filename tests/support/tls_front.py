"""TLS before a server that has none."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading

from support.scripted import CERTIFICATE


class TlsFront:
    """Carries what arrives encrypted at its `port` to the server's, and back.

    Each connection has one thread: an SSL socket must not be read and written at once.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATE)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=[plain], daemon=True).start()

    def _carry(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),  # either side has closed, or does not trust us
            self._context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", self._server_port)) as server,
        ):
            while True:
                ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                for source in ready:
                    target = server if source is client else client
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    target.sendall(data)

    def __enter__(self) -> TlsFront:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
