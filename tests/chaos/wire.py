"""The network between everybody and the emulator: TLS, and what happens to bytes on their way.

::

    client ──TLS──► drops, delays, truncates, corrupts ──TLS──► the end of TLS ──► emulator

The emulator speaks plain HTTP.  Over that a flipped byte may change a message without anybody's
noticing; over TLS, which is how Cloudflare is spoken to, it breaks the connection.  So the bytes
that are spoilt here are those of TLS, in both directions.

``python -m chaos.wire SERVER_PORT SEED`` prints its port, and then reads orders from its standard
input, JSON by line: ``{"rate": 0.01}`` spoils a hundredth of what passes, ``{"down": 1.5}`` cuts
all connections and takes no new ones for so many seconds.  It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import sys
from asyncio import StreamReader, StreamWriter

from support.scripted import CERTIFICATE

from .ledger import write

CHUNK = 1 << 16
LONGEST_DELAY_SECONDS = 1.0


class Wire:
    def __init__(self, server_port: int, seed: int) -> None:
        self.rate = 0.0
        self.down = False
        self._server_port = server_port
        self._tls_port = 0
        self._chance = random.Random(seed)
        self._open: set[StreamWriter] = set()

    async def run(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE)
        inner = await asyncio.start_server(self._decrypt, "127.0.0.1", 0, ssl=context)
        self._tls_port = inner.sockets[0].getsockname()[1]
        outer = await asyncio.start_server(self._cut, "127.0.0.1", 0, backlog=512)
        print(outer.sockets[0].getsockname()[1], flush=True)
        orders = StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
        )
        waking: set[asyncio.Task[None]] = set()
        while line := await orders.readline():
            order = json.loads(line)
            self.rate = order.get("rate", self.rate)
            if "down" in order:
                write("cut", "outage")
                self.down = True
                for writer in list(self._open):
                    writer.transport.abort()
                waking = {task for task in waking if not task.done()}
                waking.add(asyncio.create_task(self._up_again(order["down"])))

    async def _up_again(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.down = False

    async def _cut(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        await self._join(reader, writer, self._tls_port, spoils=True)

    async def _decrypt(self, reader: StreamReader, writer: StreamWriter) -> None:
        await self._join(reader, writer, self._server_port, spoils=False)

    async def _join(
        self, reader: StreamReader, writer: StreamWriter, port: int, *, spoils: bool
    ) -> None:
        """Carry bytes both ways until one side ends."""
        self._open.add(writer)
        onward = None
        try:
            back, onward = await asyncio.open_connection("127.0.0.1", port)
            self._open.add(onward)
            ways = [(reader, onward), (back, writer)]
            carriers = [asyncio.create_task(self._carry(*way, spoils=spoils)) for way in ways]
            _, others = await asyncio.wait(carriers, return_when=asyncio.FIRST_COMPLETED)
            for other in others:
                other.cancel()
            await asyncio.gather(*carriers, return_exceptions=True)
        except OSError:
            pass  # the emulator is dead just now: the client finds its connection closed
        finally:
            for end in (writer, onward):
                if end is not None:
                    self._open.discard(end)
                    end.transport.abort() if spoils else end.close()

    async def _carry(self, reader: StreamReader, writer: StreamWriter, *, spoils: bool) -> None:
        while chunk := await reader.read(CHUNK):
            if spoils and self._chance.random() < self.rate:
                kind = self._chance.choice(("drop", "delay", "truncate", "corrupt"))
                write("cut", kind)
                if kind == "drop":
                    return
                if kind == "delay":
                    await asyncio.sleep(self._chance.uniform(0, LONGEST_DELAY_SECONDS))
                elif kind == "truncate":
                    writer.write(chunk[: len(chunk) // 2])
                    await writer.drain()
                    return
                else:
                    spoilt = bytearray(chunk)
                    spoilt[self._chance.randrange(len(spoilt))] ^= 1 << self._chance.randrange(8)
                    chunk = bytes(spoilt)
            writer.write(chunk)
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(Wire(int(sys.argv[1]), int(sys.argv[2])).run())
