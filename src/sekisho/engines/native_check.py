"""The child process that tries out one llama.cpp: `python -m sekisho.engines.native_check ORDER`.

Which one is decided by its parent, through PYTHONPATH. One JSON object a line on standard output, each as soon as it is
known: the C++ code may abort, and takes only what comes after it. `devices`: what llama.cpp could compute on.
`answers`: greedy tokens of the model at each KV type, and an answer held to a JSON schema. `speed`: one measurement for
each line on standard input.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.config import ModelConfig
from sekisho.engines.native_attention import OFF_ENV

PROMPT: Final = "Hello, how are you today? I am"
LONG_PROMPT: Final = " ".join(f"{number}. {PROMPT}." for number in range(1, 9)) + " I am"
"""More than a block of cached positions, and more rows than one turn of an attention kernel."""
FAR_PROMPT: Final = " ".join(f"{number}. {PROMPT}." for number in range(1, 77)) + " I am"
"""About 1,000 tokens, 2,000 of the built-in model: a context that threads cut into parts."""
TOKENS: Final = 12
SCHEMA: Final = {"enum": ["sekisho"]}
SCHEMA_KIND: Final = "schema"
_LIKELIEST: Final = 10
_ANY_PORT: Final = 0  # nobody asks there
_FIRST, _SPAN = 40, 200  # tokens that every vocabulary has


class Order(msgspec.Struct, frozen=True):
    """`kinds`: of `answers`, KV types and `SCHEMA_KIND`. `far`: after a prompt of a thousand
    tokens. `prompt_tokens`, `answer_tokens`: of a measurement."""

    task: Literal["devices", "answers", "speed"]
    config: ModelConfig
    kinds: tuple[str, ...] = ()
    extra_buffers: bool = True
    attention: bool = True
    far: bool = False
    prompt_tokens: int = 512
    answer_tokens: int = 32


class Place(msgspec.Struct, frozen=True):
    """One generated token, and the log probabilities of those that were likeliest there."""

    token: int
    logprobs: dict[int, float]


class Told(msgspec.Struct, frozen=True):
    """One line. `what`: a kind, `loaded` (with where the library lies), `devices`, or `measured` (tokens/s)."""

    what: str
    places: tuple[Place, ...] = ()
    text: str = ""
    names: tuple[str, ...] = ()
    prefill: float = 0.0
    decode: float = 0.0


def devices() -> Iterator[Told]:
    import xllamacpp

    found = xllamacpp.get_device_info()
    yield Told("devices", names=tuple(each["name"] for each in found if "GPU" in each["type"].name))


def answers(order: Order) -> Iterator[Told]:
    for kind in order.kinds:
        if kind == SCHEMA_KIND:
            yield Told(kind, text=_held_to_schema(order))
        else:
            yield Told(kind, places=_greedy(order, kind))


def _greedy(order: Order, kind: str) -> tuple[Place, ...]:
    prompt = FAR_PROMPT if order.far else LONG_PROMPT
    asked = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": _LIKELIEST, "ignore_eos": True}
    answer = _server(order, kind).handle_completions(asked)
    if "choices" not in answer:
        raise RuntimeError(f"no answer came: {str(answer)[:200]}")
    return tuple(
        Place(place["id"], {each["id"]: float(each["logprob"]) for each in place["top_logprobs"]})
        for place in answer["choices"][0]["logprobs"]["content"]
    )


def _held_to_schema(order: Order) -> str:
    shape = {"type": "json_schema", "json_schema": {"name": "word", "schema": SCHEMA}}
    messages = [{"role": "user", "content": PROMPT}]
    asked = {"messages": messages, "max_tokens": TOKENS * 4, "temperature": 0, "response_format": shape}
    answer = _server(order, "f16").handle_chat_completions(asked)
    if "choices" not in answer:
        raise RuntimeError(f"no answer came: {str(answer)[:200]}")
    return str(answer["choices"][0]["message"]["content"])


def speed(order: Order) -> Iterator[Told]:
    """`prefill` of a prompt that is in no cache, `decode` of what follows it."""
    server = _server(order, order.config.kv_type_k)
    yield Told("loaded", text=_library())
    for count, _ in enumerate(sys.stdin):
        prompt = [_FIRST + (7 * at + count) % _SPAN for at in range(order.prompt_tokens)]
        asked = {"prompt": prompt, "max_tokens": order.answer_tokens, "temperature": 0, "ignore_eos": True}
        answer = server.handle_completions(asked | {"cache_prompt": False})
        if "timings" not in answer:
            raise RuntimeError(f"no answer came: {str(answer)[:200]}")
        timings = answer["timings"]
        yield Told("measured", prefill=timings["prompt_per_second"], decode=timings["predicted_per_second"])


def _server(order: Order, kind: str) -> Any:
    """With the settings of a worker, but without its HTTP interface's limits."""
    if not order.attention:
        os.environ[OFF_ENV] = "0"  # before the library is loaded, which reads it once
    import xllamacpp

    from sekisho.engines import llama_worker

    alike: Any = {"kv_type_k": kind, "kv_type_v": kind, "slots": 1}
    config = msgspec.structs.replace(order.config, **alike)
    key = llama_worker.new_key()
    params = llama_worker.parameters(config, llama_worker.model_path(config), _ANY_PORT, key)
    params.n_threads_http = 1
    params.no_extra_bufts = not order.extra_buffers
    return xllamacpp.Server(params)


def _library() -> str:
    import xllamacpp

    return str(xllamacpp.__file__)


def main(arguments: list[str]) -> int:
    from sekisho.engines.worker_process import WorkerError

    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints goes elsewhere
    try:
        order = decoded(arguments[0].encode(), Order)
        told = {"devices": lambda: devices(), "answers": lambda: answers(order), "speed": lambda: speed(order)}
        for each in told[order.task]():
            lines.write(msgspec.json.encode(each) + b"\n")
            lines.flush()
    except (Undecodable, WorkerError, RuntimeError, ValueError, MemoryError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # nothing of llama.cpp needs to be taken down in order
