"""`sekisho continuity`: do conversations hold over their turns?"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli.aiming import KeyOption, ModelOption, PlaceOption, UrlOption, aimed
from sekisho.cli.failure import FAILED, USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output
from sekisho.cli.progress_bars import Bars

if TYPE_CHECKING:
    from sekisho.evaluate.behaviour.continuity import Held, Language, Mode, Plan
    from sekisho.evaluate.behaviour.keywords import Shape
    from sekisho.evaluate.figures import Figure

MODES = ("chat", "responses", "both")
LANGUAGES = ("ja", "en", "both")
TURN_S = 30.0  # what a temporary key allows for each turn
SHOWN_LOST = 10


def register(app: typer.Typer) -> None:
    epilog = example("sekisho continuity", "sekisho continuity --mode responses", ja="会話の継続率を測ります。")
    app.command("continuity", epilog=epilog)(continuity)


def continuity(
    mode: Annotated[str, typer.Option("--mode", help="chat (history is sent), responses (id chain) or both.")] = "both",
    users: Annotated[int, typer.Option("--users", min=1, help="How many talk at the same time.")] = 2,
    conversations: Annotated[int, typer.Option("--conversations", min=1, help="Conversations of each user.")] = 15,
    turns: Annotated[int, typer.Option("--turns", min=3, help="Turns about the keyword.")] = 3,
    distractors: Annotated[int, typer.Option("--distractors", min=0, help="Turns about other things between.")] = 0,
    shape: Annotated[
        str, typer.Option("--shape", help="Keywords: ascii, kanji, mixed, or fixed (KEY-001-AOIRINGO).")
    ] = "ascii",
    lang: Annotated[str, typer.Option("--lang", help="ja, en or both, by turns.")] = "both",
    seed: Annotated[int | None, typer.Option("--seed", help="Repeat a run's keywords; default: new ones.")] = None,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", min=0.0, max=1.0, help="Exit code 1 below this rate, as in 0.95.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write continuity_MODE.csv and its summary here.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    model: ModelOption = None,
    place: PlaceOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold conversations of three turns and count those that keep what the first turn laid down."""
    import asyncio

    from sekisho.evaluate.behaviour import continuity as talks
    from sekisho.evaluate.behaviour import continuity_record as record

    out, where = Output(as_json=as_json), at_home(home)
    plans = _plans(mode, users, conversations, turns, distractors, shape, lang, seed)
    each = users * conversations * (turns + (turns - 1) * distractors)
    lasts_s = 900.0 + len(plans) * each * TURN_S
    told: list[dict[str, Any]] = []
    below = False
    with (
        aimed(out, where, "continuity", url=url, key=key, model=model, at=place, lasts_s=lasts_s) as target,
        Bars(out, quiet=as_json) as bars,
    ):
        for plan in plans:
            held = asyncio.run(talks.run(target, plan, bars.progress))
            figures = record.figures(held, plan.mode, command="sekisho continuity", file=f"continuity_{plan.mode}.csv")
            told.append(_told(plan, figures, folder, held))
            _show(out, plan.mode, figures, held)
            below = below or (fail_under is not None and sum(h.continued for h in held) < fail_under * len(held))
    out.json({"url": target.url, "place": target.place, "model": target.model, "modes": told})
    if folder is not None:
        out.say("continuity_written", files=folder)
    if below:
        out.line(out.text("continuity_below", least=fail_under), style="bold red")
        raise typer.Exit(FAILED)


def _plans(
    mode: str, users: int, conversations: int, turns: int, distractors: int, shape: str, lang: str, seed: int | None
) -> "list[Plan]":
    from sekisho.evaluate.behaviour.continuity import Plan
    from sekisho.evaluate.behaviour.keywords import SHAPES

    for option, value, known in (("--mode", mode, MODES), ("--shape", shape, SHAPES), ("--lang", lang, LANGUAGES)):
        if value not in known:
            raise CommandFailed(f"{option}: {value!r} is none", hint=f"one of {', '.join(known)}", exit_code=USAGE)
    chosen = secrets.randbelow(1 << 31) if seed is None else seed
    modes: tuple[Mode, ...] = ("chat", "responses")
    shapes: dict[str, Shape] = {name: name for name in SHAPES}
    languages: dict[str, Language | None] = {"ja": "ja", "en": "en", "both": None}
    return [
        Plan(
            mode=each,
            users=users,
            conversations=conversations,
            turns=turns,
            distractors=distractors,
            shape=shapes[shape],
            language=languages[lang],
            seed=chosen,
        )
        for each in modes
        if mode in (each, "both")
    ]


def _told(plan: "Plan", figures: "list[Figure]", folder: Path | None, held: "Sequence[Held]") -> dict[str, Any]:
    """The mode's part of the JSON answer; writes its files."""
    from sekisho.cli.output import plain
    from sekisho.evaluate.behaviour import continuity_record as record

    summary = record.summary(held, plan)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"continuity_{plan.mode}.csv").write_text(record.as_csv(held), encoding="utf-8")
        (folder / f"continuity_{plan.mode}_summary.txt").write_text(summary, encoding="utf-8")
    lost = [{"number": one.number, "why": record.why_lost(one)} for one in held if not one.continued]
    return {"mode": plan.mode, "seed": plan.seed, "figures": plain(figures), "lost": lost, "summary": summary}


def _show(out: Output, mode: "Mode", figures: "list[Figure]", held: "Sequence[Held]") -> None:
    from sekisho.evaluate.behaviour.continuity_record import why_lost

    rate = figures[0]
    interval = rate.interval
    if interval is None or rate.value is None:
        return
    continued = sum(one.continued for one in held)
    shares = {
        name: f"{100 * value:.1f} %"
        for name, value in (("rate", rate.value), ("low", interval.low), ("high", interval.high))
    }
    style = "green" if continued == len(held) else "yellow"
    out.line(out.text("continuity_title", mode=mode, continued=continued, count=len(held), **shares), style=style)
    if mode == "responses":
        out.say("continuity_chains", chains=sum(one.chained for one in held), count=len(held))
    for one in [one for one in held if not one.continued][:SHOWN_LOST]:
        out.say("continuity_lost", mode=mode, number=one.number, why=why_lost(one)[int(out.language == "ja")])
