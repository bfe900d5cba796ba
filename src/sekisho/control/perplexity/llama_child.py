"""The child process of route a: `python -m sekisho.control.perplexity.llama_child FOLDER`.

Reads `order.json` in the folder, loads the model a second time with the asked types of the KV cache, and writes
`answer.json`. The C++ code may abort: that ends this process and no other. It is nicer than the worker, which serves.
"""

import os
import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from sekisho.control.perplexity.base import Scores, Stretch, Unmeasured
from sekisho.control.perplexity.output_matrix import OutputMatrix
from sekisho.core.decoding import decoded
from sekisho.engines import lifeline, llama_worker, native_build, stretches
from sekisho.engines.config import ModelConfig
from sekisho.engines.worker_process import WorkerError, new_key

ORDER, ANSWER = "order.json", "answer.json"
_NICE: Final = 10
_ANY_PORT: Final = 0  # llama.cpp takes a free one and tells it; one that was free a moment ago may be taken by now
_MOST_NUMBERS: Final = 4_000_000  # hidden states of one answer, as JSON about 12 bytes each
_BYTES_A_NUMBER: Final = 80  # as text, as Python's float, in the array
_LEAST_STRETCH: Final = 64


class Order(msgspec.Struct, frozen=True):
    """`only`: the number of the one stretch to measure; None: all."""

    config: ModelConfig
    body: str
    stretch: int
    only: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """One of the two."""

    scores: Scores | None = None
    reason: str | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _States(msgspec.Struct):
    embedding: list[list[float]]


def scores(order: Order) -> Scores:
    """Raises `Unmeasured` and `WorkerError`."""
    import xllamacpp

    path = llama_worker.model_path(order.config)
    matrix = OutputMatrix(path)
    llama_worker.check_memory(path, order.config)
    length = min(order.stretch, order.config.context, max(_LEAST_STRETCH, _MOST_NUMBERS // matrix.width))
    _check_room(path, length * matrix.width)
    key = new_key()
    params = _parameters(order.config, path, length, key)
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError, MemoryError) as error:
        raise Unmeasured(f"llama.cpp could not load {path.name} a second time: {error}") from None
    ask = _Client(server.listening_address, key)
    tokens = ask("/tokenize", {"content": order.body, "add_special": False}, _Tokens).tokens
    opening = ask("/tokenize", {"content": "", "add_special": True}, _Tokens).tokens[:1]
    try:
        parts = stretches.cut(tokens, opening, length, order.only)
    except ValueError as error:
        raise Unmeasured(str(error)) from None
    kv = {"key_type": order.config.kv_type_k, "value_type": order.config.kv_type_v, "stretch": length}
    return Scores([_scored(part, ask, matrix) for part in parts], kv, native_build.software(xllamacpp.__version__))


def _check_room(path: Path, numbers: int) -> None:
    """Beside the weights, which `llama_worker.check_memory` has looked at, and which the worker maps as well."""
    needed, free = path.stat().st_size + numbers * _BYTES_A_NUMBER, psutil.virtual_memory().available
    if needed > free:
        raise Unmeasured(f"measuring needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free")


def _scored(part: list[int], ask: "_Client", matrix: OutputMatrix) -> Stretch:
    import numpy as np

    states = np.asarray(ask("/embeddings", {"content": part}, list[_States])[0].embedding, np.float32)
    if len(states) != len(part):
        raise Unmeasured(f"llama.cpp told the states of {len(states)} tokens out of {len(part)}")
    return Stretch(part, matrix.nll(states[:-1], np.asarray(part[1:], np.int64)).tolist())


def _parameters(config: ModelConfig, path: Path, length: int, key: str) -> Any:
    """As the worker's own, but one slot as long as a stretch, and states of all tokens instead of text. A stretch is
    one batch: its keys and values go into the cache, in its type, before any of them is looked at."""
    import xllamacpp

    alone = msgspec.structs.replace(config, slots=1, context=length, mmproj=None, embeddings=False)
    params = llama_worker.parameters(alone, path, _ANY_PORT, key)
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE
    params.embd_normalize = -1
    params.n_batch = params.n_ubatch = length
    params.cache_prompt = False
    params.n_threads_http = 2
    return params


class _Client:
    """Asks our own server, in this process."""

    def __init__(self, address: str, key: str) -> None:
        self._address, self._key = address, key

    def __call__(self, path: str, body: dict[str, Any], shape: Any) -> Any:
        import urllib.error
        import urllib.request

        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, msgspec.json.encode(body), headers)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                return decoded(answer.read(), shape)
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            raise Unmeasured(f"llama.cpp refused {path} with {error.code}: {said}") from None
        except ValueError as error:
            raise Unmeasured(f"llama.cpp answered {path} in another shape than expected: {error}") from None


def main(arguments: list[str] | None = None) -> int:
    (folder,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    lifeline.die_with_parent()
    if hasattr(os, "nice"):
        os.nice(_NICE)
    native_build.activate()
    try:
        answer = Answer(scores=scores(decoded((folder / ORDER).read_bytes(), Order)))
    except (Unmeasured, WorkerError) as error:
        answer = Answer(reason=str(error))
    whole = folder / f"{ANSWER}.part"
    whole.write_bytes(msgspec.json.encode(answer))
    whole.replace(folder / ANSWER)
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # the answer is on the disk; nothing of llama.cpp needs to be taken down in order
