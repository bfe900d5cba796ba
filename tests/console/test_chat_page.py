"""The chat page in a real browser. After each test the fixture checks that nothing was logged and no policy broken."""

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web


async def test_a_key_opens_the_room_and_an_answer_comes_with_its_figures(page: Any, api: Any) -> None:
    """Key, model list, question, answer, tokens: the whole way by keyboard alone."""
    api.answer = type(api).say("The ", "gate ", "is open.")
    await page.pass_gate(api.url)
    await page.ask("Is it open?")
    assert await page.answered() == "The gate is open."
    figures = await page.text(".figures")
    assert "57 tokens in" in figures
    assert "23 out" in figures
    sent = api.requests[0]
    assert sent["model"] == "sekisho-mini"
    assert sent["messages"] == [{"role": "user", "content": "Is it open?"}]
    assert sent["stream"] is True
    assert "temperature" not in sent
