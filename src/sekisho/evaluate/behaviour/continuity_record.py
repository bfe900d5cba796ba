"""Held conversations as a table, a summary and figures."""

import csv
import io
from collections.abc import Sequence

from sekisho.evaluate.behaviour.continuity import LEAST_TURNS, Held, Mode, Plan
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.statistics import share_interval

SHOWN_CHARS = 200  # of each answer
COLUMNS = (
    "api_mode", "user_id", "conv_id", "keyword", "http1", "http2", "http3", "state_id_chain_ok", "turn2_ok", "turn3_ok",
    "continued", "turn2_text", "turn3_text", "turns", "turns_ok", "statuses", "language", "faults", "ms",
)  # fmt: skip


def as_csv(held: Sequence[Held]) -> str:
    """One line a conversation. A status of 0: no answer, or the turn was not sent."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in held:
        first, second, third = one.main[:LEAST_TURNS]
        statuses = [spoken.status or 0 for spoken in (first, second, third)]
        kept = [int(one.kept(spoken)) for spoken in (second, third)]
        faults = sorted({fault for spoken in one.spoken for fault in spoken.faults})
        writer.writerow(
            [
                *(one.mode, one.user, one.number, one.keyword, *statuses, int(one.chained), *kept, int(one.continued)),
                *(_shown(spoken.text) for spoken in (second, third)),
                *(len(one.spoken), sum(one.kept(s) for s in one.spoken if s.turn.keeps)),
                " ".join(str(spoken.status or 0) for spoken in one.spoken),
                one.language,
                " ".join(faults),
                " ".join(f"{spoken.ms or 0.0:.1f}" for spoken in one.spoken),
            ]
        )
    return file.getvalue()


def _shown(text: str) -> str:
    """Its beginning in one line. What a spreadsheet would take for a formula is marked as text."""
    line = " ".join(text.split())[:SHOWN_CHARS]
    return f"'{line}" if line[:1] in ("=", "+", "-", "@") else line


def why_lost(one: Held) -> tuple[str, str]:
    """Why a conversation did not continue (English, Japanese); empty for one that did."""
    for number, spoken in enumerate(one.spoken, 1):
        if not spoken.went_well:
            what = ", ".join(spoken.faults) or f"HTTP {spoken.status}"
            return f"turn {number}: {what}", f"ターン {number}: {what}"
        if one.mode == "responses" and not spoken.id:
            return f"turn {number}: no id to go on from", f"ターン {number}: 続きに使う ID がありません"
    forgotten = [str(n) for n, spoken in enumerate(one.spoken, 1) if spoken.turn.keeps and not one.kept(spoken)]
    if not forgotten:
        return "", ""
    turns = ", ".join(forgotten)
    return f"{one.keyword} is not in turn {turns}", f"{one.keyword} がターン {turns} にありません"


def summary(held: Sequence[Held], plan: Plan) -> str:
    """`name=value` lines, as the evaluation's record of this measurement."""
    continued = sum(one.continued for one in held)
    interval = share_interval(continued, len(held))
    rate = f"{100 * continued / len(held):.2f}%" if held else "none"
    between = "none" if interval is None else f"{100 * interval.low:.2f}%..{100 * interval.high:.2f}% (Wilson 95%)"
    definition = f"all {plan.turns} turns 2xx and the keyword in turns 2 to {plan.turns}" + (
        ", and an unbroken chain of response ids" if plan.mode == "responses" else ""
    )
    lines = {
        "api_mode": plan.mode,
        "users": plan.users,
        "conversations_per_user_target": plan.conversations,
        "conversations": len(held),
        "continued": continued,
        "state_id_chain_ok": sum(one.chained for one in held),
        "continuity_rate": rate,
        "continuity_rate_interval": between,
        "turns": plan.turns,
        "distractors_between": plan.distractors,
        "keyword_shape": plan.shape,
        "seed": plan.seed,
        "definition": definition,
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


def figures(held: Sequence[Held], mode: Mode, *, command: str = "", file: str = "") -> list[Figure]:
    """`continuity.<mode>.rate`, `.http_ok`, and `.chains` for responses; null where no conversation was held."""
    if not held:
        why = "no conversation was held"
        names = ("rate", "http_ok") if mode == "chat" else ("rate", "http_ok", "chains")
        return [Figure(id=f"continuity.{mode}.{name}", value=None, why_null=why) for name in names]
    continued = sum(one.continued for one in held)
    sent = [spoken for one in held for spoken in one.spoken if spoken.sent]
    well = sum(spoken.went_well for spoken in sent)
    made = [
        Figure(
            id=f"continuity.{mode}.rate",
            value=continued / len(held),
            unit="share",
            n=len(held),
            interval=share_interval(continued, len(held)),
            command=command,
            file=file,
        ),
        Figure(
            id=f"continuity.{mode}.http_ok",
            value=well / len(sent),
            unit="share",
            n=len(sent),
            interval=share_interval(well, len(sent)),
            command=command,
            file=file,
        ),
    ]
    if mode == "responses":
        chains = sum(one.chained for one in held)
        made.append(
            Figure(
                id="continuity.responses.chains",
                value=chains,
                unit="count",
                n=len(held),
                command=command,
                file=file,
            )
        )
    return made
