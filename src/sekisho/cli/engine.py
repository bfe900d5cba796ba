"""`sekisho engine`: llama.cpp built for this very machine, and which one workers use."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli.failure import ABSENT, INTERRUPTED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output
from sekisho.cli.progress_bars import Bars
from sekisho.cli.quantities import gibibytes, moment

if TYPE_CHECKING:
    from sekisho.engines.config import ModelConfig
    from sekisho.engines.native_build import Figure, Manifest, Misfit
    from sekisho.engines.native_compile import Progress
    from sekisho.engines.native_making import Made, Wanted
    from sekisho.engines.native_needs import Survey
    from sekisho.ops.home import Home

KV_MEASURED = ("f16", "q4_0")
LARGEST_MEASURED = 4 << 30
app = typer.Typer(
    help="llama.cpp, as it comes and as built for this machine.",
    no_args_is_help=True,
    epilog=example(
        "sekisho engine build-native", "sekisho engine status", ja="llama.cpp をこのマシン向けにビルドして使います。"
    ),
)


@app.command(
    "build-native",
    epilog=example(
        "sekisho engine build-native",
        "sekisho engine build-native --jobs 2 --yes --model ./my.gguf",
        ja="llama.cpp をこのマシン向けにビルドし、wheel と比べて検証します。",
    ),
)
def build_native(
    jobs: Annotated[int | None, typer.Option("--jobs", min=1, max=512, help="Compilers at once.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", exists=True, dir_okay=False, help="GGUF to compare speeds with; default: one of yours."
        ),
    ] = None,
    keep_sources: Annotated[bool, typer.Option("--keep-sources", help="Keep what was fetched and compiled.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Build again, and also where the installed one uses a GPU.")
    ] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not compare it with the wheel.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build llama.cpp for this machine's processor, check it against the wheel, and use it where it is faster.

    The installed package stays as it is.
    """
    from sekisho.engines import native_build, native_making, native_trial
    from sekisho.engines.native_compile import BuildFailed

    out, place = Output(as_json=as_json), at_home(home)
    place.create()
    root = place.native_engines
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    wanted = _wanted(out, place, jobs, model, check=not no_check, force=force)
    try:
        with native_making.alone(root):
            finding = native_making.look_for_trap(wanted)
            _tell_trap(out, finding, str(wanted.compiler))
            name = native_making.recipe_for(wanted, finding.treatment).folder.name
            known = native_build.builds(root).get(name)
            if known is not None and known.checked and not force:
                out.say("engine_exists", build=name)
                used = _take(out, place, name, known)
                out.json({"build": name, "used": used, "manifest": known})
                return
            _confirm(out, yes)
            with Bars(out) as bars, _terminated():
                made = native_making.make(wanted, finding, _steps(out, bars), _clock())
            _settle(out, place, made)
            if not keep_sources:
                native_making.drop_sources(root)
    except native_making.Busy as error:
        raise CommandFailed(out.text("engine_busy", folder=error)) from error
    except BuildFailed as error:
        words = "\n".join((out.text("engine_build_failed", why=error), *(f"  | {line}" for line in error.tail)))
        raise CommandFailed(words, hint=out.text("engine_log", log=root / native_making.WORK)) from error
    except native_making.Wrong as error:
        details = {"problems": error.problems}
        raise CommandFailed(out.text("engine_wrong", why=error), details=details) from error
    except native_trial.TrialFailed as error:
        raise CommandFailed(out.text("engine_trial_failed", why=error)) from error


@app.command("status", epilog=example("sekisho engine status", ja="ワーカーが使う llama.cpp を表示します。"))
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show which llama.cpp workers use, and whether the builds fit what is installed and this processor."""
    from sekisho.engines import native_build, native_machine

    out, root = Output(as_json=as_json), at_home(home).native_engines
    wheel, processor = native_build.installed(), native_machine.here()
    version = wheel.version if wheel is not None else None
    builds = native_build.builds(root)
    chosen, why = None, None
    try:
        chosen = native_build.chosen(root)
        if chosen is not None:
            native_build.usable(root, chosen, wheel, processor)
    except native_build.Unusable as error:
        why = _words(out, error.misfit)
    used = chosen if why is None else None
    misfits = {name: native_build.misfit(manifest, wheel, processor) for name, manifest in builds.items()}
    out.json(
        {
            "uses": "native" if used is not None else "wheel",
            "build": used,
            "chosen": chosen,
            "why_not": why,
            "wheel": version,
            "processor": {"name": processor.name, "features": sorted(processor.features)},
            "builds": [
                {
                    "build": name,
                    "fits": misfits[name] is None,
                    "why_not": _words(out, misfits[name]),
                    "manifest": manifest,
                }
                for name, manifest in builds.items()
            ],
        }
    )
    if used is not None:
        out.say("engine_status_native", build=used)
    else:
        if why is not None:
            out.warn(out.text("engine_status_misfit", build=chosen or root, why=why))
        out.say("engine_status_wheel", version=version)
    out.say("engine_status_processor", processor=processor.name, features=native_machine.spoken(processor.features))
    if builds:
        _builds(out, builds, misfits, used)
    if used is not None:
        _figures(out, builds[used].figures)


@app.command(
    "use",
    epilog=example("sekisho engine use native", "sekisho engine use wheel", ja="ワーカーが使う llama.cpp を選びます。"),
)
def use(
    which: Annotated[str, typer.Argument(metavar="wheel|native", help="What workers are to run.")],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose which llama.cpp workers run that start from now on."""
    from sekisho.engines import native_build, native_machine

    out, place = Output(as_json=as_json), at_home(home)
    root = place.native_engines
    wheel, processor = native_build.installed(), native_machine.here()
    if which == "wheel":
        _use(out, place, None)
        out.say("engine_use_wheel", version=wheel.version if wheel is not None else None)
        out.json({"uses": "wheel", "build": None})
        return
    if which != "native":
        raise CommandFailed(out.text("engine_which", which=which), exit_code=USAGE)
    builds = native_build.builds(root)
    reasons = {name: _words(out, native_build.misfit(each, wheel, processor)) for name, each in builds.items()}
    name = next((each for each, reason in reasons.items() if reason is None), None)
    if name is None:
        lines = [f"{each}: {reason}" for each, reason in reasons.items()]
        message = "\n".join((out.text("engine_none_fits"), *(f"  | {line}" for line in lines)))
        raise CommandFailed(message, hint=out.text("engine_build_hint"), exit_code=ABSENT)
    _use(out, place, name)
    out.say("engine_use_native", build=name)
    out.json({"uses": "native", "build": name})


def _wanted(out: Output, place: "Home", jobs: int | None, model: Path | None, *, check: bool, force: bool) -> "Wanted":
    """Looks whether it can be built here, and tells what would be. Raises CommandFailed."""
    import platform

    from sekisho.engines import native_build, native_machine, native_needs, native_trial
    from sekisho.engines.native_making import Wanted

    system = platform.system()
    if system != "Linux":
        hint = out.text("engine_windows" if system == "Windows" else "engine_mac")
        raise CommandFailed(out.text("engine_only_linux", system=system), hint=hint)
    wheel = native_build.installed()
    if wheel is None:
        raise CommandFailed(out.text("engine_no_wheel"), hint=out.text("engine_no_wheel_hint"), exit_code=ABSENT)
    devices = native_trial.devices()
    if devices and not force:
        message = out.text("engine_drives_gpu", devices=", ".join(devices))
        raise CommandFailed(message, hint=out.text("engine_force"))
    processor, survey = native_machine.here(), native_needs.survey(place.native_engines, jobs)
    _tell_plan(out, processor.name, wheel.version, survey)
    if survey.compiler is None or survey.missing:
        lines = [(_need(out, each), each.get) for each in survey.missing]
        message = "\n".join((out.text("engine_missing"), *(f"  - {line}" for line, _ in lines)))
        hints = [get for _, get in lines if get]
        details = {"missing": survey.missing}
        raise CommandFailed(message, hint="\n".join(hints) or None, details=details)
    return Wanted(
        root=place.native_engines,
        wheel=wheel,
        processor=processor,
        survey=survey,
        compiler=survey.compiler,
        check=check,
        measured=_measured(place, model) if check else (),
    )


def _need(out: Output, missing: Any) -> str:
    return out.text(f"engine_need_{missing.need}", needed=missing.needed, found=missing.found)


def _measured(place: "Home", model: Path | None) -> "tuple[ModelConfig, ...]":
    """A model that a machine like this one runs, at two KV types: the first of the settings that fits twice into
    memory, else the one that comes with Sekisho."""
    import msgspec
    import psutil

    from sekisho.engines.config import ModelConfig

    config = ModelConfig("sekisho-mini", path="builtin", context=1024)
    if model is not None:
        config = ModelConfig(model.stem, path=str(model.resolve()), context=1024)
    else:
        free = psutil.virtual_memory().available
        for each in settings_of(place).models:
            path = Path(each.path).expanduser() if each.engine == "llama_cpp" and each.path else None
            if path is not None and path.is_file() and path.stat().st_size < min(LARGEST_MEASURED, free // 4):
                config = ModelConfig(each.name, path=str(path), context=1024, threads=each.threads)
                break
    kinds: tuple[Any, ...] = KV_MEASURED
    return tuple(msgspec.structs.replace(config, kv_type_k=kind, kv_type_v=kind) for kind in kinds)


def _tell_plan(out: Output, processor: str, version: str, survey: "Survey") -> None:
    from sekisho.engines import native_machine
    from sekisho.engines.native_needs import DISK_BYTES

    out.say("engine_plan_version", version=version, disk=gibibytes(DISK_BYTES))
    out.say("engine_plan_processor", processor=processor)
    if survey.compiler is not None:
        out.say("engine_plan_features", features=native_machine.spoken(survey.features))
        tool = "ninja" if survey.ninja else "make"
        out.say("engine_plan_compiler", compiler=survey.compiler, jobs=survey.jobs, tool=tool)
    if survey.fetch:
        out.say("engine_plan_fetch", tools=", ".join(survey.fetch))


def _tell_trap(out: Output, finding: Any, compiler: str) -> None:
    if finding.plain is None:
        return  # no tiles here
    key = "refused" if finding.plain == "refused" else finding.treatment
    out.say(f"engine_trap_{key}", compiler=compiler)


def _confirm(out: Output, yes: bool) -> None:
    if yes:
        return
    if out.as_json or not sys.stdin.isatty():
        raise CommandFailed(out.text("engine_say_yes"), exit_code=USAGE)
    try:
        agreed = typer.confirm(out.text("engine_go"), default=True, err=True)
    except typer.Abort:  # Ctrl+C at the question
        agreed = False
    if not agreed:
        raise CommandFailed(out.text("engine_not_now"), exit_code=INTERRUPTED)


@contextmanager
def _terminated() -> Iterator[None]:
    """A request to end is an exception here, so that the compilers end as well."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle(out: Output, place: "Home", made: "Made") -> None:
    """Takes the build where it is good, and tells."""
    manifest = made.manifest
    folder = place.native_engines / made.name
    out.say("engine_built", minutes=f"{manifest.took_s / 60:.0f}", compiler=manifest.compiler, folder=folder)
    for crash in made.crashes:
        out.warn(out.text("engine_crashed", what=crash))
    if not manifest.extra_buffers:
        out.warn(out.text("engine_plain_buffers"))
    if manifest.attention:
        out.say("engine_attention")
    elif made.refuted:
        out.warn(out.text("engine_attention_refuted", why="; ".join(made.refuted)))
    else:
        out.warn(out.text("engine_attention_absent"))
    if manifest.checked:
        out.say("engine_alike", nats=f"{made.nats_off:.3f}")
        if not made.far:
            out.warn(out.text("engine_not_far"))
        _figures(out, manifest.figures)
    used = _take(out, place, made.name, manifest)
    told = {"build": made.name, "used": used, "manifest": manifest}
    out.json(told | {"nats_off": made.nats_off, "crashes": made.crashes, "refuted": made.refuted, "far": made.far})


def _take(out: Output, place: "Home", name: str, manifest: "Manifest") -> bool:
    """Whether it is used from now on: where it is good, and faster."""
    if not manifest.is_worth_it:
        out.say("engine_not_worth" if manifest.checked else "engine_unchecked")
        return False
    _use(out, place, name)
    out.say("engine_in_use")
    return True


def _use(out: Output, place: "Home", name: str | None) -> None:
    from sekisho.engines import native_making
    from sekisho.ops.home import running

    native_making.choose(place.native_engines, name)
    if running(place) is not None:
        out.say("engine_restart")


def _builds(out: Output, builds: "dict[str, Manifest]", misfits: "dict[str, Misfit | None]", used: str | None) -> None:
    names = ("build", "used", "fits", "compiler", "amx", "attention_column", "built_at", "checked")
    yes = out.text("engine_yes")
    rows = [
        (
            name,
            yes if name == used else None,
            _words(out, misfits[name]) or yes,
            each.compiler,
            each.treatment,
            "sekisho" if each.attention else "llama.cpp",
            moment(each.built_at),
            yes if each.checked else None,
        )
        for name, each in builds.items()
    ]
    out.table(out.columns(*(f"engine_{each}" for each in names)), rows, out.text("engine_builds"))


def _figures(out: Output, figures: "tuple[Figure, ...]") -> None:
    if not figures:
        return
    columns = ("model", "engine_kv", "engine_speed", "engine_wheel", "engine_native", "engine_ratio", "engine_spread")
    rows = [
        (
            each.model,
            each.kv,
            out.text(f"engine_{each.speed}"),
            f"{each.wheel_tokens_per_s:.1f}",
            f"{each.native_tokens_per_s:.1f}",
            f"{each.ratio:.2f}",
            f"{each.ratio_low:.2f} … {each.ratio_high:.2f}",
        )
        for each in figures
    ]
    out.table(out.columns(*columns), rows, out.text("engine_figures"))


def _words(out: Output, misfit: "Misfit | None") -> str | None:
    return None if misfit is None else misfit.words()[out.language == "ja"]


def _steps(out: Output, bars: Bars) -> "Progress":
    """The bars, with names in the user's language; a KV type stays behind its name."""

    def progress(what: str, done: int, total: int) -> None:
        name, space, kind = what.partition(" ")
        bars.progress(out.text(f"engine_step_{name}") + space + kind, done, total)

    return progress


def _clock() -> Any:
    from sekisho.core.clock import SystemClock

    return SystemClock()
