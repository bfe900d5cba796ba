"""A real Chromium, driven over its own debugging protocol, and a real server with a scripted model behind it."""

import asyncio
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sekisho.console.assets import SECURITY_HEADERS, asset

KEY = "sk-test-4f1d"
PATIENCE_S = 60.0
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_KEYS = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "Tab": 9, "/": 191, "k": 75, " ": 32}
_MODIFIERS = {"alt": 1, "ctrl": 2, "meta": 4, "shift": 8}

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Api:
    """The scripted server: the page's files as the gateway sends them, and a model that says what a test tells it."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.models = ["sekisho-mini", "tall-model"]
        self.answer: Answer = Api.say("Hello")
        self.left = asyncio.Event()  # a client went away in mid-answer

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._file)
        app.router.add_get("/static/{name}", self._file)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _file(self, request: web.Request) -> web.Response:
        found = asset(request.match_info.get("name", "index.html"))
        if found is None:
            return web.Response(status=404)
        return web.Response(body=found.body, headers={"content-type": found.content_type, **SECURITY_HEADERS})

    async def _models(self, request: web.Request) -> web.Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Api.problem(401, "invalid_api_key", "This key is not known.")
        return web.json_response({"object": "list", "data": [{"id": each, "object": "model"} for each in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        body = await request.json()
        self.requests.append(body)
        try:
            return await self.answer(request, body)
        except (ConnectionResetError, asyncio.CancelledError):
            self.left.set()
            raise

    @staticmethod
    def problem(status: int, code: str, message: str, **headers: str) -> web.Response:
        """An error as the gateway tells it."""
        error = {"message": message, "type": "x", "param": None, "code": code, "id": "err_0123456789ab"}
        return web.json_response(
            {"error": error}, status=status, headers={k.replace("_", "-"): headers[k] for k in headers}
        )

    @staticmethod
    def chunk(delta: dict[str, Any], finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
        choices = [] if usage else [{"index": 0, "delta": delta, "finish_reason": finish}]
        body = {"id": "c", "object": "chat.completion.chunk", "choices": choices, "usage": usage}
        return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()

    @staticmethod
    async def open(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        return response

    @staticmethod
    def ending(finish: str = "stop", tokens: int = 23) -> bytes:
        usage = {"prompt_tokens": 57, "completion_tokens": tokens, "total_tokens": 57 + tokens}
        return Api.chunk({}, finish) + Api.chunk({}, usage=usage) + b"data: [DONE]\n\n"

    @staticmethod
    def say(*pieces: str, **deltas: str) -> Answer:
        """An answer in the given pieces of content."""

        async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            response = await Api.open(request)
            await response.write(Api.chunk({"role": "assistant", "content": "", **deltas}))
            for piece in pieces:
                await response.write(Api.chunk({"content": piece}))
            await response.write(Api.ending())
            return response

        return answer


class Page:
    """One tab. Waits poll the page itself; nothing sleeps for a guessed time."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())
        self._target = ""
        self._session: str | None = None
        self._loaded = asyncio.Event()
        self.problems: list[str] = []
        self.urls: list[str] = []

    async def _read(self) -> None:
        async for message in self._socket:
            data = json.loads(message.data)
            if (waiting := self._waiting.pop(data.get("id", 0), None)) is not None:
                waiting.set_result(data)
            else:
                self._note(data.get("method", ""), data.get("params", {}))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["source"] != "network":
            self.problems.append(json.dumps(params["entry"]))  # Content-Security-Policy reports come here
        elif method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiting
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        reply = await asyncio.wait_for(waiting, PATIENCE_S)
        assert "error" not in reply, f"{method}: {reply['error']}"
        result: dict[str, Any] = reply["result"]
        return result

    async def open(self, language: str, width: int, height: int, dark: bool) -> None:
        clipboard = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        await self.call("Browser.grantPermissions", permissions=clipboard)
        self._target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        attached = await self.call("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        agent = (await self.call("Runtime.evaluate", expression="navigator.userAgent"))["result"]["value"]
        await self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)
        await self.size(width, height)

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def close(self) -> None:
        self._session = None
        await self.call("Target.closeTarget", targetId=self._target)
        self._reader.cancel()
        await self._socket.close()

    async def goto(self, url: str) -> None:
        await self._load("Page.navigate", url=url)
        there = f"location.href.split('#')[0] === {json.dumps(url.partition('#')[0])}"
        await self.until(f"{there} && document.readyState === 'complete'")  # no earlier page's end was heard

    async def reload(self) -> None:
        await self._load("Page.reload")

    async def _load(self, method: str, **params: Any) -> None:
        self._loaded.clear()
        await self.call(method, **params)
        await asyncio.wait_for(self._loaded.wait(), PATIENCE_S)  # module scripts have run by then

    async def eval(self, expression: str) -> Any:
        reply = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Waits until the expression holds; its last value is in the failure."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := await self.eval(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}; page: {await self.text()}; {self.problems}"
            await asyncio.sleep(0.02)
        return value

    async def text(self, selector: str = "body") -> str:
        shown: str = await self.eval(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return shown

    async def type(self, words: str) -> None:
        await self.call("Input.insertText", text=words)

    async def press(self, key: str, *modifiers: str, code: int | None = None, ime: bool = False) -> None:
        """One key, down and up. `ime`: the input method takes it, so that it types nothing itself."""
        common = {
            "key": key,
            "windowsVirtualKeyCode": _KEYS[key] if code is None else code,
            "modifiers": sum(_MODIFIERS[each] for each in modifiers),
        }
        words = {"Enter": "\r", "/": "/", " ": " "}.get(key)
        typed = {"text": words} if words and not ime and not {"ctrl", "meta", "alt"} & set(modifiers) else {}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **common, **typed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def click(self, selector: str) -> None:
        box = await self.until(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            "e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            "return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def pass_gate(self, url: str) -> None:
        """Opens the page and enters the key, by keyboard."""
        await self.goto(url)
        await self.until("document.activeElement.id === 'key'")
        await self.type(KEY)
        await self.press("Enter")
        await self.until("document.activeElement.id === 'composer-text'")

    async def ask(self, words: str) -> None:
        """Types into the message field, once the focus is there: a dialog that closes gives it back a moment later."""
        await self.until("document.activeElement.id === 'composer-text'")
        await self.type(words)
        await self.press("Enter")

    async def answered(self, count: int = 1) -> str:
        """Waits for that many finished answers; the text of the last one."""
        done = "[...document.querySelectorAll('.answer[aria-busy=false]')]"
        await self.until(f"{done}.length === {count} && document.querySelector('#stop').hidden")
        return await self.text(".answer:last-child .prose")


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """The scripted server on a port of its own."""
    scripted = Api()
    runner = web.AppRunner(scripted.app(), handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    scripted.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    yield scripted
    await runner.cleanup()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The debugging address of one Chromium for all tests; each has an origin, so storage, of its own."""
    program = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if program is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    profile: Path = tmp_path_factory.mktemp("chromium")
    child = subprocess.Popen(
        [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"ws://127.0.0.1:{_debugging_port(profile, child)}"
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _debugging_port(profile: Path, child: subprocess.Popen[bytes]) -> str:
    note = profile / "DevToolsActivePort"
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and child.poll() is None:
        if note.exists() and len(lines := note.read_text().splitlines()) == 2:
            return lines[0] + lines[1]
        time.sleep(0.05)
    raise RuntimeError(f"Chromium did not open its debugging port (exit {child.poll()})")


Opener = Callable[..., Awaitable[Page]]


@pytest.fixture
async def open_page(chromium: str) -> AsyncIterator[Opener]:
    """Opens tabs; after the test every one of them must have been free of errors and policy violations."""
    pages: list[Page] = []
    async with aiohttp.ClientSession() as session:

        async def opener(language: str = "en-GB", width: int = 1100, height: int = 760, dark: bool = False) -> Page:
            page = Page(await session.ws_connect(chromium, max_msg_size=0))
            pages.append(page)
            await page.open(language, width, height, dark)
            return page

        yield opener
        for page in pages:
            await page.close()
    assert [problem for page in pages for problem in page.problems] == []


@pytest.fixture
async def page(open_page: Opener) -> Page:
    """An English tab."""
    return await open_page()
