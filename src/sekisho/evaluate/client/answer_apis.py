"""What is special to each API in reading an answer, streamed or whole."""

from typing import Any, Literal

from sekisho.evaluate.client.answer import Answer, Expected, Reader
from sekisho.evaluate.client.exchange import Exchange

Api = Literal["chat", "responses"]


def read(api: Api, exchange: Exchange, expected: Expected) -> Answer:
    """Never raises."""
    reader = _Chat(expected) if api == "chat" else _Responses(expected)
    reader.read(exchange)
    return reader.answer(exchange)


class _Chat(Reader):
    """Chat completions."""

    def event(self, moment: float, value: dict[str, Any]) -> None:
        if value.get("error"):
            self.fault("error_in_stream", value["error"])
            return
        self.told(value)
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        choices = value.get("choices")
        if choices is None and isinstance(value.get("usage"), dict):
            return
        if not isinstance(choices, list):
            self.fault("bad_json", "an event without choices")
            return
        for choice in choices:
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                self.several = True
                continue
            if self.ended and choice.get("delta"):
                self._late(choice["delta"])
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._delta(moment, delta)
            if choice.get("finish_reason"):
                self.ended, self.finish = True, str(choice["finish_reason"])

    def _late(self, delta: object) -> None:
        if isinstance(delta, dict) and (delta.get("content") or delta.get("tool_calls")):
            self.fault("after_the_end", "content after the finish reason")

    def _delta(self, moment: float, delta: dict[str, Any]) -> None:
        for name in ("reasoning_content", "reasoning"):
            if delta.get(name):
                self.piece(moment, delta[name], "reasoning")
                break
        if delta.get("content"):
            self.piece(moment, _joined(delta["content"]), "text")
        if delta.get("tool_calls"):
            self.has_tool_call = True
            self.piece(moment, "", "tool")
        if delta.get("refusal"):
            self.refused += str(delta["refusal"])

    def whole(self, value: dict[str, Any]) -> None:
        self.told(value)
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        choices = value.get("choices")
        first = next(iter(_first(choices)), None)
        self.several = isinstance(choices, list) and len(choices) > 1
        message = first.get("message") if isinstance(first, dict) else None
        if not isinstance(first, dict) or not isinstance(message, dict):
            self.fault("bad_json", "an answer without choices[0].message")
            return
        self.finish = str(first.get("finish_reason") or "") or None
        self.has_tool_call = bool(message.get("tool_calls"))
        self.refused = str(message.get("refusal") or "")
        content = _joined(message.get("content") or "")
        if not isinstance(content, str):
            self.fault("bad_json", f"content that is no text: {content!r}")
            return
        self.text.append(content)
        self.reasoning.append(str(message.get("reasoning_content") or message.get("reasoning") or ""))
        self.reasoning = [text for text in self.reasoning if text]
        self.thought = bool(self.reasoning)

    def counts(self) -> tuple[object, object, object, object]:
        usage = self.usage or {}
        details = usage.get("completion_tokens_details")
        reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
        return usage.get("prompt_tokens"), usage.get("completion_tokens"), usage.get("total_tokens"), reasoning

    def needs_done(self) -> bool:
        return True


class _Responses(Reader):
    """The Responses API."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(expected)
        self._sequence = -1
        self._created = False

    def event(self, moment: float, value: dict[str, Any]) -> None:
        kind = value.get("type")
        self._in_order(value)
        if kind == "error":
            self.fault("error_in_stream", value.get("message") or value)
        elif kind == "response.created":
            self._created = True
            self._object(value)
        elif kind in ("response.output_text.delta", "response.refusal.delta"):
            self._delta(moment, str(kind), value.get("delta"))
        elif kind == "response.reasoning_text.delta":
            self.piece(moment, value.get("delta"), "reasoning")
        elif kind == "response.reasoning_summary_text.delta":
            self.thought = True  # other words than those that were counted: no piece of the answer
        elif kind == "response.function_call_arguments.delta":
            self.has_tool_call = True
            self.piece(moment, "", "tool")
        elif kind == "response.failed":
            self._object(value)
            self.fault("error_in_stream", (value.get("response") or {}).get("error") or value)
        elif kind in ("response.completed", "response.incomplete"):
            self._end(value)

    def _in_order(self, value: dict[str, Any]) -> None:
        number = value.get("sequence_number")
        if isinstance(number, int):
            if number <= self._sequence:
                self.fault("bad_order", f"sequence {number} after {self._sequence}")
            self._sequence = number
        if self.ended:
            self.fault("after_the_end", str(value.get("type")))

    def _delta(self, moment: float, kind: str, delta: object) -> None:
        if not self._created:
            self.fault("bad_order", "output before response.created")
        if kind == "response.refusal.delta":
            self.refused += str(delta)
        else:
            self.piece(moment, delta, "text")

    def _end(self, value: dict[str, Any]) -> None:
        self.ended = True
        self._object(value)
        final, refusal = _output(value.get("response"))
        self._thinking(value.get("response"))
        self.refused = self.refused or refusal
        if final and self.text and final != "".join(self.text):
            self.fault("bad_order", "the pieces make another text than the final event")
        if final and not self.text:
            self.text.append(final)
        if self.id is None:
            self.fault("no_id")

    def _object(self, value: dict[str, Any]) -> None:
        response = value.get("response")
        if not isinstance(response, dict):
            self.fault("bad_json", f"{value.get('type')} without its response")
            return
        self.told(response)
        self.finish = str(response.get("status") or "") or self.finish
        self.filtered = _filtered(response)
        if isinstance(response.get("usage"), dict):
            self.usage = response["usage"]

    def whole(self, value: dict[str, Any]) -> None:
        self.told(value)
        self.finish = str(value.get("status") or "")
        self.filtered = _filtered(value)
        if isinstance(value.get("usage"), dict):
            self.usage = value["usage"]
        if value.get("status") == "failed":
            self.fault("error_in_2xx", value.get("error") or value)
        output = value.get("output")
        if not isinstance(output, list):
            self.fault("bad_json", "an answer without its output")
            return
        text, self.refused = _output(value)
        self.text.append(text)
        self.reasoning += self._thinking(value)
        self.has_tool_call = any(isinstance(item, dict) and item.get("type") == "function_call" for item in output)
        if self.id is None:
            self.fault("no_id")

    def _thinking(self, response: object) -> list[str]:
        """The reasoning that a response object shows. Its summary is none: other words than those that were counted."""
        found = []
        for item in _items(response, "reasoning"):
            self.thought = True
            found += [str(part.get("text") or "") for part in _parts(item) if part.get("type") == "reasoning_text"]
        return [text for text in found if text]

    def counts(self) -> tuple[object, object, object, object]:
        usage = self.usage or {}
        details = usage.get("output_tokens_details")
        reasoning = details.get("reasoning_tokens") if isinstance(details, dict) else None
        return usage.get("input_tokens"), usage.get("output_tokens"), usage.get("total_tokens"), reasoning

    def needs_done(self) -> bool:
        return False  # OpenAI's Responses streams end with the final event


def _output(response: object) -> tuple[str, str]:
    """(text, refusal) of a response object's messages."""
    text, refusal = [], []
    for part in (part for item in _items(response, "message") for part in _parts(item)):
        if part.get("type") in ("output_text", "text"):
            text.append(str(part.get("text") or ""))
        elif part.get("type") == "refusal":
            refusal.append(str(part.get("refusal") or ""))
    return "".join(text), "".join(refusal)


def _items(response: object, kind: str) -> list[dict[str, Any]]:
    items = response.get("output") if isinstance(response, dict) else None
    found = items if isinstance(items, list) else []
    return [item for item in found if isinstance(item, dict) and item.get("type") == kind]


def _parts(item: dict[str, Any]) -> list[dict[str, Any]]:
    content = item.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _filtered(response: dict[str, Any]) -> bool:
    """Whether it tells that something else than the limit on tokens ended it."""
    details = response.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    return reason not in (None, "max_output_tokens", "max_tokens")


def _first(choices: object) -> list[object]:
    """The choice that counts as the answer, if there is one: that of index 0."""
    found = choices if isinstance(choices, list) else []
    return [each for each in found if not isinstance(each, dict) or each.get("index", 0) == 0][:1] or found[:1]


def _joined(content: object) -> object:
    """Content as a list of parts is the text of those that are text; anything else stays what it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = [part.get("text") for part in content if part.get("type") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))
