"""What the fake server says: requests of OpenAI's shape to answers of OpenAI's shape, by the scripts of `fake`.

It knows nothing of our codecs, so that a mistake there cannot cancel itself out.
"""

import struct
import time
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import msgspec

from sekisho.engines.fake import Script, embedding, read_script

_encode = msgspec.json.encode
Json = dict[str, Any]


class HttpError(Exception):
    """Answered in OpenAI's shape."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "code": status, **more}}


class Settings(msgspec.Struct, frozen=True):
    model: str = "fake"
    key: str | None = None
    context: int = 4096


class Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    query: dict[str, str]
    authorization: str
    body: bytes


class Answer:
    """One generation: what is said and how it is written."""

    def __init__(self, request: Request, settings: Settings) -> None:
        try:
            body = msgspec.json.decode(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HttpError(400, str(error)) from None
        if not isinstance(body, dict):
            raise HttpError(400, "the body is not an object")
        self.chat = request.path.endswith("/chat/completions")
        self.body: Json = body
        self.stream = bool(body.get("stream"))
        self.model = str(body.get("model") or settings.model)
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + "fake"
        added = "".join(f" {name}:{value}" for name, value in request.query.items())
        self.scripts = [self._script(text + added) for text in self._prompts() for _ in range(int(body.get("n") or 1))]
        self.input_tokens = self._count()
        if self.input_tokens > settings.context:
            raise HttpError(
                400,
                f"request ({self.input_tokens} tokens) exceeds the available context size ({settings.context} tokens)",
                "exceed_context_size_error",
                n_prompt_tokens=self.input_tokens,
                n_ctx=settings.context,
            )

    @property
    def script(self) -> Script:
        """The one that says how to behave."""
        return self.scripts[0]

    def _prompts(self) -> list[str]:
        if self.chat:
            messages = self.body.get("messages")
            if not isinstance(messages, list) or not messages:
                raise HttpError(400, "'messages' is required")
            return [_text(self._asked())]
        prompt = self.body.get("prompt", "")
        many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        return [_prompt_text(one) for one in (prompt if many else [prompt])]

    def _asked(self) -> Json:
        """The last message that is not an instruction."""
        messages: list[Json] = self.body["messages"]
        asked = [message for message in messages if message.get("role") not in ("system", "developer")]
        return (asked or messages)[-1]

    def _script(self, text: str) -> Script:
        body = self.body
        stop = body.get("stop") or []
        names = [tool["function"]["name"] for tool in body.get("tools") or [] if tool.get("type") == "function"]
        choice = body.get("tool_choice")
        if names and "call:" not in text and (choice == "required" or isinstance(choice, dict)):
            text += f"\ncall:{choice['function']['name'] if isinstance(choice, dict) else names[0]} {{}}"
        return read_script(
            text,
            tool_names=[] if choice == "none" else names,
            from_user=not self.chat or self._asked().get("role") != "tool",
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            stop=[stop] if isinstance(stop, str) else stop,
        )

    def _count(self) -> int:
        if not self.chat:
            return sum(len(text.split()) for text in self._prompts())
        total = 0
        for message in self.body["messages"]:
            total += len(_text(message).split()) + len((message.get("reasoning_content") or "").split())
            total += sum(len(call["function"]["arguments"].split()) for call in message.get("tool_calls") or ())
        return total

    def usage(self) -> Json:
        said = sum(script.output_tokens for script in self.scripts)
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": said,
            "total_tokens": self.input_tokens + said,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": sum(bool(script.reason) for script in self.scripts)},
        }

    def _head(self, kind: str) -> Json:
        name = f"chat.completion{kind}" if self.chat else "text_completion"
        return {"id": self.id, "object": name, "created": int(time.time()), "model": self.model}

    def whole(self) -> bytes:
        choices = []
        for index, script in enumerate(self.scripts):
            choice: Json = {"index": index, "finish_reason": script.finish, "logprobs": None}
            if self.chat:
                choice["message"] = self._message(script)
            else:
                choice["text"] = "".join(script.pieces)
            choices.append(choice)
        return _encode({**self._head(""), "choices": choices, "usage": self.usage()})

    def _message(self, script: Script) -> Json:
        message: Json = {"role": "assistant", "content": "".join(script.pieces) or None}
        if script.reason:
            message["reasoning_content"] = script.reason
        if script.calls:
            message["tool_calls"] = [
                {"id": f"call_{i}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for i, c in enumerate(script.calls)
            ]
        return message

    def frames(self) -> Iterator[tuple[bool, bytes]]:
        """SSE frames; True marks one that counts as a piece."""
        eol = b"\r\n" if self.script.crlf else b"\n"
        comment = b": still here" + eol + eol if self.script.comments else b""
        head = self._head(".chunk")

        def frame(choices: list[Json], **more: Any) -> bytes:
            return comment + b"data: " + _encode({**head, "choices": choices, **more}) + eol + eol

        def part(index: int, delta: Json | str, finish: str | None = None) -> bytes:
            said = {"delta": delta} if self.chat else {"text": delta}
            return frame([{"index": index, **said, "finish_reason": finish}])

        for index, script in enumerate(self.scripts):
            if self.chat:
                yield False, part(index, {"role": "assistant", "content": None})
                if script.reason:
                    yield True, part(index, {"reasoning_content": script.reason})
                for piece in script.pieces:
                    yield True, part(index, {"content": piece})
                for number, call in enumerate(script.calls):
                    first, rest = call.arguments[: len(call.arguments) // 2], call.arguments[len(call.arguments) // 2 :]
                    named = {"id": f"call_{number}", "type": "function"}
                    begun = {"index": number, **named, "function": {"name": call.name, "arguments": first}}
                    yield True, part(index, {"tool_calls": [begun]})
                    yield False, part(index, {"tool_calls": [{"index": number, "function": {"arguments": rest}}]})
            else:
                for piece in script.pieces:
                    yield True, part(index, piece)
            yield False, part(index, {} if self.chat else "", script.finish)
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield False, frame([], usage=self.usage())
        if self.script.done:
            yield False, b"data: [DONE]" + eol + eol


def _text(message: Json) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")


def _prompt_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def embeddings(body: Json, settings: Settings) -> bytes:
    """Refuses what is too long in llama.cpp's words for it, which blame the server."""
    given = body.get("input", "")
    many = isinstance(given, list) and given and not isinstance(given[0], int)
    texts = [_prompt_text(one) for one in (given if many else [given])]
    longest = max((len(text.split()) for text in texts), default=0)
    if longest > settings.context:
        words = f"input ({longest} tokens) is too large to process. increase the physical batch size"
        raise HttpError(500, f"{words} (current batch size: {settings.context})", "server_error")
    data = []
    for index, text in enumerate(texts):
        vector: Any = embedding(text, int(body.get("dimensions") or 16))
        if body.get("encoding_format") == "base64":
            vector = b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(len(text.split()) for text in texts)
    usage = {"prompt_tokens": count, "total_tokens": count}
    return _encode({"object": "list", "data": data, "model": body.get("model") or settings.model, "usage": usage})
