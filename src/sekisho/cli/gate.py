"""`sekisho gate`: does an address offer what client programs need?"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli.aiming import KeyOption, ModelOption, PlaceOption, UrlOption, aimed
from sekisho.cli.failure import FAILED
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.evaluate.behaviour.gate import Gate, GateResult
    from sekisho.evaluate.client.target import Target

STYLES = {True: "green", False: "bold red", None: "yellow"}
STATES = {True: "gate_passed", False: "gate_failed", None: "gate_not_tried"}


def register(app: typer.Typer) -> None:
    epilog = example("sekisho gate", "sekisho gate --chat --junit gate.xml", ja="API が使えるかを確認します。")
    app.command("gate", epilog=epilog)(gate)


def gate(
    url: UrlOption = None,
    key: KeyOption = None,
    model: ModelOption = None,
    place: PlaceOption = None,
    chat: Annotated[bool, typer.Option("--chat", help="Chat completions: one turn, two turns, stream.")] = False,
    responses: Annotated[bool, typer.Option("--responses", help="The Responses API: whole and stream.")] = False,
    state: Annotated[bool, typer.Option("--state", help="previous_response_id.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the results here, as JUnit XML.")] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1.0, max=86_400.0, help="Seconds that an answer may take.")
    ] = 120.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer that is asked for.")] = 256,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Try what client programs need: models, keys, chat, responses, state. Each failure says why and what to do next.

    Without --chat, --responses or --state all are tried. Exit code 1 when a gate failed.
    """
    import asyncio

    from sekisho.evaluate.behaviour import gate as gates
    from sekisho.evaluate.behaviour import gate_report
    from sekisho.evaluate.client.exchange import Limits

    out, where = Output(as_json=as_json), at_home(home)
    which = _chosen(chat, responses, state)
    limits = Limits(silence_s=timeout_s, total_s=timeout_s)
    lasts_s = 60.0 + len(which) * 3 * timeout_s
    with aimed(
        out, where, "gate", url=url, key=key, model=model, at=place, lasts_s=lasts_s, must_answer=False
    ) as target:
        results = asyncio.run(gates.run_gates(target, which, limits=limits, max_tokens=max_tokens))
    if junit is not None:
        junit.write_bytes(gate_report.as_junit(results, target, language=out.language, at=time.time()))
    out.json(gate_report.as_json(results, target))
    if not as_json:
        _show(out, results, target)
    if not gate_report.passed(results):
        raise typer.Exit(FAILED)


def _chosen(chat: bool, responses: bool, state: bool) -> "tuple[Gate, ...]":
    from sekisho.evaluate.behaviour.gate import ALWAYS, CHAT, GATES, RESPONSES, STATE

    if not (chat or responses or state):
        return GATES
    parts = ((chat, CHAT), (responses, RESPONSES), (state, STATE))
    return ALWAYS + tuple(gate for wanted, gates in parts if wanted for gate in gates)


def _show(out: Output, results: "Sequence[GateResult]", target: "Target") -> None:
    from rich.table import Table
    from rich.text import Text

    out.say("gate_title", place=target.place, url=target.url, model=target.model or "—")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in out.columns("gate", "result", "http_status", "time_ms"):
        table.add_column(Text(heading), no_wrap=True)
    for result in results:
        table.add_row(
            Text(result.gate, style="bold"),
            Text(out.text(STATES[result.passed]), style=STYLES[result.passed]),
            Text("—" if result.status is None else str(result.status)),
            Text("—" if result.ms is None else f"{result.ms:,.0f}"),
        )
    out.console().print(table)
    _explain_failures(out, results)
    _tell_besides(out, results)
    failed = sum(result.passed is False for result in results)
    if failed:
        out.line(out.text("gate_some_failed", failed=failed, count=len(results)), style=STYLES[False])
    else:
        out.line(out.text("gate_all_passed", count=sum(bool(r.passed) for r in results)), style=STYLES[True])


def _explain_failures(out: Output, results: "Sequence[GateResult]") -> None:
    """Gates that failed for the same reason are told of together."""
    language = int(out.language == "ja")
    alike: dict[tuple[str, str, bool], list[GateResult]] = {}
    for result in results:
        if result.passed is not True:
            alike.setdefault((result.kind, result.words, result.passed is None), []).append(result)
    for group in alike.values():
        first = group[0]
        out.line()
        names = ", ".join(result.gate for result in group)
        out.line(f"{names}: {first.reason[language]}", style=STYLES[first.passed])
        if first.words:
            key = "gate_found" if first.status is None else "gate_server_says"
            out.line("  " + out.text(key, words=" ".join(first.words.split())))
        out.line(f"  {out.text('next')}: {first.next[language]}")


def _tell_besides(out: Output, results: "Sequence[GateResult]") -> None:
    """What was seen and decides nothing."""
    from sekisho.evaluate.client.faults import MEANINGS

    language = int(out.language == "ja")
    for result in results:
        seen = [MEANINGS[fault.kind].what[language] for fault in result.faults if not fault.fails]
        seen += [result.note[language]] if result.note[language] else []
        for what in dict.fromkeys(seen):
            out.line(f"{result.gate}: {out.text('gate_besides', what=what)}")
