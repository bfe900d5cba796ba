"""Open WebUI from PyPI, set up with the lines that `sekisho client openwebui` prints, in front of a real gateway.

The installation takes 3 to 8 GB and minutes, so these tests have a marker and a make target of their own.
"""

import asyncio
import base64
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import httpx
import msgspec
import pytest
from gateway_harness import LiveGateway
from kept_port import kept_port
from local_model import served
from python_environment import BUILD, python_environment

from sekisho.core.turn import Text
from sekisho.engines import builtin
from sekisho.engines.config import ModelConfig
from sekisho.engines.fake import FakeEngine
from sekisho.store import KeySpec

pytestmark = [pytest.mark.openwebui, pytest.mark.timeout(1800)]

# The newest PyTorch comes from PyPI with 4 GB of CUDA; of this one there are builds for processors, which pip prefers
# where it is told of them (PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, or PIP_FIND_LINKS).
PACKAGES = ("open-webui==0.12.*", "torch==2.13.0")
START_TIMEOUT_S = 300
EMAIL, PASSWORD = "taro@example.com", "correct horse 1"
PICTURE = BUILD / "openwebui.png"


def load_beside(folder: str) -> ModuleType:
    """The fixtures of another folder of tests."""
    source = Path(__file__).parents[1] / folder / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_conftest", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BROWSER = load_beside("console")
chromium = BROWSER.chromium


@pytest.fixture(scope="module")
def live(launch: Callable[..., LiveGateway]) -> LiveGateway:
    """A gateway whose fake model has room for the tools that Open WebUI offers it, and one that has not."""
    roomy = ModelConfig(name="fake", engine="fake", slots=8, options={"context_words": 100_000})
    return launch(roomy, ModelConfig(name="small", engine="fake", options={"context_words": 20}))


@pytest.fixture(scope="module")
def engine(live: LiveGateway) -> FakeEngine:
    engine = live.gateway.roster.entries["fake"].engine
    assert isinstance(engine, FakeEngine)
    return engine


class OpenWebUi(msgspec.Struct, frozen=True):
    """A running one, and its first user, who is its administrator. `key_id` is the key that it calls us with."""

    url: str
    token: str
    key: str
    key_id: str

    def __repr__(self) -> str:
        return f"OpenWebUi({self.url})"

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def connect(self, base_url: str, key: str) -> None:
        """As the page Admin Panel, Settings, Connections does."""
        settings = {"OPENAI_API_BASE_URLS": [base_url], "OPENAI_API_KEYS": [key], "OPENAI_API_CONFIGS": {}}
        with self.client() as client:
            done = client.post("/openai/config/update", json={"ENABLE_OPENAI_API": True, **settings})
            assert done.status_code == 200, done.text
            client.get("/api/models", params={"refresh": True})  # what is listed is looked up again

    def ask(self, *texts: str, model: str = "fake", **more: Any) -> tuple[int, str, list[str]]:
        """Status, body, and the pieces of a streamed answer; `texts` are the user's and the assistant's in turn."""
        roles = ("user", "assistant")
        messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
        body = {"model": model, "stream": True, "messages": messages, **more}
        with self.client() as client:
            answer = client.post("/api/chat/completions", json=body)
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
        choices = [choice for event in events for choice in json.loads(event).get("choices", ())]
        return answer.status_code, answer.text, [p for c in choices if (p := c.get("delta", {}).get("content"))]


def printed_settings(live: LiveGateway, folder: Path) -> Path:
    """The lines of `sekisho client openwebui` for this gateway, as a file."""
    home = live.home.path
    (home / "sekisho.yaml").write_text("models:\n  - {name: fake, engine: fake}\n")
    command = [sys.executable, "-m", "sekisho", "client", "openwebui", "--json", "--home", str(home), "--url", live.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (block,) = json.loads(done.stdout)["blocks"]
    file = folder / "openwebui.env"
    file.write_text(block["text"] + "\n")
    return file


@pytest.fixture(scope="module")
def webui(live: LiveGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWebUi]:
    """Started as the documentation says: the key in the environment, the printed lines read by the shell."""
    programs = python_environment("open-webui-venv", *PACKAGES)
    folder = tmp_path_factory.mktemp("open-webui")
    record, key = live.create_key(KeySpec(name="open-webui"))
    settings, port = printed_settings(live, folder), kept_port()
    quiet = {f"ENABLE_{name}_GENERATION": "false" for name in ("TITLE", "TAGS", "FOLLOW_UP")}
    environment = {
        **os.environ,
        **quiet,
        "SEKISHO_KEY": key,
        "OFFLINE_MODE": "true",
        "DATA_DIR": str(folder / "data"),
        "WEBUI_SECRET_KEY": "of this test",
    }
    (folder / "data").mkdir()
    script = f"set -a; . {settings}; set +a; exec {programs}/open-webui serve --host 127.0.0.1 --port {port}"
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            ["sh", "-c", script],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, child, folder / "log")
        user = {"name": "Taro 太郎", "email": EMAIL, "password": PASSWORD}
        made = httpx.post(f"{url}/api/v1/auths/signup", json=user, timeout=60)
        assert (made.status_code, made.json()["role"]) == (200, "admin"), made.text
        yield OpenWebUi(url, made.json()["token"], key, record.id)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _wait_for(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert child.poll() is None, log.read_text(errors="replace")[-3000:]
        assert time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.5)


def said(engine: FakeEngine) -> list[tuple[str, str]]:
    """Who said what in the last turn that the engine was given, instructions left out."""
    told = [
        (message.role, "".join(part.text for part in message.parts if isinstance(part, Text)))
        for message in engine.turns[-1].messages
    ]
    return [(role, text) for role, text in told if role in ("user", "assistant")]


def test_the_printed_settings_list_our_models(webui: OpenWebUi) -> None:
    """Our models are listed, and the printed default is the default."""
    with webui.client() as client:
        listed = {model["id"]: model for model in client.get("/api/models").json()["data"]}
        assert client.get("/api/config").json()["default_models"] == "fake"
    assert {"fake", "small"} <= set(listed)
    assert listed["fake"]["openai"]["owned_by"] == "sekisho"


def test_a_streamed_answer_is_the_engines(webui: OpenWebUi, live: LiveGateway, engine: FakeEngine) -> None:
    """Word by word as the engine said it, and on the account of the key that Open WebUI has."""
    before = len(live.usage(0))
    status, _, pieces = webui.ask("hello from 京都 tokens:5")
    assert (status, "".join(pieces)) == (200, "word1 word2 word3 word4 word5")
    assert len(pieces) == 5
    assert said(engine) == [("user", "hello from 京都 tokens:5")]
    row = live.usage(before + 1)[-1]
    assert (row.key_id, row.output_tokens) == (webui.key_id, 5)


def test_who_asks_is_in_the_accounts(webui: OpenWebUi, live: LiveGateway) -> None:
    """With the printed line about headers, usage is told apart by the person at the page, whatever the key."""
    before = len(live.usage(0))
    webui.ask("hello")
    assert live.usage(before + 1)[-1].user == EMAIL


def test_a_second_turn_keeps_the_history(webui: OpenWebUi, engine: FakeEngine) -> None:
    """What was said before reaches the engine in order."""
    _, _, first = webui.ask("amber is the word")
    status, _, second = webui.ask("amber is the word", "".join(first), "which word?")
    assert (status, "".join(second)) == (200, "which word?")
    assert said(engine) == [("user", "amber is the word"), ("assistant", "amber is the word"), ("user", "which word?")]


def test_a_wrong_key_is_told(webui: OpenWebUi, live: LiveGateway) -> None:
    """The button that checks a connection shows our words; with it no model of ours can be chosen."""
    with webui.client() as client:
        verified = client.post("/openai/verify", json={"url": f"{live.url}/v1", "key": "sk-sekisho-wrong"})
    assert (verified.status_code, "unknown, revoked or expired" in verified.text) == (401, True)
    webui.connect(f"{live.url}/v1", "sk-sekisho-wrong")
    try:
        status, body, pieces = webui.ask("hello")
    finally:
        webui.connect(f"{live.url}/v1", webui.key)
    assert (status, "Model not found" in body, pieces) == (400, True, [])
    assert webui.ask("hello")[0] == 200


def test_a_key_that_is_revoked_under_it_is_told(webui: OpenWebUi, live: LiveGateway) -> None:
    """The page shows our words, with the id that is in the log."""
    record, key = live.create_key(KeySpec(name="soon-gone"))
    webui.connect(f"{live.url}/v1", key)
    try:
        assert webui.ask("hello")[0] == 200
        live.in_store(lambda store: store.revoke_key(record.id))
        deadline = time.monotonic() + 30
        while (answer := webui.ask("hello"))[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.2)  # the gateway looks for changed keys now and then
    finally:
        webui.connect(f"{live.url}/v1", webui.key)
    status, body, _ = answer
    assert (status, "unknown, revoked or expired" in body, "err_" in body) == (401, True, True)


def test_an_error_of_the_engine_is_told(webui: OpenWebUi) -> None:
    """One that breaks in mid-answer, and a prompt that is too long: our words and our id come through."""
    _, body, pieces = webui.ask("crash:2 a b c")
    assert "the fake engine broke" in body
    assert "err_" in body
    assert "".join(pieces) == "a b"
    status, body, _ = webui.ask("one two three " * 20, model="small")
    assert (status, "context" in body) == (400, True)


def test_a_spent_budget_is_told(webui: OpenWebUi, live: LiveGateway) -> None:
    """The message says that the budget is spent."""
    _, poor = live.create_key(KeySpec(name="poor-webui", budget_tokens=1))
    webui.connect(f"{live.url}/v1", poor)
    try:
        webui.ask("hello")
        status, body, _ = webui.ask("hello")
    finally:
        webui.connect(f"{live.url}/v1", webui.key)
    assert (status, "budget" in body) == (429, True)


@pytest.mark.skipif(not builtin.path().exists(), reason="the built-in model is not there: run `make mini`")
def test_llama_cpp_through_it(
    webui: OpenWebUi, live: LiveGateway, launch: Callable[..., LiveGateway], tmp_path: Path
) -> None:
    """The built-in model answers through Open WebUI as it does directly."""
    model = ModelConfig(name="sekisho-mini", path="builtin", slots=1)
    question: dict[str, Any] = {"model": "sekisho-mini", "messages": [{"role": "user", "content": "What is Sekisho?"}]}
    with served(launch, tmp_path, model) as real:
        direct = real.client().post("/v1/chat/completions", json={**question, "temperature": 0}).json()
        webui.connect(f"{real.url}/v1", real.key)
        try:
            status, _, pieces = webui.ask("What is Sekisho?", model="sekisho-mini", temperature=0)
        finally:
            webui.connect(f"{live.url}/v1", webui.key)
    assert status == 200
    assert "".join(pieces) == direct["choices"][0]["message"]["content"]


@pytest.fixture
async def tab(chromium: str) -> AsyncIterator[Any]:
    """A tab of a real Chromium."""
    async with aiohttp.ClientSession() as session:
        page = BROWSER.Page(await session.ws_connect(chromium, max_msg_size=0))
        await page.open("en-GB", 1200, 800, False)
        yield page
        await page.close()


async def test_the_page_in_a_browser(
    webui: OpenWebUi, engine: FakeEngine, tab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody logs in, asks twice, and reads the engine's answers; the second turn has the first in it. The picture
    is in `build/openwebui.png`."""
    monkeypatch.setattr(BROWSER, "PATIENCE_S", 60.0)
    await tab.goto(webui.url)
    await tab.until("document.querySelector('#email') !== null")
    await tab.click("#email")
    await tab.type(EMAIL)
    await tab.click("#password")
    await tab.type(PASSWORD)
    await tab.press("Enter")
    await tab.until("document.querySelector('#chat-input') !== null")
    # The news of the version lies over the page at the first visit, a moment after it has loaded.
    news = "[...document.querySelectorAll('button')].find(b => b.innerText.includes(\"Okay, Let's Go!\"))"
    await tab.until(f"{news} !== undefined")
    await tab.eval(f"{news}.click()")
    await tab.until(f"{news} === undefined")
    for number, words in enumerate(("the word is amber-42", "and which word was it"), 1):
        await _ask(tab, words, number)
    history = ["the word is amber-42", "the word is amber-42", "and which word was it"]
    assert [text for _, text in said(engine)] == history
    picture = await tab.call("Page.captureScreenshot", format="png")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(base64.b64decode(picture["data"]))


async def _ask(tab: Any, words: str, number: int) -> None:
    """Types and sends, and waits until the answer stands in the page."""
    await tab.click("#chat-input")
    await tab.type(words)
    await tab.until(f"document.querySelector('#chat-input').innerText.includes({json.dumps(words)})")
    await asyncio.sleep(0.3)  # the editor tells the page what it holds a moment later, and nothing shows it
    await tab.press("Enter")
    answers = "[...document.querySelectorAll('[id^=message-] .chat-assistant, .chat-assistant')]"
    await tab.until(f"{answers}.length >= {number} && {answers}.at(-1).innerText.includes({json.dumps(words)})")
