"""The whole measurement: what is asked for, and everything that was found, as JSON."""

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from sekisho import __version__
from sekisho.kv.bench import memory, needles, prompt, quality, speed, texts
from sekisho.kv.bench.contenders import CONTENDERS, Contender, contender, ours
from sekisho.kv.bench.entries import Entry, entries
from sekisho.kv.bench.memory import MemoryPlan, MemoryRow
from sekisho.kv.bench.models import SMALL, Loaded, load
from sekisho.kv.bench.needles import NeedlePlan, NeedleRow
from sekisho.kv.bench.quality import QualityPlan, QualityRow
from sekisho.kv.bench.speed import SpeedPlan, SpeedRow
from sekisho.kv.bench.unavailable import Unavailable
from sekisho.kv.policy import KVPolicy

Progress = Callable[[str], None]
_Row = TypeVar("_Row")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to measure. `model`: see `models.load`. `caches`: names of `CONTENDERS`, none for all. `policies`: more
    tiered caches, by name. `targets`: shares of the 16-bit bytes, besides the natural points. A part that is None is
    left out. `text`: a file; None for the project's documentation. `download`: where downloads go. `threads`: of torch;
    None leaves them. Raises ValueError for names that there are not."""

    model: str = SMALL
    caches: tuple[str, ...] = ()
    policies: dict[str, KVPolicy] = {}
    targets: tuple[float, ...] = (0.30, 0.25, 0.15)
    quality: QualityPlan | None = QualityPlan()
    needles: NeedlePlan | None = NeedlePlan()
    memory: MemoryPlan | None = MemoryPlan()
    speed: SpeedPlan | None = SpeedPlan()
    text: str | None = None
    download: str = "."
    device: str = "cpu"
    dtype: str = "float32"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"no dtype is called {self.dtype!r}; there are {', '.join(_DTYPES)}")
        for name in self.caches:
            contender(name)
        twice = sorted(set(self.policies) & set(CONTENDERS))
        if twice:
            raise ValueError(f"policies need names of their own, not {', '.join(twice)}")


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    sekisho: str
    torch: str
    transformers: str
    python: str
    processor: str
    device: str
    threads: int


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """`absent`: parts that could not be measured at all, and why."""

    plan: Plan
    environment: Environment
    quality: list[QualityRow] = []
    needles: list[NeedleRow] = []
    memory: list[MemoryRow] = []
    speed: list[SpeedRow] = []
    absent: dict[str, str] = {}


def run(plan: Plan, progress: Progress) -> Results:
    """Measures part after part. `progress` is told in words what has just been done."""
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    prompt.register()
    named = [contender(name) for name in plan.caches] if plan.caches else list(CONTENDERS.values())
    chosen = [*named, *(ours(policy, name) for name, policy in plan.policies.items())]
    work = _Work(plan, entries(chosen, plan.targets), progress)
    absent: dict[str, str] = {}

    def part(name: str, measure: Callable[[], list[_Row]]) -> list[_Row]:
        if getattr(plan, name) is None:
            return []
        try:
            return measure()
        except Unavailable as error:
            absent[name] = str(error)
            return []

    return Results(
        plan=plan,
        environment=_environment(plan.device),
        quality=part("quality", work.quality),
        needles=part("needles", work.needles),
        memory=part("memory", work.memory),
        speed=part("speed", work.speed),
        absent=absent,
    )


class _Work:
    """One run. The model is loaded when it is first needed."""

    def __init__(self, plan: Plan, those: Sequence[tuple[Entry, Contender]], progress: Progress) -> None:
        self.plan, self.entries, self.progress = plan, those, progress
        self._loaded: Loaded | None = None

    def model(self) -> Loaded:
        if self._loaded is None:
            plan = self.plan
            self._loaded = load(plan.model, Path(plan.download), plan.device, _DTYPES[plan.dtype])
            self.progress(f"loaded {plan.model}")
        return self._loaded

    def text(self) -> str:
        return Path(self.plan.text).read_text(encoding="utf-8") if self.plan.text else texts.documentation()

    def quality(self) -> list[QualityRow]:
        plan, loaded = self.plan.quality or QualityPlan(), self.model()
        _check_context(loaded, plan.context)
        stretches = texts.windows(loaded.encode, self.text(), plan.context, plan.stretches)
        there = [each.to(loaded.model.device) for each in stretches]
        return quality.compare(loaded.model, there, self.entries, plan, self.progress)

    def needles(self) -> list[NeedleRow]:
        plan, loaded = self.plan.needles or NeedlePlan(), self.model()
        _check_context(loaded, plan.context)
        found = needles.needles(loaded, self.text(), plan)
        rows = []
        for asked in plan.asked:
            rows += needles.recall(loaded, found, self.entries, asked, self.progress)
        return rows

    def memory(self) -> list[MemoryRow]:
        plan = self.plan.memory or MemoryPlan()
        return memory.measure(plan, self.entries, _DTYPES[self.plan.dtype], self.plan.device, self.progress)

    def speed(self) -> list[SpeedRow]:
        plan = self.plan.speed or SpeedPlan()
        rows = speed.layers_alone(plan, self.entries, _DTYPES[self.plan.dtype], self.plan.device, self.progress)
        if plan.model_tokens:
            loaded = self.model()
            longest = max(plan.model_tokens)
            _check_context(loaded, longest)
            text = texts.windows(loaded.encode, self.text(), longest, 1)[0]
            rows += speed.whole_model(loaded, text, plan, self.entries, self.progress)
        return rows


def _check_context(loaded: Loaded, wanted: int) -> None:
    if wanted > loaded.context:
        raise Unavailable(f"{loaded.name} was made for {loaded.context} tokens, not {wanted}")


def _environment(device: str) -> Environment:
    return Environment(
        sekisho=__version__,
        torch=str(torch.__version__),
        transformers=version("transformers"),
        python=platform.python_version(),
        processor=platform.processor() or platform.machine(),
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        threads=torch.get_num_threads(),
    )
