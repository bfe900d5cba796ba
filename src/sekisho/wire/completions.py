"""OpenAI's legacy `/v1/completions`, server side."""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sekisho.core.errors import InvalidRequest, UnsupportedParameter
from sekisho.core.events import Event, Failed, Finished, RefusalDelta, TextDelta, TokenLogprob, Usage
from sekisho.core.turn import Prompt, Turn
from sekisho.wire import chat_vendor, jsonio, sse
from sekisho.wire.openai_encoder import OpenAiEncoder
from sekisho.wire.openai_error import error_body, failed_body

__all__ = ["CompletionEncoder", "decode", "encoder", "error_body", "read_prompts"]

DEFAULT_MAX_TOKENS = 16  # OpenAI's own default for this endpoint
_MAX_CHOICES = 2048
_MAX_TOKEN = 2**31 - 1

_encode = msgspec.json.Encoder().encode


class CompletionRequest(chat_vendor.SharedFields, forbid_unknown_fields=True, kw_only=True):
    prompt: str | list[str | int | list[int]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: int | None = None


def decode(body: bytes, request_id: str) -> Turn:
    """Raises `InvalidRequest` or `UnsupportedParameter`, naming the parameter."""
    request = jsonio.load(body, CompletionRequest)
    prompts = read_prompts(request.prompt, "prompt")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise UnsupportedParameter("'best_of' can only be equal to 'n' here.", param="best_of")
    if len(prompts) * (request.n or 1) > _MAX_CHOICES:
        raise InvalidRequest(f"More than {_MAX_CHOICES} choices were asked for.", param="n")
    if request.echo and request.logprobs is not None:
        raise UnsupportedParameter("'echo' cannot be combined with 'logprobs' here.", param="echo")
    if request.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise UnsupportedParameter("'echo' needs a prompt of text, not of tokens.", param="echo")
    options = request.stream_options
    return Turn(
        id=request_id,
        protocol="completions",
        model=request.model,
        prompts=prompts,
        suffix=request.suffix,
        echo=bool(request.echo),
        sampling=chat_vendor.sampling(
            request,
            max_tokens=DEFAULT_MAX_TOKENS
            if request.max_tokens is None
            else chat_vendor.limit(request.max_tokens, "max_tokens"),
            logprobs=request.logprobs is not None,
            top_logprobs=request.logprobs,
        ),
        format=chat_vendor.output_format(request),
        stream=bool(request.stream),
        include_usage=options is not None and bool(options.include_usage),
        user=request.user,
        extra=chat_vendor.extra(request),
    )


def encoder(turn: Turn, created: int) -> "CompletionEncoder":
    return CompletionEncoder(turn, created)


def read_prompts(value: str | list[Any], param: str) -> tuple[Prompt, ...]:
    """One text, one list of tokens, or a list of either; never a mixture."""
    if isinstance(value, str):
        return (value,)
    if not value:
        raise InvalidRequest(f"'{param}' is empty.", param=param)
    if all(isinstance(one, int) for one in value):
        return (_tokens(value, param),)
    if all(isinstance(one, str) for one in value):
        return tuple(value)
    if all(isinstance(one, list) for one in value):
        return tuple(_tokens(one, f"{param}[{number}]") for number, one in enumerate(value))
    raise InvalidRequest(f"'{param}' mixes texts and tokens.", param=param, code="invalid_type")


def _tokens(value: list[int], param: str) -> tuple[int, ...]:
    if not value:
        raise InvalidRequest(f"'{param}' is empty.", param=param)
    for number, token in enumerate(value):
        if not 0 <= token <= _MAX_TOKEN:
            raise InvalidRequest(f"'{param}[{number}]' is no token.", param=f"{param}[{number}]")
    return tuple(value)


class _Choice:
    __slots__ = ("finish", "logprobs", "offset", "text")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.offset = 0
        self.finish: str | None = None


class CompletionEncoder(OpenAiEncoder[_Choice]):
    """`text_completion`. Choices are numbered over the prompts, `n` for each. Thinking and tool calls have no place in
    this protocol; a raw completion has neither."""

    _prefix = "cmpl"
    _object = _chunk_object = "text_completion"

    def __init__(self, turn: Turn, created: int) -> None:
        super().__init__(turn, created, [_Choice() for _ in range(len(turn.prompts) * turn.sampling.n)])
        self._close = b',"logprobs":null,"finish_reason":null}]' + self._end
        opens = [b'%b"choices":[{"index":%d,"text":' % (self._head, index) for index in range(len(self._choices))]
        self._opens = self._text_opens = opens

    def start(self) -> bytes:
        """The prompts themselves where `echo` was asked for."""
        if not self._turn.echo:
            return b""
        return b"".join(part + _encode(self._prompt(index)) + self._close for index, part in enumerate(self._opens))

    def _prompt(self, choice: int) -> str:
        prompt = self._turn.prompts[choice // self._turn.sampling.n]
        return prompt if isinstance(prompt, str) else ""

    def _frame(self, event: Event) -> bytes:
        match event:
            case TextDelta():
                told = _encode(self._logprobs(self._choices[event.choice], event.logprobs))
                close = b',"logprobs":' + told + b',"finish_reason":null}]' + self._end
                return self._opens[event.choice] + _encode(event.text) + close
            case RefusalDelta():
                return self._opens[event.choice] + _encode(event.text) + self._close
            case Finished():
                self._choices[event.choice].finish = reason = _reason(event)
                close = b'"","logprobs":null,"finish_reason":"%b"}]%b' % (reason.encode(), self._end)
                return self._opens[event.choice] + close
            case Usage():
                self._usage = event
            case Failed():
                self.failed = event
                return sse.encode(failed_body(event))
        return b""

    def _collect(self, event: Event) -> None:
        match event:
            case TextDelta():
                self._choices[event.choice].text.append(event.text)
                self._choices[event.choice].logprobs.extend(event.logprobs)
            case RefusalDelta():
                self._choices[event.choice].text.append(event.text)
            case Finished():
                self._choices[event.choice].finish = _reason(event)
            case Usage():
                self._usage = event
            case Failed():
                self.failed = self.failed or event

    def _choice_object(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        return {
            "index": index,
            "text": self._prompt(index) + text if self._turn.echo else text,
            "logprobs": self._logprobs(choice, choice.logprobs) if choice.logprobs else None,
            "finish_reason": choice.finish,
        }

    def _logprobs(self, choice: _Choice, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """The old parallel lists. Offsets count characters of the answer."""
        if not self._turn.sampling.logprobs:
            return None
        offsets = []
        for one in logprobs:
            offsets.append(choice.offset)
            choice.offset += len(one.token)
        count = self._turn.sampling.top_logprobs or 0
        tops = [{top.token: top.logprob for top in one.top_logprobs[:count]} for one in logprobs]
        return {
            "tokens": [one.token for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": tops if count else None,
            "text_offset": offsets,
        }


def _reason(event: Finished) -> str:
    return "stop" if event.reason == "tool_calls" else event.reason
