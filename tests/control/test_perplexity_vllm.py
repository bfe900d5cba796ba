"""The route for vLLM, against a server that speaks its published schema: what is asked of it, and what is made of its
answers. That vLLM itself answers so is not shown here."""

import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sekisho.control.perplexity import measure, texts, vllm_route
from sekisho.control.perplexity.base import Unmeasured
from sekisho.control.perplexity.client import Client
from sekisho.control.perplexity.measure import Job, Target
from sekisho.core.clock import SystemClock
from sekisho.engines.config import ModelConfig

BOS = 1


class Vllm:
    """A token a byte; the likelihood of a token at position p is exp(-1 / p)."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.change: Callable[[list[Any]], Any] = lambda told: told

    async def tokenize(self, request: web.Request) -> web.Response:
        body = await request.json()
        tokens = [BOS] * body["add_special_tokens"] + [10 + each for each in body["prompt"].encode()]
        return web.json_response(
            {"count": len(tokens), "max_model_len": 4096, "tokens": tokens, "token_strs": None}, status=200
        )

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        told: list[Any] = [None]
        for place, token in enumerate(body["prompt"][1:], start=1):
            best = {"7": {"logprob": -0.1, "rank": 1, "decoded_token": "x"}}
            told.append(best | {str(token): {"logprob": -1 / place, "rank": 9, "decoded_token": "y"}})
        choice = {"index": 0, "text": "z", "logprobs": None, "finish_reason": "length", "stop_reason": None}
        answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": body["model"]}
        usage = {"prompt_tokens": len(body["prompt"]), "total_tokens": len(body["prompt"]) + 1, "completion_tokens": 1}
        return web.json_response(
            {**answer, "choices": [{**choice, "prompt_logprobs": self.change(told)}], "usage": usage}
        )


@pytest.fixture
def vllm() -> Vllm:
    return Vllm()


@pytest.fixture
async def address(vllm: Vllm) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/tokenize", vllm.tokenize)
    app.router.add_post("/v1/completions", vllm.complete)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


async def test_the_logprobs_of_the_prompt_are_what_is_measured(vllm: Vllm, address: str) -> None:
    """One request a stretch with one token to make; the token that came counts, not the best one; the opening token is
    at the head of each stretch."""
    async with Client(address) as client:
        scores = await vllm_route.score(client, "big", "a" * 250, 101)
    assert [(each["prompt"][0], len(each["prompt"])) for each in vllm.asked] == [(BOS, 101), (BOS, 101), (BOS, 51)]
    assert all(
        (each["model"], each["max_tokens"], each["prompt_logprobs"], "stream" in each) == ("big", 1, 1, False)
        for each in vllm.asked
    )
    assert scores.stretches[0].nll == pytest.approx([1 / place for place in range(1, 101)])


@pytest.mark.parametrize("change", [lambda told: None, lambda told: told[:-1], lambda told: [*told[:-1], {}]])
async def test_a_server_that_tells_less_is_no_measurement(
    vllm: Vllm, address: str, change: Callable[[list[Any]], Any]
) -> None:
    """Without the field, with too few places, or without the token that came: a reason instead of a figure."""
    vllm.change = change
    async with Client(address) as client:
        with pytest.raises(Unmeasured, match=r"logprobs|about the token"):
            await vllm_route.score(client, "big", "abc" * 30, 64)


async def test_what_is_in_force_can_be_measured_and_a_baseline_cannot(address: str) -> None:
    """vLLM's type of cache is fixed while it runs: the baseline at 16 bits is refused with that reason."""
    target = Target(ModelConfig("m", engine="openai_http", url=f"{address}v1", upstream_model="big"), address)
    job = Job(texts.built_in(), "light")
    found = await measure.measure(target, job, SystemClock())
    assert found.route == "vllm"
    assert found.tokens == 767
    assert found.nll_nats == pytest.approx(math.fsum(1 / place for place in range(1, 768)) / 767)
    with pytest.raises(Unmeasured, match="fixed when it starts"):
        await measure.measure(target, job, SystemClock(), "full")


async def test_an_engine_that_is_not_there_is_a_reason() -> None:
    """Nobody at the address, no address at all, an engine without a route."""
    job, config = Job(texts.built_in()), ModelConfig("m", engine="openai_http", url="http://127.0.0.1:9/v1")
    for target, why in (
        (Target(config, "http://127.0.0.1:9"), "does not answer"),
        (Target(config), "not known"),
        (Target(ModelConfig("m", engine="fake")), "cannot be measured at fake"),
    ):
        with pytest.raises(Unmeasured, match=why):
            await measure.measure(target, job, SystemClock())
