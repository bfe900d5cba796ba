"""Request fields beyond OpenAI's that llama.cpp, vLLM and their clients know: the allow-list.

Some mean the same everywhere and become part of `Sampling` or `OutputFormat`; the others travel to the engine as they
are, in `Turn.extra`. Not on the list, on purpose: what would reach across requests (`id_slot`, `lora`, `priority`),
replace the template (`chat_template`), or load code (`logits_processors`).
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sekisho.core.errors import InvalidRequest
from sekisho.core.turn import OutputFormat, Sampling
from sekisho.wire import jsonio

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Limit = Annotated[int, Meta(ge=-1, le=2**31 - 1)]  # -1: none, as llama.cpp and LM Studio write it; never 0
Whole = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Zero = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
StopWord = Annotated[str, Meta(min_length=1, max_length=1000)]
StopWords = Annotated[list[StopWord], Meta(max_length=16)]


class SharedFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What `/v1/chat/completions` and `/v1/completions` have in common."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: "StreamOptions | None" = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    stop: StopWord | StopWords | None = None
    seed: Seed | None = None
    max_tokens: Limit | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    user: str | None = None

    top_k: Whole | None = None
    min_p: Share | None = None
    repeat_penalty: Zero | None = None
    repetition_penalty: Zero | None = None
    ignore_eos: bool | None = None
    guided_json: dict[str, Any] | str | None = None
    json_schema: dict[str, Any] | None = None
    response_format: "TextFormat | JsonFormat | SchemaFormat | None" = None

    add_generation_prompt: bool | None = None
    add_special_tokens: bool | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    cache_prompt: bool | None = None
    cache_salt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    documents: list[Any] | None = None
    dry_allowed_length: int | None = None
    dry_base: float | None = None
    dry_multiplier: float | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    dynatemp_exponent: float | None = None
    dynatemp_range: float | None = None
    grammar: str | None = None
    guided_choice: list[str] | None = None
    guided_decoding_backend: str | None = None
    guided_grammar: str | None = None
    guided_regex: str | None = None
    guided_whitespace_pattern: str | None = None
    include_reasoning: bool | None = None
    include_stop_str_in_output: bool | None = None
    length_penalty: float | None = None
    min_keep: int | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    mirostat: int | None = None
    mirostat_eta: float | None = None
    mirostat_tau: float | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    n_keep: int | None = None
    parse_tool_calls: bool | None = None
    reasoning_format: str | None = None
    repeat_last_n: int | None = None
    samplers: list[str] | str | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: dict[str, Any] | None = None
    t_max_predict_ms: int | None = None
    thinking_forced_open: bool | None = None
    top_n_sigma: float | None = None
    truncate_prompt_tokens: int | None = None
    typical_p: Share | None = None
    xtc_probability: Share | None = None
    xtc_threshold: Share | None = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Only `include_usage` changes anything here: frames are never padded, and usage comes once, at the end."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    pass


class JsonFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """llama.cpp allows a schema here too."""

    schema: dict[str, Any] | None = None


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class SchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    json_schema: NamedSchema


PASSED_ON = SharedFields.__struct_fields__[SharedFields.__struct_fields__.index("add_generation_prompt") :]


def extra(request: SharedFields) -> dict[str, Any]:
    """The fields that go to the engine unchanged, where the client set them."""
    return {name: value for name in PASSED_ON if (value := getattr(request, name)) is not None}


def limit(value: int | None, param: str) -> int | None:
    """How many tokens an answer may have; None where there is no limit. Raises `InvalidRequest` for 0."""
    if value == 0:
        raise InvalidRequest(f"'{param}' must be at least 1, or -1 for no limit.", param=param)
    return None if value == -1 else value


def sampling(
    request: SharedFields, *, max_tokens: int | None, logprobs: bool = False, top_logprobs: int | None = None
) -> Sampling:
    stop = request.stop
    penalty = request.repeat_penalty
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        max_tokens=max_tokens,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        seed=request.seed,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repeat_penalty=request.repetition_penalty if penalty is None else penalty,
        logit_bias=request.logit_bias,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
        n=request.n or 1,
        ignore_eos=bool(request.ignore_eos),
    )


def output_format(request: SharedFields) -> OutputFormat:
    """OpenAI's `response_format`, or a bare schema as llama.cpp and vLLM clients send it."""
    asked = request.response_format
    if isinstance(asked, SchemaFormat):
        named = asked.json_schema
        return OutputFormat("json_schema", named.name, named.schema, named.strict, named.description)
    if isinstance(asked, JsonFormat):
        return OutputFormat("json_object") if asked.schema is None else _bare(asked.schema)
    if request.json_schema is not None:
        return _bare(request.json_schema)
    if isinstance(request.guided_json, str):
        try:
            return _bare(jsonio.load_object(request.guided_json.encode(errors="surrogatepass")))
        except InvalidRequest as error:
            raise InvalidRequest("'guided_json' is not a JSON object.", param="guided_json") from error
    if request.guided_json is not None:
        return _bare(request.guided_json)
    return OutputFormat()


def _bare(schema: dict[str, Any]) -> OutputFormat:
    return OutputFormat("json_schema", "output", schema)
