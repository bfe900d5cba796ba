"""Where a tuning, a comparison or an ablation is written: JSON, and one page beside it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from sekisho.cli import retyped
from sekisho.cli.tuning_site import Site, language_of
from sekisho.cli.tuning_trial import Trial

_TOLD: Final = ("sekisho", "python", "xllamacpp", "torch", "transformers")

if TYPE_CHECKING:
    from sekisho.evaluate.tuning_record import TuningRecord


def record(trial: Trial, context: typer.Context, **parts: Any) -> "TuningRecord":
    """With machine and software. `parts`: of `TuningRecord`, what was measured."""
    from sekisho.cli.incident import versions
    from sekisho.evaluate import environment
    from sekisho.evaluate.tuning_record import TuningRecord
    from sekisho.ops.hardware import detect
    from sekisho.ops.home import running

    site = trial.site
    disturbed = (site.out.text("tuning_disturbed"),) if running(site.place) is not None else ()
    return TuningRecord(
        made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(site.made_at)),
        command=retyped.command(context),
        model=site.own,
        plan=trial.plan,
        environment=(environment.machine(detect(site.place.path)), environment.software(_software(versions()))),
        notes=(*disturbed, *trial.notes),
        **parts,
    )


def _software(versions: dict[str, str]) -> dict[str, str]:
    """What speed may depend on."""
    return {name: version for name, version in versions.items() if name in _TOLD}


def write(site: Site, made: "TuningRecord", kind: str, to: Path | None) -> dict[str, Any]:
    """Both files, readable by their owner alone, and says where. The answer is the record, as JSON has it."""
    import msgspec

    from sekisho.evaluate.report.tuning_page import render
    from sekisho.ops.home import write_atomically

    data, page = _files(site, kind, to)
    write_atomically(data, msgspec.json.format(msgspec.json.encode(made), indent=1))
    write_atomically(page, render(made, language_of(site.out)).encode())
    site.out.say("tuning_written", files=f"{data}, {page}")
    return {**msgspec.to_builtins(made), "files": [str(data), str(page)]}


def _files(site: Site, kind: str, to: Path | None) -> tuple[Path, Path]:
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(site.made_at))
    data = to or site.place.path / "tuning" / f"{moment}-{kind}.json"
    if data.suffix == ".html":
        data = data.with_suffix(".json")
    return data, data.with_suffix(".html")
