"""An HTTP server of one file that breaks connections: what a download has to survive."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

Change = Callable[["FileServer"], object]


@dataclass
class FileServer:
    """Serves ``content`` under every path."""

    content: bytes
    tag: str | None = '"v1"'
    breaks_after: list[int] = field(default_factory=list[int])
    """Bytes of the body after which the connection is reset, one for each answer; then none."""
    before: list[Change] = field(default_factory=list[Change])
    """What happens before each answer."""
    ranges: bool = True
    lies: dict[str, str] = field(default_factory=dict[str, str])
    """Headers of 206 answers that are not as they should be; an empty one is left out."""
    encoding: str | None = None
    chunked: bool = False
    asked: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """The headers of each request."""
    sent: int = 0
    """Bytes of bodies."""

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append({name.lower(): value for name, value in handler.headers.items()})
        if self.before:
            self.before.pop(0)(self)
        status, headers, body = self._whole_or_part(handler)
        handler.send_response(status)
        if self.chunked and status != 416:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        limit = self.breaks_after.pop(0) if self.breaks_after and status != 416 else None
        body = body[:limit]
        self.sent += len(body)
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) if self.chunked and status != 416 else body)
        handler.wfile.flush()
        if limit is not None:
            handler.connection.shutdown(socket.SHUT_WR)  # what is sent arrives, and the end of it is missing
            handler.close_connection = True
        elif self.chunked and status != 416:
            handler.wfile.write(b"0\r\n\r\n")

    def _whole_or_part(self, handler: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        headers = {"ETag": self.tag} if self.tag else {}
        if self.encoding:
            headers["Content-Encoding"] = self.encoding
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if not match or not self.ranges or handler.headers.get("If-Range", self.tag) != self.tag:
            return 200, headers, self.content
        start, total = int(match[1]), len(self.content)
        if start >= total:
            return 416, {"Content-Range": f"bytes */{total}"} | headers, b""
        headers |= {"Content-Range": f"bytes {start}-{total - 1}/{total}"} | self.lies
        return 206, {name: value for name, value in headers.items() if value}, self.content[start:]
