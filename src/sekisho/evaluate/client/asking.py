"""One question to a model: its request in either API, the exchange, and the answer read out of it."""

from typing import Any

import msgspec

from sekisho.evaluate.client.answer import Answer, Expected
from sekisho.evaluate.client.answer_apis import Api, read
from sekisho.evaluate.client.exchange import Connections, Exchange, Limits
from sekisho.evaluate.client.faults import MEANINGS
from sekisho.evaluate.client.target import Key, Place, Target
from sekisho.evaluate.rubric.answers import Answered

PATHS: dict[Api, str] = {"chat": "/v1/chat/completions", "responses": "/v1/responses"}
LONG_ANSWER_LIMITS = Limits(silence_s=300.0, total_s=900.0)


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """`said`: (role, text) of each message. `previous`: the response to go on from (responses only). `more`: further
    fields of the body; they go before those that are made here."""

    api: Api
    said: tuple[tuple[str, str], ...]
    max_tokens: int
    stream: bool = False
    previous: str | None = None
    more: dict[str, Any] = {}

    def body(self, model: str) -> bytes:
        messages = [{"role": role, "content": text} for role, text in self.said]
        body: dict[str, Any] = {**self.more, "model": model, "stream": self.stream}
        if self.api == "chat":
            body |= {"messages": messages, "max_tokens": self.max_tokens}
            if self.stream:
                body["stream_options"] = {"include_usage": True}
        else:
            body |= {"input": messages, "max_output_tokens": self.max_tokens}
            if self.previous is not None:
                body["previous_response_id"] = self.previous
        return msgspec.json.encode(body)


async def send(connections: Connections, question: Question) -> Exchange:
    """Never raises for what the other side does."""
    return await connections.exchange("POST", PATHS[question.api], question.body(connections.target.model))


async def ask(connections: Connections, question: Question) -> Answer:
    """Sends, waits and reads. Where time is measured, `send` and read later."""
    exchange = await send(connections, question)
    expected = Expected((connections.target.model,), question.stream, question.max_tokens)
    return read(question.api, exchange, expected)


class Asker:
    """Asks one target single questions, as `rubric.answers.Ask`. Belongs to one loop; `close` it."""

    def __init__(self, target: Target, limits: Limits = LONG_ANSWER_LIMITS) -> None:
        self._connections = Connections(target, limits)

    async def __call__(self, prompt: str, max_tokens: int) -> Answered:
        """Streamed, so that an answer may take as long as it goes on coming. Never raises for what the other side
        does."""
        question = Question(api="chat", said=(("user", prompt),), max_tokens=max_tokens, stream=True)
        answer = await ask(self._connections, question)
        faults = [f"{MEANINGS[fault.kind].what[0]}: {fault.detail}".rstrip(": ") for fault in answer.faults]
        if answer.finish == "length":
            faults.append(f"cut off after {max_tokens} tokens")
        return Answered(
            text=answer.text,
            ok=answer.ok and bool(answer.text.strip()),  # one that only thought is nothing to rate
            faults=tuple(faults),
            model=answer.model or "",
            tokens=answer.completion_tokens,
            total_ms=answer.total_ms,
        )

    def close(self) -> None:
        self._connections.close()

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


def asker(
    target_or_url: Target | str,
    key: Key | None = None,
    model: str = "",
    *,
    place: Place = "gateway",
    limits: Limits = LONG_ANSWER_LIMITS,
) -> Asker:
    """For a target, or for an address with key and model. Raises InvalidRequest for an address that is none."""
    target = target_or_url if isinstance(target_or_url, Target) else Target(place, target_or_url, model, key)
    return Asker(target, limits)
