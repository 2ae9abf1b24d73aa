"""The codec server of the Temporal UI: decrypts payloads for people who may see them.

It listens on an address of its own and requires no API key, because the UI has none to send. So only the operators'
network may have access to that address. The server only decrypts: nothing can be encrypted with it.
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
"""Maximum size of a request in bytes, which is more than Temporal allows for a history event."""


def create_codec_app(codec: PayloadCodec, origins: list[str]) -> Starlette:
    """Return the codec server. Args: ``origins`` are those of the UI, for example ``http://127.0.0.1:8233``."""

    async def decode(request: Request) -> Response:
        # CORS keeps pages of other origins from reading a response, but not a page whose name was made to resolve to
        # this machine (DNS rebinding).
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
    """Yield a listening socket for the codec server, or ``None`` if the settings ask for none.

    Args: ``default`` is the address used if payloads are encrypted and the settings name no address.

    Raises:
        PortTakenError: the address is invalid or already in use.
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
    """Run the codec server while the block runs, if there is a listener. ``ui_url`` is one more allowed origin."""
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
