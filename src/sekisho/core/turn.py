"""A turn: everything a caller asked for, free of any protocol. Codecs make it, stages enrich it, engines run it."""

from typing import Any, Literal

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool"]
ToolKind = Literal["function", "custom", "web_search"]


class Text(msgspec.Struct, frozen=True, tag="text"):
    text: str


class Image(msgspec.Struct, frozen=True, tag="image"):
    """`url` is a `data:` or `http(s):` URL."""

    url: str
    detail: str | None = None


class Audio(msgspec.Struct, frozen=True, tag="audio"):
    """`data` is base64; `format` is `wav` or `mp3`."""

    data: str
    format: str


class Document(msgspec.Struct, frozen=True, tag="document"):
    """An attached file. `data` is a `data:` URL, or None when the text part beside it says it all."""

    name: str | None = None
    data: str | None = None


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    text: str


class Reasoning(msgspec.Struct, frozen=True, tag="reasoning"):
    """Thinking of an earlier assistant turn, handed back by the client. `sealed` is opaque to the client."""

    text: str = ""
    summary: tuple[str, ...] = ()
    sealed: str | None = None
    id: str | None = None


class ToolCall(msgspec.Struct, frozen=True, tag="tool_call"):
    """`arguments` is the raw JSON text for a function, free text for a custom tool. `namespace` is never joined
    to `name` here; engines that know no namespaces join and split it again (`wire.tools`)."""

    id: str
    name: str
    arguments: str
    kind: ToolKind = "function"
    namespace: str | None = None
    item_id: str | None = None


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result"):
    call_id: str
    content: tuple[Text | Image, ...] = ()
    is_error: bool = False
    kind: ToolKind = "function"
    item_id: str | None = None


Part = Text | Image | Audio | Document | Refusal | Reasoning | ToolCall | ToolResult


class Message(msgspec.Struct, frozen=True):
    """`parts` in the order in which they were said. Tool results stand in a message of role `tool`."""

    role: Role
    parts: tuple[Part, ...]
    name: str | None = None
    item_id: str | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool the model may call. `parameters` is JSON Schema; `grammar` is a custom tool's format object."""

    name: str
    kind: ToolKind = "function"
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    namespace: str | None = None
    grammar: dict[str, Any] | None = None


class ToolChoice(msgspec.Struct, frozen=True):
    """`one` means the tool `name` (in `namespace`) must be called; `allowed` narrows the list where not empty."""

    mode: Literal["auto", "none", "required", "one"] = "auto"
    name: str | None = None
    namespace: str | None = None
    allowed: tuple[str, ...] = ()


class Sampling(msgspec.Struct, frozen=True):
    """None means: the engine's default. `max_tokens` bounds reasoning and text together."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    n: int = 1
    ignore_eos: bool = False


class OutputFormat(msgspec.Struct, frozen=True):
    kind: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ReasoningRequest(msgspec.Struct, frozen=True):
    effort: str | None = None
    summary: str | None = None
    budget_tokens: int | None = None
    enabled: bool | None = None


class Caller(msgspec.Struct, frozen=True):
    """Who asks: the key, and where the key vouches for it, the person behind the client."""

    key_id: str
    name: str
    scopes: frozenset[str] = frozenset()
    models: frozenset[str] | None = None
    user: str | None = None


Prompt = str | tuple[int, ...]


class Turn(msgspec.Struct, frozen=True):
    """One request for generation. Exactly one of `messages` and `prompts` is filled (`prompts`: raw completion).

    `extra` holds engine fields that a codec's allow-list lets through unchanged (`chat_template_kwargs`, …).
    `caller` is set by the gateway after decoding; `model` is the name the client used.
    """

    id: str
    protocol: Literal["chat", "completions", "responses", "messages", "ollama_chat", "ollama_generate"]
    model: str
    messages: tuple[Message, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    suffix: str | None = None
    echo: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool | None = None
    sampling: Sampling = Sampling()
    format: OutputFormat = OutputFormat()
    reasoning: ReasoningRequest = ReasoningRequest()
    stream: bool = False
    include_usage: bool = False
    previous_response_id: str | None = None
    metadata: dict[str, str] = {}
    user: str | None = None
    extra: dict[str, Any] = {}
    caller: Caller | None = None


class EmbedRequest(msgspec.Struct, frozen=True):
    """`inputs` keeps the order of the request; `encoding` is how the client wants floats written."""

    id: str
    model: str
    inputs: tuple[Prompt, ...]
    dimensions: int | None = None
    encoding: Literal["float", "base64"] = "float"
    protocol: Literal["embeddings", "ollama_embed", "ollama_embeddings"] = "embeddings"
    user: str | None = None
    truncate: bool | None = None
    caller: Caller | None = None
