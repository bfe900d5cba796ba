"""A model's workers as the supervisor keeps them, and what is told of one that failed."""

import asyncio
import sys
from pathlib import Path

import pytest

from sekisho.core.clock import SystemClock
from sekisho.engines.config import ModelConfig
from sekisho.ops.engine_swap import WorkerFailed
from sekisho.ops.engine_workers import EngineWorkers
from sekisho.ops.restart_policy import RestartPolicy
from sekisho.ops.supervisor import ChildSpec, Supervisor


async def test_a_worker_that_ended_is_told_with_the_words_of_that_life(tmp_path: Path) -> None:
    """However long it took to look at it: that it was started again meanwhile, and says other things or nothing, hides
    no reason."""
    again = tmp_path / "again"
    code = (
        f"import pathlib, sys, time; again = pathlib.Path({str(again)!r})\n"
        "if again.exists(): time.sleep(600)\n"
        "again.touch(); print('boom', flush=True); sys.exit(3)\n"
    )

    def spec(config: ModelConfig, url: str) -> ChildSpec:
        return ChildSpec("engine-m", (sys.executable, "-u", "-c", code), tmp_path / "engine-m.log")

    async def slow(url: str) -> bool:
        """Answers when the next life has begun."""
        async with asyncio.timeout(60):
            while (status := supervisor.status("engine-m~next")).restarts < 1 or status.pid is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return False

    config, policy = ModelConfig("m", path="a.gguf"), RestartPolicy(first_delay_s=0.01)
    async with Supervisor(tmp_path, [], policy=policy) as supervisor:
        workers = EngineWorkers("m", supervisor, spec, 60, SystemClock(), "http://127.0.0.1:1/v1", slow)
        await workers.start(config)
        with pytest.raises(WorkerFailed, match="the new worker ended with 3: boom") as told:
            await workers.ready()
        assert told.value.log_tail == ("boom",)
        assert supervisor.last_words("engine-m~next") == ("boom",)
        assert supervisor.log_tail("engine-m~next") == ()
        await workers.drop()
