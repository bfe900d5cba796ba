"""A small evaluation: every step of a whole one, with few requests."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from sekisho.evaluate import evaluation
from sekisho.evaluate.behaviour import continuity, safety
from sekisho.evaluate.client.target import Place, Target
from sekisho.evaluate.conclusion import PLAN_FILE, Conclusion, conclude
from sekisho.evaluate.durable.journal import Journal
from sekisho.evaluate.environment import Section
from sekisho.evaluate.evaluation import Plan, Site
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.progress import Progress
from sekisho.evaluate.rubric.folder import RubricFolder
from sekisho.evaluate.rubric.tasks import load_tasks
from sekisho.evaluate.speed import bench_plan
from sekisho.guard.config import GuardConfig
from sekisho.ops.home import Home
from sekisho.store import Store

STEPS = (
    "environment", "gates-engine", "gates-gateway", "cold", "bench", "continuity-chat", "continuity-responses",
    "sessions-chat", "sessions-responses", "codex", "safety", "rubric",
)  # fmt: skip


def small_plan(engine: Target, gateway: Target) -> Plan:
    places: dict[Place, tuple[str, str]] = {
        "engine": (engine.url, engine.model),
        "gateway": (gateway.url, gateway.model),
    }
    talk = continuity.Plan(users=2, conversations=2, seed=3)
    return Plan(
        name="small",
        profile="cpu",
        places=places,
        bench=bench_plan.Plan(
            parallels=(1, 2),
            sizes=(bench_plan.Size(24, 4),),
            warmups=1,
            warmup_tokens=8,
            open=bench_plan.OpenLoop(requests=4, tokens=24, rate=20.0),
        ),
        continuity=(talk, msgspec.structs.replace(talk, mode="responses")),
        cold_starts=1,
        sessions=2,
        codex=True,
        safety=True,
        rubric=True,
        timeout_s=60.0,
        command="sekisho evaluate",
    )


async def _environment(progress: Progress) -> tuple[Section, ...]:
    return (Section(("Machine", "マシン"), (("system", "a test"),)),)


def site(engine: Target, gateway: Target, home: Home) -> Site:
    return Site(
        targets={"engine": engine, "gateway": gateway},
        environment=_environment,
        cannot_restart="not in this test",
        judge=safety.judge_in_force(GuardConfig(), home.guard),
        tasks=load_tasks(None),
        held_characters=167,
    )


async def measure(home: Home, run: str, plan: Plan, at: Site) -> None:
    folder = home.runs / run
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PLAN_FILE).write_bytes(msgspec.json.encode(plan))
    if at.tasks is not None:
        RubricFolder(folder).keep_tasks(at.tasks)
    store = await Store.open(home.database)
    try:
        async with Journal.open(store, folder, run, evaluation.KIND, plan) as journal:
            await evaluation.run(journal, plan, at)
    finally:
        await store.close()


def evaluated(home: Home, run: str, plan: Plan, at: Site, key: bytes | None = None) -> Conclusion:
    asyncio.run(measure(home, run, plan, at))
    return concluded(home, home.runs / run, key)


def concluded(home: Home, folder: Path, key: bytes | None = None) -> Conclusion:
    return conclude(home, folder, key=key, now=1_790_000_000.0)


def but_for_times(figure: Figure, run: str) -> tuple[Any, ...]:
    """What must be the same however often a run was killed: everything that is no measured time or speed."""
    timed = figure.unit in ("s", "ms", "tok/s", "req/s") or figure.id.startswith("bench.gap")
    value = (figure.value is None) if timed else figure.value
    why, command = figure.why_null.replace(run, "RUN"), figure.command.replace(run, "RUN")
    return figure.id, figure.unit, value, "" if timed else why, command, figure.file
