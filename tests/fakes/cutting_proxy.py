"""A TCP proxy that breaks each connection after some bytes of answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field


@dataclass
class CuttingProxy:
    host: str
    port: int
    limit: int
    """Bytes that the server may send over one connection."""
    cut: int = 0
    """Connections that were broken."""
    address: str = ""
    serving: list[asyncio.Task[None]] = field(default_factory=list[asyncio.Task[None]])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, to_server = await asyncio.open_connection(self.host, self.port)
        sending = asyncio.create_task(_copy(reader, to_server))
        left = self.limit
        try:
            while left and (data := await answers.read(min(left, 65_536))):
                left -= len(data)
                writer.write(data)
                await writer.drain()
            self.cut += not left
        finally:
            sending.cancel()
            for stream in (writer, to_server):
                stream.close()
                with contextlib.suppress(OSError):
                    await stream.wait_closed()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.append(asyncio.create_task(self._serve(reader, writer)))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def cutting_proxy(port: int, limit: int) -> AsyncGenerator[CuttingProxy]:
    """In front of a server on this machine."""
    proxy = CuttingProxy("127.0.0.1", port, limit)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    async with server:
        proxy.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield proxy
        for connection in proxy.serving:
            connection.cancel()
        await asyncio.gather(*proxy.serving, return_exceptions=True)
