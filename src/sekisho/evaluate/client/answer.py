"""An answer, and how it is read out of an exchange: nothing is believed, and each way in which an answer is not whole
or not right is a fault. `answer_apis` has what is special to each API.

The times are those of the bytes' arrival: TTFT is from the
start of the request to the first piece of content; decode speed is (n − 1) / (last piece − first piece), with n from
the server's own usage (MLPerf's definition), never from a tokenizer of ours.
"""

import re
from typing import Any, Literal, TypeGuard

import msgspec

from sekisho.evaluate.client.exchange import Exchange
from sekisho.evaluate.client.faults import Fault, FaultKind, by_status, first_failing
from sekisho.wire.sse import FrameTooLong, SseDecoder, SseEvent

DETAIL_CHARS = 300
STREAM_BEGINS = (b"data:", b"event:", b"id:", b"retry:", b":")
_JSON = msgspec.json.Decoder()
_UNSEEN_TOKENS = 8  # end of turn, role and channel marks that an engine may count
_CUT_BY_LIMIT = ("length", "incomplete")
_TOLD_NAME = re.compile(r"(?:.*/)?(?P<name>[^/]+?)(?:-\d{4}-?\d{2}-?\d{2})?(?:\.gguf)?(?::[^/:]+)?", re.DOTALL)


class Expected(msgspec.Struct, frozen=True):
    """What was asked. `names`: how the answer may call the model. `text`: an answer without text is a fault."""

    names: tuple[str, ...]
    stream: bool
    max_tokens: int | None = None
    text: bool = True


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was answered. Tokens are None where the server told none, or such as cannot be right.

    `pieces_ms`: when each piece of output came, after the start. `first_text_ms` is TTFT; `first_piece_ms` also counts
    reasoning and tool calls. `hidden_tokens`: reasoning that was counted but not shown; all tokens where the text is
    too short for them and nothing tells the thinking apart: then nothing can be said of speed.
    """

    status: int | None
    faults: tuple[Fault, ...]
    text: str = ""
    reasoning: str = ""
    id: str | None = None
    model: str | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    hidden_tokens: int = 0
    ttfb_ms: float | None = None
    first_text_ms: float | None = None
    pieces_ms: tuple[float, ...] = ()
    total_ms: float = 0.0

    @property
    def ok(self) -> bool:
        return first_failing(self.faults) is None

    @property
    def first_piece_ms(self) -> float | None:
        return self.pieces_ms[0] if self.pieces_ms else None

    @property
    def tok_per_s(self) -> float | None:
        """Decode speed; None for one token, for one moment, and without usage."""
        if self.completion_tokens is None or len(self.pieces_ms) < 2:
            return None
        tokens, window_s = self.completion_tokens - self.hidden_tokens, (self.pieces_ms[-1] - self.pieces_ms[0]) / 1e3
        return (tokens - 1) / window_s if tokens > 1 and window_s > 0 else None

    @property
    def tpot_ms(self) -> float | None:
        """Time per output token after the first: (latency − TTFT) / (n − 1). None for n = 1."""
        if self.completion_tokens is None or self.first_piece_ms is None:
            return None
        tokens = self.completion_tokens - self.hidden_tokens
        return (self.total_ms - self.first_piece_ms) / (tokens - 1) if tokens > 1 else None


class Reader:
    """What both APIs share: transport, status, JSON and the stream's framing."""

    def __init__(self, expected: Expected) -> None:
        self.expected = expected
        self.faults: list[Fault] = []
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.pieces: list[float] = []
        self.tool_pieces = 0
        self.first_text: float | None = None
        self.id: str | None = None
        self.model: str | None = None
        self.finish: str | None = None
        self.usage: dict[str, Any] | None = None
        self.refused = ""
        self.thought = False  # reasoning was seen, if only as a summary
        self.filtered = False  # the answer was cut by something else than its limit
        self.several = False  # more answers than one: the usage is of all of them
        self.ended = False
        self.done = False
        self.has_tool_call = False

    def fault(self, kind: FaultKind, detail: object = "") -> None:
        text = detail if isinstance(detail, str) else msgspec.json.encode(detail, enc_hook=str).decode()
        if all(fault.kind != kind for fault in self.faults):
            self.faults.append(Fault(kind, text[:DETAIL_CHARS]))

    def read(self, exchange: Exchange) -> None:
        if exchange.trouble is not None:
            self.fault(exchange.trouble, exchange.detail)
        if exchange.status is None:
            return
        kind = by_status(exchange.status)
        if kind is not None:
            self.fault(kind, server_words(exchange))
            return
        encoding = exchange.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            self.fault("bad_json", f"compressed ({encoding}), which was not asked for")
            return
        streamed = "text/event-stream" in exchange.headers.get("content-type", "").lower()
        if self.expected.stream and (streamed or exchange.body.lstrip().startswith(STREAM_BEGINS)):
            self._read_stream(exchange)
        elif exchange.trouble is None:
            self._read_whole(exchange.body)
        else:
            return
        self._judge(exchange)

    def _read_whole(self, body: bytes) -> None:
        if not body.strip():
            self.fault("empty_body")
            return
        value = self._decoded(body)
        if value is None:
            return
        if self.expected.stream:
            self.fault("error_in_2xx" if value.get("error") else "not_a_stream", value.get("error") or "")
        elif value.get("error"):
            self.fault("error_in_2xx", value["error"])
        else:
            self.ended = self.done = True
            self.whole(value)

    def _read_stream(self, exchange: Exchange) -> None:
        decoder = SseDecoder()
        try:
            for moment, data in exchange.arrivals:
                for event in decoder.feed(data):
                    self._event(moment, event)
            for event in decoder.finish():
                if event.data.strip() != b"[DONE]" or not exchange.body.endswith((b"\n", b"\r")):
                    self.fault("no_end", "the last event is cut off")
                self._event(exchange.ended_s, event)
        except FrameTooLong as error:
            self.fault("too_large", str(error))
        if not exchange.body.strip():
            self.fault("empty_body")

    def _event(self, moment: float, event: SseEvent) -> None:
        if event.data.strip() == b"[DONE]":
            if self.done:
                self.fault("after_the_end", "[DONE] twice")
            self.done = True
            return
        if self.done:
            self.fault("after_the_end", event.data.decode(errors="replace"))
            return
        value = self._decoded(event.data)
        if value is not None:
            self.event(moment, value)

    def _decoded(self, data: bytes) -> dict[str, Any] | None:
        try:
            value = _JSON.decode(data)
        except UnicodeDecodeError as error:
            self.fault("bad_utf8", str(error))
            return None
        except msgspec.DecodeError as error:
            bad_text = "utf-8" in str(error).lower() or not _is_utf8(data)
            self.fault("bad_utf8" if bad_text else "bad_json", f"{error}: {data.decode(errors='replace')}")
            return None
        if not isinstance(value, dict):
            self.fault("bad_json", f"not an object: {data.decode(errors='replace')}")
            return None
        return value

    def piece(self, moment: float, text: object, kind: Literal["text", "reasoning", "tool"]) -> None:
        if not isinstance(text, str):
            self.fault("bad_json", f"a piece that is no text: {text!r}")
            return
        if not text and kind != "tool":
            return
        self.pieces.append(moment)
        self.tool_pieces += kind == "tool"
        if kind == "text":
            if self.first_text is None:
                self.first_text = moment
            self.text.append(text)
        elif kind == "reasoning":
            self.thought = True
            self.reasoning.append(text)

    def told(self, value: dict[str, Any]) -> None:
        """Id and model, wherever they stand."""
        if isinstance(value.get("id"), str) and value["id"]:
            if self.id is not None and self.id != value["id"]:
                self.fault("bad_order", f"the id changes from {self.id} to {value['id']}")
            self.id = value["id"]
        if isinstance(value.get("model"), str) and value["model"]:
            self.model = value["model"]

    def event(self, moment: float, value: dict[str, Any]) -> None:
        raise NotImplementedError

    def whole(self, value: dict[str, Any]) -> None:
        raise NotImplementedError

    def counts(self) -> tuple[object, object, object, object]:
        """(prompt, completion, total, reasoning) as the usage tells them."""
        raise NotImplementedError

    def needs_done(self) -> bool:
        raise NotImplementedError

    def _judge(self, exchange: Exchange) -> None:
        """What can be said only at the end."""
        expected = self.expected
        if any(fault.kind in ("empty_body", "bad_json", "not_a_stream", "error_in_2xx") for fault in self.faults):
            return
        if expected.stream and not self.ended and first_failing(self.faults) is None:
            self.fault("no_end")
        elif expected.stream and self.ended and self.needs_done() and not self.done and exchange.trouble is None:
            self.fault("done_missing")
        if self.refused:
            self.fault("refused", self.refused)
        if self.model is not None and not is_called(self.model, expected.names):
            self.fault("wrong_model", f"{self.model} instead of {expected.names[0]}")
        nothing = not "".join(self.text).strip() and not self.has_tool_call
        if not nothing or first_failing(self.faults) is not None:
            return
        if self._only_reasoning():
            self.fault("only_reasoning", f"{expected.max_tokens} tokens were not enough")
        elif expected.text:
            self.fault("empty_answer", f"finish reason {self.finish}")

    def _only_reasoning(self) -> bool:
        """Whether our own limit cut an answer that was still thinking: that is no fault of the server's."""
        limit = self.expected.max_tokens
        if limit is None or self.filtered or self.finish not in _CUT_BY_LIMIT:
            return False
        _, completion, _, reasoning = (None,) * 4 if self.usage is None else self.counts()
        counted = _count(reasoning) and reasoning > 0
        return self.thought or counted or (_count(completion) and completion == limit)

    def answer(self, exchange: Exchange) -> Answer:
        prompt, completion, hidden = self._usage()

        def after_ms(moment: float) -> float:
            return (moment - exchange.started_s) * 1e3

        return Answer(
            status=exchange.status,
            faults=tuple(self.faults),
            text="".join(self.text),
            reasoning="".join(self.reasoning),
            id=self.id,
            model=self.model,
            finish=self.finish,
            prompt_tokens=prompt,
            completion_tokens=completion,
            hidden_tokens=hidden,
            ttfb_ms=exchange.ttfb_ms,
            first_text_ms=None if self.first_text is None else after_ms(self.first_text),
            pieces_ms=tuple(map(after_ms, self.pieces)),
            total_ms=exchange.total_ms,
        )

    def _usage(self) -> tuple[int | None, int | None, int]:
        """Tokens that can be right. A piece of text holds at least one token (a call may be told in more pieces than it
        has). How many there may be at most only the limit tells: a model may think without showing or telling it, so
        that a short text after many tokens is honest. Reasoning may be counted beside the completion (xAI)."""
        if first_failing(self.faults) is not None:
            return None, None, 0
        if self.usage is None:
            self.fault("usage_missing")
            return None, None, 0
        if self.several:
            return None, None, 0
        prompt, completion, total, reasoning = self.counts()
        if not _count(prompt) or not _count(completion):
            self.fault("usage_wrong", self.usage)
            return None, None, 0
        hidden = reasoning if _count(reasoning) and not self.reasoning else 0
        if hidden > completion and _count(total) and total >= prompt + completion + hidden:
            hidden = 0
        shown = completion - hidden
        limit = self.expected.max_tokens
        size = len("".join(self.text).encode(errors="replace")) + len("".join(self.reasoning).encode(errors="replace"))
        wrong = (
            (total is not None and (not _count(total) or total < prompt + completion))
            or shown < (len(self.pieces) - self.tool_pieces if self.expected.stream else int(size > 0))
            or (limit is not None and completion > limit)
        )
        if wrong:
            self.fault("usage_wrong", {**self.usage, "pieces": len(self.pieces), "bytes": size})
            return None, None, 0
        if shown > size + _UNSEEN_TOKENS and not self.has_tool_call and not self.refused:
            hidden = completion  # a token has at least one byte: some of these were never shown
        return prompt, completion, hidden


def server_words(exchange: Exchange) -> str:
    """A server's own words about an error; its status where it has none."""
    body = exchange.body
    try:
        value = _JSON.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or body.decode(errors="replace").strip() or f"HTTP {exchange.status}")


def is_called(told: str, names: tuple[str, ...]) -> bool:
    """A server may tell a model with its folder, tag, date or file name, and in other letters."""
    plain = told.lower().replace("\\", "/")
    found = _TOLD_NAME.fullmatch(plain)
    return any(
        plain == name or plain.endswith(f"/{name}") or (found is not None and found["name"] == name)
        for name in map(str.lower, names)
    )


def _count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
