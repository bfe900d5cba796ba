"""Route a: hidden states of a second llama.cpp under the chosen types of the KV cache, times the output matrix.

Fast (a stretch is one batch), and it needs no pause of the worker; but the model is in memory twice, where it is not
mapped from the same file. The cache's types act as in the worker: keys and values are stored in them and read back.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from sekisho.control.perplexity.base import Scores, Unmeasured
from sekisho.control.perplexity.llama_child import ANSWER, ORDER, Answer, Order
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines import lifeline
from sekisho.engines.config import KvType, ModelConfig

ROUTE: Final = "llama_hidden"
_LOG_BYTES: Final = 2000


async def score(
    config: ModelConfig,
    body: str,
    stretch: int,
    *,
    only: int | None = None,
    kv: tuple[KvType, KvType] | None = None,
    deadline_s: float = 1800.0,
) -> Scores:
    """`kv`: types of keys and values, None: those of `config`. Raises `Unmeasured`: too little memory, no time left, a
    crash of the child. Cancelling ends the child."""
    if kv is not None:
        config = msgspec.structs.replace(config, kv_type_k=kv[0], kv_type_v=kv[1])
    with tempfile.TemporaryDirectory(prefix="sekisho-perplexity-") as name:
        folder = Path(name)
        (folder / ORDER).write_bytes(msgspec.json.encode(Order(config, body, stretch, only)))
        code = await _run(folder, deadline_s)
        try:
            answer = decoded((folder / ANSWER).read_bytes(), Answer)
        except FileNotFoundError:
            raise Unmeasured(f"the process that measures ended with {_ending(code)}: {_last_line(folder)}") from None
        except Undecodable as error:
            raise Unmeasured(f"the process that measures told nothing that can be read: {error}") from None
    if answer.scores is None:
        raise Unmeasured(answer.reason or "the process that measures gave no reason")
    return answer.scores


async def _run(folder: Path, deadline_s: float) -> int:
    command = (sys.executable, "-m", "sekisho.control.perplexity.llama_child", str(folder))
    with (folder / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,  # its lifeline
            stdout=log,
            stderr=log,
            env=os.environ | lifeline.environment(),
        )
        try:
            async with asyncio.timeout(deadline_s):
                return await child.wait()
        except TimeoutError:
            raise Unmeasured(f"not done within {deadline_s:g} s") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"code {code}"


def _last_line(folder: Path) -> str:
    with (folder / "log").open("rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(0, log.tell() - _LOG_BYTES))
        lines = log.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
