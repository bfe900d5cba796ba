"""Long runs as values: a run, who works on it, its steps. Rows: `run_rows`; their meaning: `evaluate/durable`."""

from typing import Literal

import msgspec

RunState = Literal["running", "finished", "failed", "abandoned"]
StepState = Literal["running", "done", "failed", "redo"]

RUN_STATES: tuple[RunState, ...] = ("running", "finished", "failed", "abandoned")
STEP_STATES: tuple[StepState, ...] = ("running", "done", "failed", "redo")


class RunOwner(msgspec.Struct, frozen=True, kw_only=True):
    """The process that works on a run. `token` is new with each opening and goes with every write. `place` names the
    space in which `pid` means something; `host` is for people. `seen_at`: when it last said that it lives."""

    token: str
    pid: int
    birth: str | None
    host: str
    place: str
    seen_at: float


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A run. Times are seconds since 1970; `plan` is JSON.

    `running` with an `owner` that is dead was cut off. `failed`: a step failed; `abandoned`: somebody stopped it. All
    three go on where they were. `mark` is in the run's folder too and in the environment of its processes.
    `finished_at`: when the last step was done.
    """

    id: str
    kind: str
    title: str
    plan: str
    plan_hash: str
    folder: str
    mark: str
    created_at: float
    updated_at: float
    state: RunState = "running"
    finished_at: float | None = None
    owner: RunOwner | None = None


class StepChild(msgspec.Struct, frozen=True):
    """A process that a step started. `birth` is that of `ops/process_tree.py`: an id alone may name somebody else."""

    pid: int
    birth: str


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a run. `result` and `checkpoint` are JSON. `artifacts`: SHA-256 by path relative to the run's folder.

    `position` is the order in which steps first began. `redo`: somebody wants it done again, whatever its inputs are.
    """

    run_id: str
    key: str
    position: int
    inputs_hash: str
    state: StepState
    attempts: int
    started_at: float
    finished_at: float | None = None
    result: str | None = None
    checkpoint: str | None = None
    artifacts: dict[str, str] = {}
    children: tuple[StepChild, ...] = ()
    error: str | None = None
