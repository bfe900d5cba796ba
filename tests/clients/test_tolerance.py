"""Bodies that well-known programs send, as they send them: what they ask for beyond the protocol does no harm."""

import json
from http.client import HTTPConnection
from typing import Any

import httpx
import pytest
from gateway_harness import LiveGateway, chat

USER = [{"role": "user", "content": "hello there"}]

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "guidellm": (
        "/v1/chat/completions",
        chat(
            "hello there",
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
            max_completion_tokens=64,
            ignore_eos=True,
            stop=None,
        ),
    ),
    "guidellm text": (
        "/v1/completions",
        {
            "model": "fake",
            "prompt": "hello there",
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "max_tokens": 64,
            "ignore_eos": True,
            "stop": None,
        },
    ),
    "guidellm responses": (
        "/v1/responses",
        {"model": "fake", "input": USER, "stream": True, "max_output_tokens": 64, "store": True},
    ),
    "lm-eval": (
        "/v1/chat/completions",
        {"messages": USER, "model": "fake", "max_tokens": 256, "temperature": 0, "stop": ["Q:"], "seed": 1234},
    ),
    "lm-eval text": (
        "/v1/completions",
        {"prompt": ["hello there"], "model": "fake", "max_tokens": 256, "temperature": 0.0, "seed": 1234, "stop": None},
    ),
    "aiperf": (
        "/v1/chat/completions",
        chat("hello there", stream=True, max_completion_tokens=64, ignore_eos=True, min_tokens=1),
    ),
    "inspect": (
        "/v1/responses",
        {
            "model": "fake",
            "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello there"}]}],
            "tools": [],
            "tool_choice": "auto",
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"summary": "auto", "effort": "medium"},
            "truncation": "auto",
            "max_output_tokens": 2048,
        },
    ),
    "open webui": (
        "/v1/chat/completions",
        {"stream": True, "model": "fake", "messages": USER, "stream_options": {"include_usage": True}},
    ),
    "continue": (
        "/v1/chat/completions",
        {"messages": USER, "model": "fake", "max_tokens": 2048, "stream": True, "parallel_tool_calls": False},
    ),
    "cline": (
        "/v1/chat/completions",
        chat("hello there", stream=True, temperature=0, stream_options={"include_usage": True}),
    ),
    "vllm bench": (
        "/v1/completions",
        {
            "model": "fake",
            "prompt": "hello there",
            "temperature": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": 16,
            "logprobs": None,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "claude code": (
        "/v1/messages?beta=true",
        {
            "model": "fake",
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "hello there", "cache_control": {"type": "ephemeral"}}],
                }
            ],
            "system": [{"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral"}}],
            "tools": [],
            "metadata": {"user_id": "user_1_account__session_2"},
            "max_tokens": 3000,
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "stream": True,
        },
    ),
    "ollama with keep_alive": (
        "/api/chat",
        {"model": "fake", "messages": USER, "stream": False, "keep_alive": "5m", "options": {"num_ctx": 2048}},
    ),
}


@pytest.mark.parametrize("program", BODIES)
def test_a_body_as_sent_is_answered(live: LiveGateway, program: str) -> None:
    """Each program gets its answer, whole or streamed."""
    path, body = BODIES[program]
    answer = live.client().post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert "there" in answer.text
    assert '"error":{' not in answer.text


@pytest.mark.parametrize("empty", ["Bearer ", "Bearer", ""])
def test_an_empty_bearer_beside_a_key_does_not_hide_it(live: LiveGateway, empty: str) -> None:
    """Some programs send an Authorization header with nothing in it: the other header counts then."""
    connection = HTTPConnection(live.url.removeprefix("http://"), timeout=30)  # httpx would not send such a header
    headers = {"authorization": empty, "x-api-key": live.key, "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(chat("hi")), headers)
    assert connection.getresponse().status == 200
    connection.close()


def test_a_lone_key_in_lower_case_bearer(live: LiveGateway) -> None:
    """The scheme's case means nothing."""
    headers = {"authorization": f"bearer {live.key}"}
    assert httpx.get(f"{live.url}/v1/models", headers=headers).status_code == 200


def test_headers_of_clients_are_harmless(live: LiveGateway) -> None:
    """Version, beta, organisation and trace headers change nothing."""
    headers = {
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "some-beta-2026-01-01",
        "openai-organization": "org-x",
        "openai-project": "proj-x",
        "openai-beta": "responses=v1",
        "x-stainless-retry-count": "0",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "user-agent": "",
        **live.headers(),
    }
    body = {"model": "fake", "max_tokens": 9, "messages": USER}
    assert httpx.post(f"{live.url}/v1/messages", json=body, headers=headers).status_code == 200
