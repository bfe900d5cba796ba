"""An evaluation that is there to be killed.

usage: evaluation_child.py HOME RUN ENGINE_URL GATEWAY_URL MODEL DEATH, the two keys as ENGINE_KEY and GATEWAY_KEY

DEATH is a step's key: it kills itself when that step writes its first file; or `cell:N`, `talk:N`, `task:N`: in the
N-th cell, conversation, session that it measures; or `never`.
"""

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation_harness import measure, site, small_plan

from sekisho.evaluate.behaviour import continuity, sessions
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.durable.step_context import StepContext
from sekisho.evaluate.speed import bench
from sekisho.ops.home import Home


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in_step(key: str) -> None:
    for name in ("write", "keep"):
        real = getattr(StepContext, name)

        def deadly(self: StepContext, *arguments: Any, real: Callable[..., Any] = real) -> Any:
            if self.end().key == key:
                die()
            return real(self, *arguments)

        setattr(StepContext, name, deadly)
    StepContext.end = lambda self: self._step  # type: ignore[method-assign]


def dies_at_call(owner: Any, name: str, number: int) -> None:
    real, count = getattr(owner, name), itertools.count(1)

    async def deadly(*arguments: Any, **named: Any) -> Any:
        answer = await real(*arguments, **named)
        if next(count) == number:
            die()
        return answer

    setattr(owner, name, deadly)


if __name__ == "__main__":
    home, run, engine_url, gateway_url, model, death = sys.argv[1:]
    kind, _, number = death.partition(":")
    inner = {"cell": (bench, "run_cell"), "talk": (continuity, "converse"), "task": (sessions._Session, "play")}
    if kind in inner:
        dies_at_call(*inner[kind], int(number))
    elif death != "never":
        dies_in_step(death)
    place = Home(Path(home))
    engine = Target("engine", engine_url, model, Key(os.environ["ENGINE_KEY"]))
    gateway = Target("gateway", gateway_url, model, Key(os.environ["GATEWAY_KEY"]))
    asyncio.run(measure(place, run, small_plan(engine, gateway), site(engine, gateway, place)))
