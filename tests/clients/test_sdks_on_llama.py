"""The SDKs against a real gateway in front of a real llama.cpp, with a model of random weights."""

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import ollama
import openai
import pydantic
import pytest
from anthropic import Anthropic
from gateway_harness import LiveGateway
from local_model import served, write_tiny_gguf
from openai import OpenAI
from strictness import check

from sekisho.engines.config import ModelConfig

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Answer(pydantic.BaseModel):
    sure: bool


@pytest.fixture(scope="module")
def live(launch: Callable[..., LiveGateway], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway in front of llama.cpp."""
    folder = tmp_path_factory.mktemp("llama")
    path = write_tiny_gguf(folder / "tiny.gguf")
    model = ModelConfig(name="tiny", path=str(path), context=1024, slots=2, embeddings=True, threads=1)
    with served(launch, folder, model) as live:
        yield live


@pytest.fixture(scope="module")
def client(live: LiveGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0, timeout=60) as client:
        yield client


def user(text: Any) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_logprobs(client: OpenAI) -> None:
    """One entry a token, each with the best of its distribution, and the same whole and streamed."""
    more: Any = {"model": "tiny", "messages": user("hi"), "logprobs": True, "top_logprobs": 3, "temperature": 0}
    more |= {"max_tokens": 4, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**more)
    check(whole)
    assert whole.choices[0].logprobs is not None
    told = whole.choices[0].logprobs.content or []
    assert {len(token.top_logprobs) for token in told} == {3}
    assert all(token.logprob <= 0 for token in told)
    chunks = list(client.chat.completions.create(stream=True, **more))
    for chunk in chunks:
        check(chunk)
    streamed = [
        token for chunk in chunks for choice in chunk.choices if choice.logprobs
        for token in choice.logprobs.content or []
    ]  # fmt: skip
    assert [token.logprob for token in streamed] == pytest.approx([token.logprob for token in told], abs=1e-3)


def test_legacy_logprobs(client: OpenAI) -> None:
    """The old parallel lists have one length."""
    answer = client.completions.create(
        model="tiny", prompt="hi", logprobs=2, max_tokens=3, temperature=0, extra_body={"ignore_eos": True}
    )
    check(answer)
    told = answer.choices[0].logprobs
    assert told is not None
    assert len(told.tokens or []) == len(told.token_logprobs or []) == len(told.top_logprobs or []) >= 1


def test_responses_logprobs(client: OpenAI) -> None:
    """The Responses API tells them in its own place."""
    response = client.responses.create(
        model="tiny", input="hi", include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=4
    )
    check(response)
    for item in response.output:
        assert item.type == "message"
        assert item.content[0].type == "output_text"
        assert item.content[0].logprobs is not None


def test_a_schema_is_kept_by_any_model(client: OpenAI) -> None:
    """Grammar makes even random weights answer in the caller's type, over chat and responses."""
    parsed = client.chat.completions.parse(
        model="tiny", messages=user("sure?"), response_format=Answer, max_tokens=600, seed=1
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)
    response = client.responses.parse(model="tiny", input="sure?", text_format=Answer, max_output_tokens=600)
    assert isinstance(response.output_parsed, Answer)


def test_choices_and_embeddings(client: OpenAI) -> None:
    """Two choices differ by seed; embeddings are the same as floats and as base64."""
    two = client.chat.completions.create(
        model="tiny", messages=user("hi"), n=2, max_tokens=8, seed=1, temperature=1.5, extra_body={"ignore_eos": True}
    )
    check(two)
    assert two.choices[0].message.content != two.choices[1].message.content
    packed = client.embeddings.create(model="tiny", input=["a", "b"])
    plain = client.embeddings.create(model="tiny", input=["a", "b"], encoding_format="float")
    for ours, theirs in zip(packed.data, plain.data, strict=True):
        assert ours.embedding == pytest.approx(theirs.embedding, abs=1e-5)


def test_images_are_refused_clearly(client: OpenAI, live: LiveGateway) -> None:
    """A model without eyes says so as the caller's error, in every protocol."""
    url = f"data:image/png;base64,{PIXEL}"
    with pytest.raises(openai.BadRequestError, match="image"):
        client.chat.completions.create(model="tiny", messages=user([{"type": "image_url", "image_url": {"url": url}}]))
    with pytest.raises(openai.BadRequestError, match="image"):
        client.responses.create(model="tiny", input=user([{"type": "input_image", "image_url": url}]))
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    with (
        Anthropic(base_url=live.url, api_key=live.key, max_retries=0) as other,
        pytest.raises(anthropic.BadRequestError, match="image"),
    ):
        other.messages.create(model="tiny", max_tokens=9, messages=user([{"type": "image", "source": source}]))


def test_a_prompt_that_does_not_fit(client: OpenAI, live: LiveGateway) -> None:
    """Too long a prompt and too many tokens asked for are the caller's errors, told as such."""
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="tiny", messages=user("x" * 3000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as many:
        client.chat.completions.create(model="tiny", messages=user("x"), max_tokens=5000)
    assert many.value.code == "max_tokens_exceeds_context"


def test_counts_agree(client: OpenAI, live: LiveGateway) -> None:
    """What counting says a prompt has is what the turn then costs, in each protocol's own field."""
    with Anthropic(base_url=live.url, api_key=live.key, max_retries=0) as other:
        counted = other.messages.count_tokens(model="tiny", messages=user("one two")).input_tokens
        message = other.messages.create(model="tiny", max_tokens=2, messages=user("one two"))
    chat = client.chat.completions.create(model="tiny", messages=user("one two"), max_tokens=2)
    assert chat.usage is not None
    usage = message.usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0) == chat.usage.prompt_tokens
    native = ollama.Client(host=live.url, headers=live.headers())
    answer = native.chat("tiny", user("one two"), options={"num_predict": 2})
    native._client.close()
    assert answer.prompt_eval_count == counted
