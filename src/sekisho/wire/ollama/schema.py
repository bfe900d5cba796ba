"""The requests as they stand on the wire. A null means the same as a missing key, as it does in Ollama."""

from typing import Annotated, Any, Literal

import msgspec

_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Number = int | float
Scalar = int | float | str | bool | None


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """Whole numbers may be written with a point (`40.0`), as Go clients do."""

    num_predict: _Number | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_k: _Number | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seed: _Number | None = None
    stop: str | list[str] | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(ge=0)] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    # Handed on to the engine under the names that llama.cpp gives them.
    typical_p: float | None = None
    repeat_last_n: _Number | None = None
    mirostat: _Number | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    # Read and left unused; the package's docstring says why.
    num_ctx: Scalar = None
    num_batch: Scalar = None
    num_gpu: Scalar = None
    main_gpu: Scalar = None
    num_thread: Scalar = None
    numa: Scalar = None
    low_vram: Scalar = None
    f16_kv: Scalar = None
    vocab_only: Scalar = None
    logits_all: Scalar = None
    embedding_only: Scalar = None
    use_mmap: Scalar = None
    use_mlock: Scalar = None
    num_keep: Scalar = None
    penalize_newline: Scalar = None
    tfs_z: Scalar = None


class FunctionCall(msgspec.Struct):
    name: _Name
    arguments: dict[str, Any] | None = None


class ToolCallParam(msgspec.Struct):
    function: FunctionCall
    id: str | None = None


class MessageParam(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCallParam] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class FunctionParam(msgspec.Struct):
    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolParam(msgspec.Struct):
    function: FunctionParam
    type: Literal["function"] | None = None


class Common(msgspec.Struct, forbid_unknown_fields=True):
    """What chat and generate share."""

    model: _Name
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    keep_alive: Scalar = None
    truncate: bool | None = None
    shift: bool | None = None


class ChatRequest(Common, forbid_unknown_fields=True):
    messages: list[MessageParam] | None = None
    tools: list[ToolParam] | None = None


class GenerateRequest(Common, forbid_unknown_fields=True):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    images: list[str] | None = None
    raw: bool | None = None
    template: str | None = None
    context: list[int] | None = None
    width: Any = None
    height: Any = None
    steps: Any = None


class EmbedRequestParam(msgspec.Struct, forbid_unknown_fields=True):
    model: _Name
    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None  # as in OpenAI's protocol here
    options: Options | None = None
    keep_alive: Scalar = None


class EmbeddingsRequestParam(msgspec.Struct, forbid_unknown_fields=True):
    model: _Name
    prompt: str | None = None
    options: Options | None = None
    keep_alive: Scalar = None


class ShowRequest(msgspec.Struct):
    """`name` is what older clients say for `model`. What else they send changes nothing that is shown."""

    model: str | None = None
    name: str | None = None
