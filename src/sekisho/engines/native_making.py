"""One native build from end to end: the trap is looked for, it is compiled, tried out and, if it is good, kept."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sekisho.core import file_lock
from sekisho.core.clock import Clock
from sekisho.engines import native_attention, native_compile, native_needs, native_trap, native_trial
from sekisho.engines.config import ModelConfig
from sekisho.engines.native_build import CHOICE, MANIFEST, SITE, Choice, Figure, Installed, Manifest
from sekisho.engines.native_check import Order
from sekisho.engines.native_compile import CMAKE_ARGS, Progress, Recipe
from sekisho.engines.native_machine import Processor
from sekisho.engines.native_needs import Compiler, Survey
from sekisho.engines.native_trap import Finding, Treatment
from sekisho.engines.native_trial import Ended, Verdict

WORK: Final = "work"
REPEATS: Final = 5
Build = Callable[[Recipe, Path, Progress], bool]
"""Puts a package, made by the recipe, into a folder. Whether its attention is Sekisho's."""


class Busy(Exception):
    """Somebody else builds in this folder."""


class Wanted(msgspec.Struct, frozen=True):
    """`kinds`: what both answer, to be compared. `measured`: models with the KV types at which their speed is."""

    root: Path
    wheel: Installed
    processor: Processor
    survey: Survey
    compiler: Compiler
    check: bool = True
    kinds: tuple[str, ...] = native_trial.KINDS
    measured: tuple[ModelConfig, ...] = ()
    repeats: int = REPEATS


class Made(msgspec.Struct, frozen=True):
    """`nats_off`: the largest difference from the wheel's log probabilities. `crashes`: what died on the way.
    `refuted`: what Sekisho's attention answered wrongly, so that the build runs without. `far`: it was compared after a
    long prompt, too."""

    name: str
    manifest: Manifest
    finding: Finding
    nats_off: float = 0.0
    crashes: tuple[str, ...] = ()
    refuted: tuple[str, ...] = ()
    far: bool = False


class _Tried(msgspec.Struct, frozen=True):
    attention: bool
    extra_buffers: bool = True
    nats_off: float = 0.0
    crashes: tuple[str, ...] = ()
    refuted: tuple[str, ...] = ()
    far: bool = False
    figures: tuple[Figure, ...] = ()


class Wrong(Exception):
    """The build does not answer as the wheel does; it was not kept. `crash`: it died."""

    def __init__(self, problems: Sequence[str], *, crash: bool = False) -> None:
        super().__init__("; ".join(problems))
        self.problems, self.crash = tuple(problems), crash


def tag(wheel: Installed, compiler: Compiler, features: frozenset[str], treatment: Treatment) -> str:
    """Short, the same for the same build."""
    parts = (wheel.wheel, str(compiler), *sorted(features), treatment, *CMAKE_ARGS, native_attention.fingerprint())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def look_for_trap(wanted: Wanted) -> Finding:
    """What this compiler needs; compiles a tiny program where the processor has tiles."""
    folder = _work(wanted) / "trap"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    barrier = native_trap.write_barrier(folder)

    def attempt(extra: Sequence[str]) -> native_trap.Outcome:
        return native_trap.attempt(wanted.compiler.cpp, folder, extra)

    return native_trap.find(wanted.survey.features, attempt, barrier)


def compiled(recipe: Recipe, site: Path, progress: Progress) -> bool:
    """Raises BuildFailed."""
    made = native_compile.build(recipe, progress)
    native_compile.install(recipe, made.wheel, site, progress)
    return made.attention


def make(wanted: Wanted, finding: Finding, progress: Progress, clock: Clock, build: Build = compiled) -> Made:
    """Minutes. What is kept is in no use yet. A build that crashes although the probe did not is made again with the
    barrier. Raises BuildFailed, Wrong, TrialFailed."""
    again = native_trap.after_crash(finding.treatment, wanted.survey.features)
    try:
        made = _attempt(wanted, finding, progress, clock, build)
        if not made.crashes or again is None:
            return made
        crashes = made.crashes
    except Wrong as error:
        if not error.crash or again is None:
            raise
        crashes = error.problems
    repaired = _attempt(wanted, finding._replace(treatment=again), progress, clock, build)
    return msgspec.structs.replace(repaired, crashes=crashes + repaired.crashes)


def _attempt(wanted: Wanted, finding: Finding, progress: Progress, clock: Clock, build: Build) -> Made:
    began_s = clock.monotonic()
    recipe = recipe_for(wanted, finding.treatment)
    site = recipe.folder / SITE
    attention = build(recipe, site, progress)
    took_s = clock.monotonic() - began_s
    tried = _tried(wanted, site, attention, progress) if wanted.check else _Tried(attention)
    manifest = Manifest(
        version=wanted.wheel.version,
        wheel=wanted.wheel.wheel,
        system=wanted.processor.system,
        processor=wanted.processor.name,
        features=tuple(sorted(native_needs.used_features(wanted.compiler, recipe.flags))),
        compiler=str(wanted.compiler),
        treatment=finding.treatment,
        cmake_args=CMAKE_ARGS,
        built_at=clock.now(),
        took_s=took_s,
        attention=tried.attention,
        extra_buffers=tried.extra_buffers,
        checked=wanted.check,
        figures=tried.figures,
    )
    name = _kept(wanted, recipe, manifest)
    return Made(name, manifest, finding, tried.nats_off, tried.crashes, tried.refuted, tried.far)


def _tried(wanted: Wanted, site: Path, attention: bool, progress: Progress) -> _Tried:
    """Where it dies with weights in another order than the file's, it is tried without that; where it answers wrongly
    with Sekisho's attention, with llama.cpp's own. Raises Wrong."""
    progress("check", 0, 1)
    crashes: tuple[str, ...] = ()
    refuted: tuple[str, ...] = ()
    reference = native_trial.answers(None, kinds=wanted.kinds)
    far = _far_reference(wanted)

    def verdict_on(*, extra_buffers: bool) -> Verdict:
        told = native_trial.answers(site, extra_buffers=extra_buffers, attention=attention, kinds=wanted.kinds)
        verdict = native_trial.compare(reference, told, wanted.kinds)
        if verdict.problems or far is None:
            return verdict
        told = native_trial.far_answers(site, wanted.measured[0], extra_buffers=extra_buffers, attention=attention)
        further = native_trial.compare(far, told, native_trial.FAR_KINDS)
        return msgspec.structs.replace(further, nats_off=max(verdict.nats_off, further.nats_off))

    while True:
        verdict, crashes = verdict_on(extra_buffers=True), ()
        if verdict.crash is not None:
            crashes, verdict = verdict.problems[-1:], verdict_on(extra_buffers=False)
        if not verdict.problems:
            break
        if not attention:
            raise Wrong(verdict.problems, crash=verdict.crash is not None)
        attention, refuted = False, verdict.problems
    progress("check", 1, 1)
    figures = list[Figure]()
    for config in wanted.measured:
        order = Order("speed", config, extra_buffers=not crashes, attention=attention)
        figures += native_trial.measure(config, order, site, wanted.repeats, progress)
    return _Tried(attention, not crashes, verdict.nats_off, crashes, refuted, far is not None, tuple(figures))


def _far_reference(wanted: Wanted) -> Ended | None:
    """None where nothing is measured, or the wheel does not answer there, as with too short a context."""
    if not wanted.measured:
        return None
    told = native_trial.far_answers(None, wanted.measured[0])
    return told if all(kind in told.told for kind in native_trial.FAR_KINDS) else None


def _kept(wanted: Wanted, recipe: Recipe, manifest: Manifest) -> str:
    """The build's folder appears whole or not at all."""
    name = recipe.folder.name
    draft, folder = recipe.folder / "draft", wanted.root / name
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    (recipe.folder / SITE).rename(draft / SITE)
    if recipe.log.exists():
        shutil.copy(recipe.log, draft / recipe.log.name)
    (draft / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
    if folder.exists():  # workers that run hold its files open; the next ones find the new
        folder.rename(recipe.folder / "former")
    draft.rename(folder)
    shutil.rmtree(recipe.folder / "former", ignore_errors=True)
    return name


def recipe_for(wanted: Wanted, treatment: Treatment) -> Recipe:
    """What is compiled with other flags lies in another folder."""
    named = f"{wanted.wheel.version}-{tag(wanted.wheel, wanted.compiler, wanted.survey.features, treatment)}"
    folder = _work(wanted) / named
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Recipe(
        version=wanted.wheel.version,
        compiler=wanted.compiler,
        jobs=wanted.survey.jobs,
        folder=folder,
        flags=native_trap.flags(treatment, native_trap.write_barrier(folder)),
        tools=wanted.survey.fetch,
        ninja=wanted.survey.ninja,
    )


def choose(root: Path, build: str | None) -> None:
    """What workers that start from now on take; None: the wheel. Raises OSError."""
    if build is None:
        (root / CHOICE).unlink(missing_ok=True)
        return
    draft = root / f".{CHOICE}"
    draft.write_bytes(msgspec.json.encode(Choice(build)) + b"\n")
    draft.replace(root / CHOICE)


def drop_sources(root: Path) -> None:
    shutil.rmtree(root / WORK, ignore_errors=True)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """For as long as it lasts nobody else builds here. Raises Busy."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not file_lock.try_lock(descriptor):
            raise Busy(str(root))
        yield
    finally:
        os.close(descriptor)


def _work(wanted: Wanted) -> Path:
    return wanted.root / WORK
