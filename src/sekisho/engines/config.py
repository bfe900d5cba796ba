"""Settings of the `engines:` part of sekisho.yaml."""

from typing import Any, Final, Literal

import msgspec

BUILTIN_CONTEXT = 2048
WORKER_ENGINES: Final = frozenset({"llama_cpp", "torch"})  # run in processes that the supervisor starts
Thinking = Literal["marked", "opened", "unknown", "channels"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model the team can name. `engine` picks the implementation; the other fields are for that one.

    `llama_cpp`: `path` (a GGUF file, or `builtin`), `context` (tokens per slot), `slots`, `gpu_layers` (-1: all that
    fit), `devices`, `kv_type_k`, `kv_type_v`, `chat_template` (a file), `mmproj` (a file), `embeddings`, `threads`, and
    in `options` `cache_ram_mib`, `demote_after_prefill` (prompts are read at 16 bits and stored at the KV types) and
    `speculation` (`off`, `ngram`). `torch`: `path` (a model folder of Hugging Face's form, a GGUF file, or `builtin`),
    `context`, `slots`, `devices` (`cpu`, or one card), `chat_template`, `embeddings`, `threads`, `kv` (the policy of
    the KV cache, for `sekisho.kv.policy.from_plain`), `kv_limit_mib` (what the cache may take; None: a share of what is
    free), and in `options` `dtype` and `prefill_chunk`. `openai_http`: `url` (ends in /v1), `upstream_model`,
    `api_key_env` or `api_key_file`, `slots` (how many requests may run there at once), and in `options` `actuator`
    (what is behind the address: `control.actuators`). `fake`: for tests. `thinking`: where an answer's text begins.
    `marked`: in the answer, thoughts stand between marks; `opened`: in a thought that the chat template has opened;
    `unknown`: one or the other, so that nothing is streamed before it is clear; `channels`: gpt-oss, only its final
    channel is shown.
    """

    name: str
    engine: Literal["llama_cpp", "torch", "openai_http", "fake"] = "llama_cpp"
    path: str | None = None
    context: int = 4096
    slots: int = 4
    gpu_layers: int = -1
    devices: str | None = None
    kv_type_k: KvType = "f16"
    kv_type_v: KvType = "f16"
    chat_template: str | None = None
    mmproj: str | None = None
    embeddings: bool = False
    threads: int | None = None
    kv: dict[str, Any] | None = None
    kv_limit_mib: float | None = None
    url: str | None = None
    upstream_model: str | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 120.0
    thinking: Thinking = "marked"
    options: dict[str, str | int | float | bool] = {}

    def __post_init__(self) -> None:
        """llama.cpp gives the built-in model no more than it was made for: this says so."""
        if self.path == "builtin":
            msgspec.structs.force_setattr(self, "context", min(self.context, BUILTIN_CONTEXT))

    @property
    def has_worker(self) -> bool:
        """Whether the supervisor starts this engine."""
        return self.engine in WORKER_ENGINES
