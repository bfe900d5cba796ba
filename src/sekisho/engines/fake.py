"""A deterministic engine for tests, steered by words in the last message that is not an instruction. `fake_server` says
the same over HTTP.

It answers with that message's text, less the directives in it:

    tokens:N        says N numbered words instead of the echo
    reason:WORD     thinks WORD first
    call:NAME {..}  calls a declared tool with this JSON, or with the rest of the line for a custom tool; repeatable;
                    only where that message is a user's (after a tool result it says `result: ...`). Where the
                    request forces a tool, it is called with {} without being told
    delay:S         waits S seconds before the first piece          pace:S   waits S seconds before each later one
    stall:K         hangs for ever after K pieces                   crash:K  goes away after K pieces
    error:K         tells an error after K pieces                   status:N answers with HTTP status N
    split:N, crlf:1, comments:1, nodone:1   shape the bytes; they mean something to `fake_server` only

One piece is one word with the space before it. Usage counts words, so that it can be known beforehand: input is the
words of all text in the prompt, output the pieces said (text, thinking, one for each tool call).
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

import msgspec

from sekisho.core.errors import ContextTooLong, EngineFailed, EngineUnavailable, InvalidRequest, RateLimited
from sekisho.core.events import (
    Batch,
    EventStream,
    Failed,
    Finished,
    FinishReason,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from sekisho.core.turn import EmbedRequest, Prompt, Reasoning, Text, Tool, ToolCall, ToolResult, Turn
from sekisho.engines.base import Embeddings, EngineModel, Health
from sekisho.engines.config import ModelConfig

_DIRECTIVE = re.compile(
    r"(?<!\S)(?:(reason):(\S+)|(delay|pace):(\d{1,4}(?:\.\d{1,6})?)(?!\S)"
    r"|(tokens|stall|crash|error|status|split|crlf|comments|nodone):(\d{1,6})(?!\S))"
)
_CALL = re.compile(r"(?<!\S)call:([\w.-]+)[ \t]*")
EMBEDDING_DIMENSIONS = 16
CONTEXT_WORDS = 4096


class Call(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class Script(msgspec.Struct, frozen=True):
    """What the fake will do. `pieces` are the words said; None and 0 mean: not asked for."""

    pieces: tuple[str, ...]
    reason: str = ""
    calls: tuple[Call, ...] = ()
    delay_s: float = 0.0
    pace_s: float = 0.0
    stall: int | None = None
    crash: int | None = None
    error: int | None = None
    status: int = 0
    split: int = 0
    crlf: bool = False
    comments: bool = False
    done: bool = True
    finish: FinishReason = "stop"

    @property
    def output_tokens(self) -> int:
        return len(self.pieces) + bool(self.reason) + len(self.calls)


def read_script(
    text: str,
    *,
    tool_names: Iterable[str] = (),
    from_user: bool = True,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
) -> Script:
    """The script that a last message asks for."""
    calls, text = _calls(text) if from_user and tool_names else ((), text)
    known = set(tool_names)
    found = dict(tuple(filter(None, groups)) for groups in _DIRECTIVE.findall(text))
    said = _DIRECTIVE.sub("", text).strip() if found else text
    if not from_user:
        said = f"result: {said}"
    count = int(found.get("tokens", 0))
    if count:
        said = " ".join(f"word{number}" for number in range(1, count + 1))
    kept = tuple(call for call in calls if call.name in known)
    finish: FinishReason = "tool_calls" if kept else "stop"
    for mark in stop:
        said = said.partition(mark)[0]
    pieces = () if kept else words(said) or ("ok",)
    if max_tokens is not None and len(pieces) > max_tokens:
        pieces, finish = pieces[:max_tokens], "length"
    return Script(
        pieces=pieces,
        reason=found.get("reason", ""),
        calls=kept,
        delay_s=float(found.get("delay", 0)),
        pace_s=float(found.get("pace", 0)),
        stall=_optional(found, "stall"),
        crash=_optional(found, "crash"),
        error=_optional(found, "error"),
        status=int(found.get("status", 0)),
        split=int(found.get("split", 0)),
        crlf=found.get("crlf") == "1",
        comments=found.get("comments") == "1",
        done=found.get("nodone") != "1",
        finish=finish,
    )


def _optional(found: dict[str, str], name: str) -> int | None:
    return int(found[name]) if name in found else None


def _calls(text: str) -> tuple[tuple[Call, ...], str]:
    """Takes the `call:` directives out of a text."""
    calls, decoder, rest, at = [], json.JSONDecoder(), [], 0
    for match in _CALL.finditer(text):
        if match.start() < at:
            continue
        rest.append(text[at : match.start()])
        try:
            _, at = decoder.raw_decode(text, match.end() if text.startswith("{", match.end()) else len(text))
        except ValueError:  # free text: to the end of the line
            at = len(text[: match.end()] + text[match.end() :].partition("\n")[0])
        calls.append(Call(match[1], text[match.end() : at]))
    rest.append(text[at:])
    return tuple(calls), "".join(rest)


def words(text: str) -> tuple[str, ...]:
    """The pieces of a text: joined they give it back."""
    return tuple(re.findall(r"\s*\S+(?:\s+$)?|^\s+$", text))


def embedding(text: str, dimensions: int = EMBEDDING_DIMENSIONS) -> list[float]:
    """A unit vector that is a function of the text alone."""
    raw: list[int] = []
    while len(raw) < dimensions:
        raw.extend(hashlib.sha256(f"{len(raw)}:{text}".encode()).digest())
    vector = [value - 127.5 for value in raw[:dimensions]]
    length: float = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector]


def prompt_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def count_words(turn: Turn) -> int:
    """Input tokens of a turn as this engine counts them."""
    total = sum(len(prompt_text(prompt).split()) for prompt in turn.prompts)
    for message in turn.messages:
        for part in message.parts:
            if isinstance(part, Text | Reasoning):
                total += len(part.text.split())
            elif isinstance(part, ToolResult):
                total += sum(len(inner.text.split()) for inner in part.content if isinstance(inner, Text))
            elif isinstance(part, ToolCall):
                total += len(part.arguments.split())
    return total


def turn_script(turn: Turn, prompt: Prompt | None = None) -> Script:
    """The script of a turn, or of one of its raw prompts."""
    sampling = turn.sampling
    if prompt is not None:
        return read_script(prompt_text(prompt), max_tokens=sampling.max_tokens, stop=sampling.stop)
    asked = [message for message in turn.messages if message.role not in ("system", "developer")]
    last = (asked or turn.messages)[-1]
    texts = [part.text for part in last.parts if isinstance(part, Text)]
    for part in last.parts:
        if isinstance(part, ToolResult):
            texts.extend(inner.text for inner in part.content if isinstance(inner, Text))
    names = [] if turn.tool_choice.mode == "none" else [_called(tool) for tool in turn.tools]
    text = "\n".join(texts)
    if names and turn.tool_choice.mode in ("one", "required") and not _CALL.search(text):
        wanted = [_called(tool) for tool in turn.tools if tool.name == turn.tool_choice.name]
        text += f"\ncall:{(wanted or names)[0]} {{}}"
    return read_script(
        text,
        tool_names=names,
        from_user=last.role != "tool",
        max_tokens=sampling.max_tokens,
        stop=sampling.stop,
    )


def _called(tool: Tool) -> str:
    """How a prompt names a tool: `namespace.name` where it has a namespace."""
    return f"{tool.namespace}.{tool.name}" if tool.namespace else tool.name


def status_error(status: int) -> Exception:
    """The error that `status:N` asks for."""
    kinds = {400: InvalidRequest, 429: RateLimited, 503: EngineUnavailable}
    return kinds.get(status, EngineFailed)(f"the fake engine was asked to answer {status}")


class FakeEngine:
    """Runs scripts in this process. `active`, `cancelled` and `turns` are there for tests to look at."""

    def __init__(self, config: ModelConfig) -> None:
        self.name = config.name
        self.active = 0
        self.cancelled = 0
        self.turns: list[Turn] = []
        self.count_takes_slot = False
        self._slots = config.slots
        self._context = int(config.options.get("context_words", CONTEXT_WORDS))

    async def generate(self, turn: Turn) -> EventStream:
        self.turns.append(turn)
        self.active += 1
        done = False
        try:
            async for batch in self._run(turn):
                yield batch
            done = True
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except Exception:
            done = True
            raise
        finally:
            self.active -= 1
            self.cancelled += not done

    async def _run(self, turn: Turn) -> EventStream:
        prompts: tuple[Prompt | None, ...] = turn.prompts or (None,)
        scripts = [turn_script(turn, prompt) for prompt in prompts for _ in range(turn.sampling.n)]
        self._refuse(turn, scripts[0])
        yield [Started(self.name)]
        for choice, script in enumerate(scripts):
            async for batch in _perform(script, turn, choice):
                yield batch
                if any(isinstance(event, Failed) for event in batch):
                    return
        ends: Batch = [Finished(script.finish, choice) for choice, script in enumerate(scripts)]
        usage = Usage(
            count_words(turn),
            sum(script.output_tokens for script in scripts),
            reasoning_tokens=sum(bool(script.reason) for script in scripts),
        )
        yield [usage, *ends]

    def _refuse(self, turn: Turn, script: Script) -> None:
        self._check_fits(count_words(turn))
        if script.status:
            raise status_error(script.status)
        if script.crash == 0:
            raise EngineUnavailable("the fake engine went away")
        if script.error == 0:
            raise EngineFailed("the fake engine was asked to fail")

    def _check_fits(self, count: int) -> None:
        if count > self._context:
            raise ContextTooLong(f"the prompt has {count} tokens, the context holds {self._context}")

    async def embed(self, request: EmbedRequest) -> Embeddings:
        texts = [prompt_text(prompt) for prompt in request.inputs]
        self._check_fits(max((len(text.split()) for text in texts), default=0))
        size = request.dimensions or EMBEDDING_DIMENSIONS
        return Embeddings([embedding(text, size) for text in texts], Usage(sum(len(text.split()) for text in texts), 0))

    async def count_tokens(self, turn: Turn) -> int:
        return count_words(turn)

    async def models(self) -> list[EngineModel]:
        return [EngineModel(self.name, context_tokens=self._context, embeddings=True, vision=True, family="fake")]

    async def health(self) -> Health:
        return Health("ready")

    async def close(self) -> None:
        return None


async def _perform(script: Script, turn: Turn, choice: int) -> EventStream:
    await asyncio.sleep(script.delay_s)
    for said, batch in enumerate([*_batches(script, turn, choice), None]):
        if said and batch and script.pace_s:
            await asyncio.sleep(script.pace_s)
        if script.stall == said:
            await asyncio.Event().wait()
        if said in (script.crash, script.error):
            error = EngineFailed("the fake engine broke")
            yield [Failed(error.id, error.error_code, error.type, error.message)]
            return
        if batch is not None:
            yield batch


def _batches(script: Script, turn: Turn, choice: int) -> Iterable[Batch]:
    if script.reason:
        yield [ReasoningDelta(script.reason, choice)]
    for piece in script.pieces:
        yield [TextDelta(piece, choice)]
    tools = {_called(tool): tool for tool in turn.tools}
    for index, call in enumerate(script.calls):
        tool = tools[call.name]
        half = len(call.arguments) // 2
        first = ToolCallDelta(
            index, f"call_{turn.id}_{index}", tool.name, call.arguments[:half], tool.kind, tool.namespace, choice
        )
        rest = ToolCallDelta(index, arguments=call.arguments[half:], kind=tool.kind, choice=choice)
        yield [first, rest]
