"""A proxy that lets its clients through to one server, wherever they want to go."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class Proxy:
    """Speaks CONNECT, or SOCKS if the client begins so (RFC 1928).

    Args:
        port: The server's, on this machine.

    Attributes:
        asked: What clients asked for.
        port: The server's; may be replaced, for further connections.
    """

    def __init__(self, port: int) -> None:
        self.asked: list[bytes] = []
        self.port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.netloc = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:  # noqa: PYI034  typing has Self from 3.11 on
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(ConnectionRefusedError),  # the server is away
            client,
            socket.create_connection(("127.0.0.1", self.port)) as server,
        ):
            asked = client.recv(1 << 16)
            if asked.startswith(b"\x05"):
                client.sendall(b"\x05\x00")
                asked = client.recv(1 << 16)
                answer = b"\x05\x00\x00\x01" + bytes(6)
            else:
                answer = b"HTTP/1.1 200 Connection established\r\n\r\n"
            self.asked.append(asked)
            client.sendall(answer)
            back = threading.Thread(target=_carry, args=(server, client), daemon=True)
            back.start()
            _carry(client, server)
            back.join(10)


def _carry(source: socket.socket, target: socket.socket) -> None:
    """Carry all bytes, then the end: a reset too."""
    with contextlib.suppress(OSError):  # the other side has gone
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)
        except ConnectionResetError:
            target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            target.shutdown(socket.SHUT_RD)  # ends the other thread's `recv`; sends nothing
