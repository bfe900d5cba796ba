"""The chat page in a real browser, served by the real gateway: the whole road from the key press to the engine."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))  # the harness lies beside the gateway's tests

from gateway_harness import FAKE, UNGUARDED, LiveGateway

from sekisho.gateway.config import GatewayConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings


@pytest.mark.parametrize("language", ["ja-JP", "en-GB"])
async def test_a_person_talks_to_the_model_and_stops_it(open_page: Any, tmp_path: Path, language: str) -> None:
    """Key, question, streamed answer, figures; then Escape in mid-answer frees the engine's slot; the usage of both
    is recorded; nothing was refused by the page's policy."""
    settings = Settings(gateway=GatewayConfig(port=0), models=(FAKE,), guard=UNGUARDED)
    live = await asyncio.to_thread(LiveGateway, Home(tmp_path / "home").create(), Plan(settings, {}))
    await asyncio.to_thread(live.start)
    try:
        page = await open_page(language)
        await page.goto(live.url + "/")
        await page.until("document.activeElement.id === 'key'")
        await page.type(live.key)
        await page.press("Enter")
        await page.until("document.activeElement.id === 'composer-text'")
        await page.eval("void (performance.now = () => 1000)")  # by its clock the page reads the words in one moment
        await page.ask("関所 is open")
        assert await page.answered() == "関所 is open"
        per_second = "毎秒" if language == "ja-JP" else "/s"
        assert per_second not in await page.text(".figures"), "words that came in one moment have no speed"
        await page.ask("tokens:400 pace:0.1")
        await page.until("document.body.innerText.includes('word3')")
        await page.press("Escape")
        await page.until("document.querySelector('#stop').hidden")
        rows = await asyncio.to_thread(live.usage, 2)
        assert sorted(row.status for row in rows) == ["cancelled", "completed"]
        assert live.gateway.roster.entries["fake"].queue.running == 0
    finally:
        await asyncio.to_thread(live.stop)
