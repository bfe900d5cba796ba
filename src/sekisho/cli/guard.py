"""`sekisho guard explain|mode` and `sekisho guard rules list|check`; `eval` and `calibrate` are in `guard_figures`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli import guard_figures
from sekisho.cli.failure import ABSENT, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain
from sekisho.cli.quantities import moment

if TYPE_CHECKING:
    from sekisho.core.verdict import Verdict
    from sekisho.guard.config import GuardConfig
    from sekisho.guard.text import View
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

STYLES = {"allow": "bold green", "escalate": "bold yellow", "refuse": "bold red"}
SHOWN_CHARS = 400

app = typer.Typer(
    help="What the guard says of a text, and how good it is.",
    epilog=example('sekisho guard explain "How do I kill a process?"', ja="ガードの判定を確かめます。"),
    no_args_is_help=True,
)
rules_app = typer.Typer(
    help="The rules in force: built-in ones and the team's.",
    epilog=example("sekisho guard rules check", ja="規則を一覧し、検査します。"),
    no_args_is_help=True,
)
app.add_typer(rules_app, name="rules")
guard_figures.register(app)


@app.command(
    "explain", epilog=example('sekisho guard explain "How do I kill a process?"', ja="判定とその理由を示します。")
)
def explain(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What a caller would ask; - reads standard input.")],
    lang: Annotated[
        str | None, typer.Option("--lang", help="ja or en, if you know it: you are told where the guard differs.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a text as the server would, and say why. Works without a server; nothing is recorded."""
    from sekisho.guard.rationale import rationale
    from sekisho.guard.text import views

    out, place = Output(as_json=as_json), at_home(home)
    if lang not in (None, "ja", "en"):
        raise CommandFailed(f"--lang: {lang!r} is none", hint="ja or en", exit_code=USAGE)
    if text == "-":
        text = sys.stdin.read()
    verdict = guard_figures.judge_of(place, settings_of(place)).judge_text(text)
    readings = views(text)
    rationales = {
        language: rationale(verdict.decision, verdict.category, verdict.decided_by, language)
        for language in ("ja", "en")
    }
    out.json(
        {
            **plain(verdict),
            "decision": verdict.decision.upper(),
            "findings": [{**plain(each), "decision": each.decision.upper()} for each in verdict.findings],
            "rationale": rationales,
            "views": [{"via": list(view.via), "text": view.text, "opaque": view.opaque} for view in readings],
        }
    )
    if not as_json:
        _show_verdict(out, verdict, rationales, readings)
    if lang is not None and verdict.language not in (lang, "mixed"):
        out.warn(out.text("explain_language", read=verdict.language, told=lang))


def _show_verdict(out: Output, verdict: "Verdict", rationales: dict[str, str], readings: "tuple[View, ...]") -> None:
    out.line(f"{verdict.decision.upper()}  {verdict.category}", style=STYLES[verdict.decision])
    for language in ("ja", "en"):
        out.line(f"  {rationales[language]}")
    facts: list[tuple[str, Any]] = [
        ("severity", verdict.severity),
        ("decided_by", verdict.decided_by),
        ("confidence", None if verdict.confidence is None else f"{verdict.confidence:.3f}"),
        ("threshold", None if verdict.threshold is None else f"{verdict.threshold:.3f}"),
        ("language", verdict.language),
        ("policy", verdict.policy_version),
    ]
    for name, value in facts:
        if value not in (None, "none"):
            out.line(f"  {out.text(name)}: {value}")
    if verdict.findings:
        rows = [
            (each.rule, each.decision.upper(), each.category, each.severity, each.source, _via(each.via), each.where)
            for each in verdict.findings
        ]
        out.table(out.columns("rule", "decision", "category", "severity", "source_of", "view", "place"), rows)
    out.say("explain_views")
    for view in readings:
        cut = view.text if len(view.text) <= SHOWN_CHARS else f"{view.text[:SHOWN_CHARS]}…"
        mark = f" ({out.text('unreadable')})" if view.opaque else ""
        out.line(f"  {_via(view.via)}{mark}: {cut}")


def _via(via: tuple[str, ...]) -> str:
    return " > ".join(via) or "plain"


@app.command("mode", epilog=example("sekisho guard mode", ja="有効な動作モードを表示します。"))
def mode(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the mode in force and where it comes from: an emergency, the running server, or the settings."""
    out, place = Output(as_json=as_json), at_home(home)
    answer = mode_in_force(place, settings_of(place))
    out.json(answer)
    out.line(answer["mode"], style="bold red" if answer["mode"] in ("emergency", "off") else "bold green")
    out.line("  " + out.text(f"mode_{answer['mode']}"))
    emergency = answer["emergency"]
    if emergency is not None:
        out.line("  " + out.text("emergency_since", since=moment(emergency["since"]), by=emergency["by"]))
        out.line("  " + out.text("emergency_reason", reason=emergency["reason"]))
    out.line("  " + out.text("mode_from", source=out.text(f"from_{answer['from']}"), configured=answer["configured"]))
    if answer["test_mode"]:
        out.line("  " + out.text("mode_test"), style="yellow")


def mode_in_force(place: "Home", settings: "Settings") -> dict[str, Any]:
    """The guard's mode as JSON types. A running server may have been started with another one than the settings'."""
    from sekisho.guard.emergency import emergency_file, read_emergency
    from sekisho.ops.home import running

    served = running(place) is not None
    guard = of_the_running_server(place) if served else None
    source = "settings" if guard is None else "server"
    guard = guard or settings.guard
    emergency = read_emergency(emergency_file(place.guard))
    return {
        "mode": "emergency" if emergency is not None else guard.mode,
        "configured": guard.mode,
        "from": source if emergency is None else "emergency",
        "test_mode": guard.test_mode,
        "running": served,
        "emergency": None if emergency is None else plain(emergency),
    }


def of_the_running_server(place: "Home") -> "GuardConfig | None":
    """The guard's settings with which the server that runs from this home was started."""
    import msgspec

    from sekisho.serve import Plan

    try:
        return msgspec.json.decode((place.run / "plan.json").read_bytes(), type=Plan).settings.guard
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


@rules_app.command("list", epilog=example("sekisho guard rules list", ja="有効な規則の一覧を表示します。"))
def rules_list(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the rules in force with file and line."""
    from sekisho.guard.assembly import load_rules, rules_folder
    from sekisho.guard.rules import BUILT_IN

    out, place = Output(as_json=as_json), at_home(home)
    with guard_figures.usable_guard():
        rules = load_rules(place.guard).current()
    own = str(rules_folder(place.guard))
    listed: list[dict[str, Any]] = [
        {
            "id": rule.id,
            "decision": rule.decision.upper(),
            "category": rule.category,
            "severity": rule.severity,
            "languages": list(rule.languages),
            "built_in": not rule.file.startswith(own),
            "file": rule.file,
            "line": rule.line,
            "tests": len(rule.match_tests) + len(rule.pass_tests),
        }
        for rule in rules.rules
    ]
    out.json({"version": rules.version, "folder": own, "rules": listed})
    rows = [
        (
            each["id"],
            each["decision"],
            each["category"],
            each["severity"],
            ", ".join(each["languages"]),
            f"{str(each['file']).replace(str(BUILT_IN), 'built-in')}:{each['line']}",
        )
        for each in listed
    ]
    out.table(out.columns("rule", "decision", "category", "severity", "language", "place"), rows)
    out.say("rules_counted", count=len(listed), version=rules.version, folder=own)


@rules_app.command("check", epilog=example("sekisho guard rules check ./rules", ja="規則とそのテストを検査します。"))
def rules_check(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Rules as YAML; default: guard/rules of the home.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check rules and try each on its own tests, built-in ones too. Problems have file and line; exit code 2 then."""
    from sekisho.guard.assembly import rules_folder
    from sekisho.guard.rule_file import RuleError
    from sekisho.guard.rules import RuleSet

    out, place = Output(as_json=as_json), at_home(home)
    chosen = folder or rules_folder(place.guard)
    if folder is not None and not folder.is_dir():
        raise CommandFailed(f"{folder} is not a folder", exit_code=ABSENT)
    try:
        rules = RuleSet.load(chosen, check_built_in=True)
    except RuleError as error:
        details = {"problems": [plain(problem) for problem in error.problems]}
        raise CommandFailed(str(error), exit_code=USAGE, details=details) from error
    tests = sum(len(rule.match_tests) + len(rule.pass_tests) for rule in rules.rules)
    out.json({"ok": True, "folder": str(chosen), "rules": len(rules.rules), "tests": tests, "version": rules.version})
    out.say("rules_good", count=len(rules.rules), tests=tests)
