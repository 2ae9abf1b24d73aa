"""Headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
from collections.abc import AsyncGenerator
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.integration.stack import until

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ADDRESS: Final = re.compile(rb"DevTools listening on (ws://\S+)")
_OPTIONS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        "--remote-debugging-port=0",
    ),
)


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. Whatever it reports as an error is in ``errors``."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, folder: Path) -> None:
        self._socket = socket
        self._folder = folder
        self._ids = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""
        self.errors: list[str] = []
        self.requested: list[str] = []
        """URLs that it has asked for."""

    async def listen(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if answer := self._answers.pop(said.get("id", 0), None):
                if not answer.done():
                    answer.set_result(said)
                continue
            match said.get("method"), said.get("params"):
                case "Runtime.exceptionThrown", params:
                    self.errors.append(json.dumps(params["exceptionDetails"])[:500])
                case "Log.entryAdded", params if params["entry"]["level"] == "error":
                    self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
                case "Network.requestWillBeSent", params:
                    self.requested.append(params["request"]["url"])
                case _:
                    pass

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        said = await asyncio.wait_for(self._answers[number], 30)
        assert "error" not in said, said
        return said["result"]

    async def attach(self) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self._folder))

    async def open(self, url: str) -> None:
        await self.send("Page.navigate", url=url)

    async def eval(self, code: str) -> Any:
        result = await self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, code: str, seconds: float = 20) -> Any:
        """Wait until an expression is true, and return it."""

        failures: list[AssertionError] = []

        async def probe() -> Any:
            try:
                return await self.eval(f"((value) => value instanceof Node ? true : value)({code})")
            except AssertionError as failure:  # while a page is loading it has no body
                failures[:] = [failure]
                return None

        try:
            return await until(probe, code, seconds)
        except AssertionError:
            raise AssertionError(f"not so: {code}\n{await self.text()}\n{self.errors} {failures}") from None

    async def text(self) -> str:
        return await self.eval("document.body.innerText")

    async def sees(self, words: str, seconds: float = 20) -> None:
        await self.until(f"document.body.innerText.includes({json.dumps(words)})", seconds)

    async def click(self, words: str, among: str = "button, a", hold: float = 0.0) -> None:
        """Click what has these words, where it is, as a mouse does, and hold the button for so many seconds."""
        find = (
            f"[...document.querySelectorAll({json.dumps(among)})].find((one) => "
            f"one.checkVisibility() && !one.disabled && one.textContent.trim().startsWith({json.dumps(words)}))"
        )
        # In one step: what is drawn anew may be elsewhere a moment later.
        place = await self.until(
            f"(() => {{ const one = {find}; if (!one) return null; one.scrollIntoView({{block: 'center'}}); "
            "const box = one.getClientRects()[0]; return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1
            )
            await asyncio.sleep(hold if kind == "mousePressed" else 0)

    async def type(self, selector: str, text: str) -> None:
        await self.until(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
        await self.eval(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.send("Input.insertText", text=text)

    async def choose_file(self, selector: str, path: Path) -> None:
        root = await self.send("DOM.getDocument")
        node = await self.send("DOM.querySelector", nodeId=root["root"]["nodeId"], selector=selector)
        await self.send("DOM.setFileInputFiles", nodeId=node["nodeId"], files=[str(path)])

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """How wide its window is, and whether its user likes it dark."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        shot = await self.send("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))

    async def downloaded(self, name: str) -> bytes:
        async def probe() -> bool:
            return (self._folder / name).exists()

        await until(probe, f"{name} is downloaded")
        return (self._folder / name).read_bytes()


@contextlib.asynccontextmanager
async def chromium(binary: str, folder: Path) -> AsyncGenerator[Page]:
    """A tab in a browser of its own, with a profile in ``folder``; downloads come there too."""
    process = await asyncio.create_subprocess_exec(
        binary, *_OPTIONS, f"--user-data-dir={folder / 'profile'}", "about:blank", stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr
    try:
        address = None
        while not address:
            line = await asyncio.wait_for(process.stderr.readline(), 60)
            assert line, "Chromium has ended"
            address = _ADDRESS.search(line)
        draining = asyncio.create_task(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address[1].decode(), max_msg_size=0) as socket,
        ):
            page = Page(socket, folder)
            listening = asyncio.create_task(page.listen())
            await page.attach()
            yield page
            listening.cancel()
        draining.cancel()
    finally:
        process.kill()
        await process.wait()
