"""The codec server of the Temporal UI: decrypts payloads for people who may see them.

It listens on an address of its own and asks for no key (the UI has none of ours to send), so that address is for
the network of operators alone. It only decrypts: nothing can be encrypted with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Generator

from google.protobuf.json_format import MessageToDict, Parse, ParseError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payloads
from temporalio.converter import PayloadCodec

from activities.settings import Settings
from activities.temporal.payload_codec import AesGcmCodec, EncryptedPayloadError
from api.http.server import listen_on, serve

_MAX_BYTES = 16 << 20
"""More than Temporal lets a history event hold."""


def create_codec_app(codec: PayloadCodec, origins: list[str]) -> Starlette:
    """Args: ``origins`` are those of the UI, for example ``http://127.0.0.1:8233``."""

    async def decode(request: Request) -> Response:
        # CORS keeps a page from reading an answer. One whose name was made to point here needs no CORS.
        if request.headers.get("origin", origins[0]) not in origins:
            return JSONResponse({"message": "the origin is not listed in EVERBATCH_CODEC_ORIGINS"}, 403)
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BYTES:
                return JSONResponse({"message": "too large"}, 413)
        try:
            payloads = Parse(bytes(body), Payloads())
            await codec.decode_wrapper(payloads)
        except (ParseError, UnicodeDecodeError):
            return JSONResponse({"message": "not a list of payloads"}, 400)
        except EncryptedPayloadError as error:
            return JSONResponse({"message": str(error)}, 400)
        return JSONResponse(MessageToDict(payloads))

    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["POST"], allow_headers=["*"])
    return Starlette(routes=[Route("/decode", decode, methods=["POST"])], middleware=[cors])


@contextlib.contextmanager
def codec_listener(settings: Settings, default: str = "") -> Generator[socket.socket | None]:
    """Where the codec server is to listen; ``None`` if it is not asked for.

    Raises:
        PortTakenError: the address cannot be had.
    """
    address = settings.codec_address or (default if settings.payload_keys else "")
    if not address:
        yield None
        return
    with listen_on(address, "EVERBATCH_CODEC_ADDRESS") as listener:
        yield listener


@contextlib.asynccontextmanager
async def codec_server(
    settings: Settings, listener: socket.socket | None, ui_url: str | None = None
) -> AsyncGenerator[None]:
    """Serve the codec while the block runs, if there is a listener for it."""
    if listener is None:
        yield
        return
    app = create_codec_app(AesGcmCodec(settings.payload_keys), [*settings.ui_origins, *filter(None, [ui_url])])
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(app, listener, stop))
    try:
        yield
    finally:
        stop.set()
        await serving
