"""What runs behind an address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sekisho.control.actuators import ACTUATORS
from sekisho.control.detection import Found, NothingThere, detect


def listed(owner: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner}, {"id": "n"}]}


@asynccontextmanager
async def server(answers: dict[str, Any]) -> AsyncIterator[str]:
    """An address that answers these paths, and 404 to others; where a key is asked for, only with it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer k":
            return web.Response(status=401)
        found = answers.get(request.path)
        if isinstance(found, bytes):
            return web.Response(body=found)
        return web.json_response(found) if found is not None else web.Response(status=404)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as running:
        yield str(running.make_url("/v1"))


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"/v1/models": listed("vllm")}, "vllm"),
        ({"/v1/models": listed("llamacpp")}, "llama_cpp"),
        ({"/v1/models": listed("llama.cpp")}, "llama_cpp"),
        ({"/v1/models": listed("lemonade")}, "lemonade"),
        ({"/v1/models": listed("x"), "/v1/health": {"all_models_loaded": []}}, "lemonade"),
        ({"/v1/models": listed("x"), "/props": {"default_generation_settings": {}}}, "llama_cpp"),
        ({"/v1/models": listed("x"), "/v1/health": {"status": "ok"}, "/props": {}}, "openai_http"),
    ],
)
async def test_a_server_is_known_by_what_it_says(answers: dict[str, Any], kind: str) -> None:
    """By the owner of its models, else by an answer that only it gives; each kind has a hand."""
    async with server(answers) as url:
        assert await detect(url, "k") == Found(kind, ("m", "n"))
    assert kind in ACTUATORS


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"\xff\xfe", b""])
async def test_what_is_no_such_server_is_told(body: bytes) -> None:
    """With the address that was asked and what came; a wrong key too."""
    async with server({"/v1/models": body}) as url:
        with pytest.raises(NothingThere, match="/v1/models: no JSON object"):
            await detect(url, "k")
        with pytest.raises(NothingThere, match="HTTP 401"):
            await detect(url, None)


async def test_nobody_there(unused_tcp_port: int) -> None:
    """As the system says it."""
    with pytest.raises(NothingThere, match="/v1/models: "):
        await detect(f"http://127.0.0.1:{unused_tcp_port}/v1", None)
