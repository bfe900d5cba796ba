"""`sekisho guard eval|calibrate`: how good the guard is on labelled requests, and its thresholds made from them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli.failure import ABSENT, FAILED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

if TYPE_CHECKING:
    from sekisho.core.verdict import Verdict
    from sekisho.guard.band import Band
    from sekisho.guard.evaluation import Case, Evaluation, Labelled, Rate, Section
    from sekisho.guard.judge import Judge
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

SHOWN_BAD_LINES = 20
MEASURES = (
    "unsafe_allowed",
    "refuse_recall",
    "escalate_recall",
    "escalate_precision",
    "over_refusal",
    "over_escalation",
    "escalation",
    "band_width",
    "accuracy",
    "category_right",
)
OF_CATEGORY = ("unsafe_allowed", "refuse_recall", "escalate_recall", "over_refusal")

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE.jsonl", help='Lines of {"text", "lang", "decision", "category"}.')
]


def register(app: typer.Typer) -> None:
    epilog = example("sekisho guard eval held-out.jsonl --cases cases.jsonl", ja="ラベル付きの要求で評価します。")
    app.command("eval", epilog=epilog)(evaluate)
    epilog = example("sekisho guard calibrate ours.jsonl --alpha 0.05", ja="自分のデータで閾値を決めます。")
    app.command("calibrate", epilog=epilog)(calibrate)


def judge_of(place: "Home", settings: "Settings") -> "Judge":
    """The judge that a server with these settings has. Raises CommandFailed."""
    from sekisho.guard.assembly import build_judge

    with usable_guard():
        return build_judge(settings.guard, place.guard)


@contextmanager
def usable_guard() -> Iterator[None]:
    """Turns a guard that cannot be put together into a failure of usage."""
    from sekisho.guard.assembly import GuardUnusable

    try:
        yield
    except GuardUnusable as error:
        raise CommandFailed(str(error), hint="sekisho guard rules check", exit_code=USAGE) from error


def evaluate(
    file: FileArgument,
    cases: Annotated[Path | None, typer.Option("--cases", help="Write our decision for each line here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the confusion matrices here, as SVG.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge labelled requests and say how often it was right, with Wilson 95 % intervals. Needs no server.

    Exit code 1 when a line could not be read: the figures are of the others.
    """
    from sekisho.guard import evaluation

    out, place = Output(as_json=as_json), at_home(home)
    lines = _lines(file)
    judge = judge_of(place, settings_of(place))
    with _cases(cases) as record:
        rows = _Rows(out, lines, record)
        try:
            result = evaluation.evaluate(rows, lambda text, _: judge.judge_text(text), rows.keep)
        except ValueError as error:
            raise CommandFailed(f"{file}: {error}", exit_code=USAGE) from error
    if plot is not None:
        plot.write_text(evaluation.confusion_svg(result), encoding="utf-8")
    out.json({**_loud(plain(result)), "cases": _told(cases), "plot": _told(plot)})
    _show_figures(out, result)
    for line in result.bad_lines[:SHOWN_BAD_LINES]:
        out.warn(f"{file}, {line}")
    if result.bad_lines:
        out.warn(out.text("eval_bad", count=len(result.bad_lines)))
        raise typer.Exit(FAILED)


def _loud(value: Any) -> Any:
    """With the decisions of its matrices in capitals, as they are everywhere in JSON."""
    if not isinstance(value, dict):
        return value
    capital = {"allow", "escalate", "refuse"}
    return {name.upper() if name in capital else name: _loud(inner) for name, inner in value.items()}


def _told(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _lines(file: Path) -> list[bytes]:
    if not file.is_file():
        raise CommandFailed(f"{file}: no such file", exit_code=ABSENT)
    return file.read_bytes().splitlines()


@contextmanager
def _cases(path: Path | None) -> "Iterator[IO[str] | None]":
    if path is None:
        yield None
        return
    with path.open("w", encoding="utf-8") as file:
        yield file


class _Rows:
    """Reads the lines, shows how far it is, and writes a case for each with its number. A line that cannot be read
    has its case, too, so that the files run side by side."""

    def __init__(self, out: Output, lines: list[bytes], cases: IO[str] | None) -> None:
        self._out = out
        self._lines = lines
        self._cases = cases
        self._number = 0

    def __iter__(self) -> "Iterator[Labelled | str]":
        from sekisho.guard.evaluation import BadLine, labelled

        with _progress(self._out, len(self._lines)) as step:
            for line in self._lines:
                self._number += 1
                step()
                if not line.strip():
                    continue
                try:
                    yield labelled(line)
                except BadLine as wrong:
                    self._write({"line": self._number, "error": str(wrong)})
                    yield f"line {self._number}: {wrong}"

    def keep(self, case: "Case") -> None:
        verdict: Verdict = case.verdict
        self._write(
            {
                "line": self._number,
                "text": case.row.text,
                "lang": case.row.lang or verdict.language,
                "decision": verdict.decision.upper(),
                "category": verdict.category,
                "confidence": verdict.confidence,
                "rationale": verdict.rationale,
                "decided_by": verdict.decided_by,
                "expected_decision": case.row.decision.upper(),
                "expected_category": case.row.category,
            }
        )

    def _write(self, case: dict[str, Any]) -> None:
        if self._cases is not None:
            text = json.dumps(case, ensure_ascii=False)
            self._cases.write(text.encode("utf-8", "backslashreplace").decode() + "\n")


@contextmanager
def _progress(out: Output, total: int) -> "Iterator[Any]":
    """A bar on standard error for people at a terminal; gives a function that takes one step."""
    if out.as_json or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.progress import Progress

    with Progress(console=out.console(error=True), transient=True) as bar:
        task = bar.add_task(out.text("eval_judging"), total=total)
        yield lambda: bar.advance(task)


def _show_figures(out: Output, result: "Evaluation") -> None:
    sections: dict[str, Section] = {out.text("all_of_it"): result.overall}
    for name in sorted(result.by_language, key=lambda name: ({"ja": 0, "en": 1}.get(name, 2), name)):
        sections[name] = result.by_language[name]
    out.say("eval_title", count=result.overall.count, policy=result.policy_version)
    out.line()
    headings = [out.text("measure"), *(f"{name} ({section.count})" for name, section in sections.items())]
    rows = [
        (out.text(measure), *(_rate(getattr(section, measure)) for section in sections.values()))
        for measure in MEASURES
    ]
    out.table(headings, rows, unbroken=len(headings))  # a folded interval is hard to read
    out.line()
    headings = [*out.columns("category", "count"), *(out.text(measure) for measure in OF_CATEGORY)]
    out.table(
        headings,
        [
            (name, section.count, *(_rate(getattr(section, measure)) for measure in OF_CATEGORY))
            for name, section in result.by_category.items()
        ],
        unbroken=len(headings),
    )
    out.line()
    matrix = result.overall.matrix
    out.table(
        [out.text("label_decided"), *(decision.upper() for decision in matrix)],
        [(label.upper(), *row.values()) for label, row in matrix.items()],
    )


def _rate(rate: "Rate") -> str | None:
    if rate.value is None or rate.low is None or rate.high is None:
        return None
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def calibrate(
    file: FileArgument,
    alpha: Annotated[
        float, typer.Option("--alpha", help="The share of what a person must see that may pass unseen, 0 to 1.")
    ] = 0.05,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the thresholds from your own labelled requests, by conformal risk control. Restart the server to use them."""
    from sekisho.guard.assembly import band_file, load_linear

    out, place = Output(as_json=as_json), at_home(home)
    rows = _good_rows(file)
    with usable_guard():
        linear = load_linear(place.guard)
    with out.waiting("calibrating"):
        band = _band(rows, linear.classifier, alpha)
    path = band_file(place.guard)
    place.create()
    band.save(path)
    out.json({"path": str(path), **plain(band)})
    out.table(
        out.columns("group", "allow_below", "refuse_from", "unsafe", "safe", "width", "as_of"),
        [
            (name, f"{t.allow_below:.4f}", f"{t.refuse_from:.4f}", t.unsafe, t.safe, f"{t.width:.1%}", t.pooled or None)
            for name, t in sorted(band.thresholds.items())
        ],
    )
    out.say("calibrated", path=path)
    out.say("model_restart")


def _good_rows(file: Path) -> "list[Labelled]":
    """Every line of the file; thresholds are not made from half of one. Raises CommandFailed."""
    from sekisho.guard.evaluation import read

    rows: list[Labelled] = []
    bad: list[str] = []
    for row in read(_lines(file)):
        bad.append(row) if isinstance(row, str) else rows.append(row)
    if bad:
        shown = "\n".join(f"{file}, {line}" for line in bad[:SHOWN_BAD_LINES])
        raise CommandFailed(shown, exit_code=USAGE, details={"bad_lines": bad})
    return rows


def _band(rows: "list[Labelled]", classifier: Any, alpha: float) -> "Band":
    import msgspec

    from sekisho.guard import band
    from sekisho.guard.assembly import made_for

    try:
        found = band.calibrate(rows, classifier, alpha)
    except ValueError as error:
        raise CommandFailed(str(error), exit_code=USAGE) from error
    return msgspec.structs.replace(found, notes=(*found.notes, made_for(classifier.version)))
