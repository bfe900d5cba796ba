"""The workers of one model as the supervisor keeps them, for `engine_swap`. Names as `engine_children` says."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from sekisho.core.clock import Clock
from sekisho.engines import worker_process
from sekisho.engines.config import ModelConfig
from sekisho.ops.engine_children import BESIDE, address, child_name
from sekisho.ops.engine_swap import WorkerFailed
from sekisho.ops.supervisor import ChildSpec, Supervisor

_POLL_S: Final = 0.1


class EngineWorkers:
    """`Workers` of one model. `spec` makes a child of settings and an address."""

    def __init__(
        self,
        model: str,
        supervisor: Supervisor,
        spec: Callable[[ModelConfig, str], ChildSpec],
        ready_timeout_s: float,
        clock: Clock,
        present_url: str,
        answers: Callable[[str], Awaitable[bool]] | None = None,
    ) -> None:
        self._name = child_name(model)
        self._supervisor = supervisor
        self._spec = spec
        self._ready_timeout_s = ready_timeout_s
        self._clock = clock
        self._urls = {self._name: present_url}
        self._answers = answers or _answers

    @property
    def pid(self) -> int | None:
        """Of the present worker's process."""
        return self._supervisor.status(self._name).pid

    async def start(self, config: ModelConfig) -> str:
        url = address(worker_process.free_port())
        spec = self._spec(config, url)
        await self._supervisor.add(msgspec.structs.replace(spec, name=self._next))
        self._urls[self._next] = url
        return url

    async def ready(self, *, present: bool = False) -> None:
        """The next one must not end even once: what it would be like later is not worth the risk. The present one may
        be started again meanwhile."""
        name = self._name if present else self._next
        began_s = self._clock.monotonic()
        while not await self._answers(self._urls[name]):
            status = self._supervisor.status(name)
            which = "old" if present else "new"
            if status.state == "misconfigured" or (status.exit_code is not None and not present):
                raise self._ended(name, f"the {which} worker ended with {status.exit_code}")
            if self._clock.monotonic() - began_s > self._ready_timeout_s:
                raise self._late(name, f"the {which} worker was not ready within {self._ready_timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    def take_over(self) -> None:
        self._rename({self._name: self._former, self._next: self._name})

    def give_back(self) -> None:
        self._rename({self._name: self._next, self._former: self._name})

    def trouble(self) -> WorkerFailed | None:
        status = self._supervisor.status(self._name)
        if status.state not in ("misconfigured", "failing"):
            return None
        return self._ended(self._name, f"the new worker ended with {status.exit_code} ({status.state})")

    async def pause(self) -> None:
        await self._supervisor.pause(self._name)

    def resume(self) -> None:
        self._supervisor.resume(self._name)

    async def drop(self) -> None:
        for name in (self._next, self._former):
            if name in self._urls:
                await self._supervisor.remove(name)
                del self._urls[name]

    def _rename(self, names: dict[str, str]) -> None:
        self._supervisor.rename(names)
        self._urls = {names.get(name, name): url for name, url in self._urls.items()}

    def _ended(self, name: str, why: str) -> WorkerFailed:
        """With the last lines of the life that ended: a later one may have begun, and said something else."""
        tail = self._supervisor.last_words(name)
        return WorkerFailed(": ".join((why, *tail[-1:])), tail)

    def _late(self, name: str, why: str) -> WorkerFailed:
        """With its last lines; where a later life has said nothing yet, those of the one before."""
        tail = self._supervisor.log_tail(name) or self._supervisor.last_words(name)
        return WorkerFailed(": ".join((why, *tail[-1:])), tail)

    @property
    def _next(self) -> str:
        return f"{self._name}{BESIDE}next"

    @property
    def _former(self) -> str:
        return f"{self._name}{BESIDE}former"


async def _answers(url: str) -> bool:
    from sekisho.ops.engine_door import (
        answers,
    )  # it loads an HTTP client, which the start of the server need not wait for

    return await answers(url)
