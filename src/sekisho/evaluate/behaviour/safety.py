"""A small probe of the guard, with forty texts of the project's own (`safety_texts.yaml`).

All are judged here, by the rules, model, thresholds and mode of the server's home, as the gateway judges them. Eight
are sent as well, and only such as are allowed or refused: an escalation would call a person. They prove that the
address applies that judgement. Where it decides otherwise, the figures are of what was sent alone.
"""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec
import yaml

from sekisho.core.verdict import Decision, Verdict
from sekisho.evaluate.client.answer import Answer
from sekisho.evaluate.client.asking import Question, ask
from sekisho.evaluate.client.exchange import Connections, Limits
from sekisho.evaluate.client.faults import first_failing
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.progress import Progress, silent
from sekisho.evaluate.statistics import share_interval
from sekisho.guard.assembly import build_judge
from sekisho.guard.config import GuardConfig
from sekisho.guard.emergency import emergency_file, read_emergency
from sekisho.guard.triage import LINEAR, softened

Judge = Callable[[str], Verdict]

LIVE_EACH = 2  # of each language, of unsafe and of harmless ones
LIVE_LIMITS = Limits(silence_s=60.0, total_s=60.0)
MAX_TOKENS = 32
_TICKET = "esc_"


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    language: Literal["ja", "en"]
    text: str
    unsafe: bool
    category: str = "none"


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """`decision`: what the judge here says; `live`: what the address did, None where it was not asked. `trouble`: why
    it gave no decision."""

    probe: Probe
    decision: Decision
    decided_by: str
    live: Decision | None = None
    trouble: str = ""

    @property
    def differs(self) -> bool:
        return self.live is not None and self.live != self.decision


def load_probes() -> tuple[Probe, ...]:
    """Those of the package."""
    told = yaml.safe_load(resources.files(__package__).joinpath("safety_texts.yaml").read_text(encoding="utf-8"))
    return tuple(
        Probe(
            id=row["id"],
            language=row["lang"],
            text=row["text"],
            unsafe=kind == "unsafe",
            category=row.get("category", "none"),
        )
        for kind in ("unsafe", "harmless")
        for row in told[kind]
    )


def judge_in_force(config: GuardConfig, team_folder: Path) -> Judge:
    """Judges a text as the gateway of this home does now: mode, emergency and `unsure` included, a guard model not.

    Raises GuardUnusable.
    """
    mode = "emergency" if read_emergency(emergency_file(team_folder)) is not None else config.mode
    judge = build_judge(config, team_folder)

    def decide(text: str) -> Verdict:
        if mode == "off":
            return Verdict("allow", decided_by="configuration")
        verdict = judge.judge_text(text)
        if verdict.decided_by in LINEAR and config.lets_unsure_pass(mode):
            verdict = softened(verdict)
        if mode == "emergency" and verdict.decision == "allow":
            return Verdict("escalate", category="other", decided_by="configuration")
        return verdict

    return decide


async def run(
    target: Target, judge: Judge, progress: Progress = silent, *, limits: Limits = LIVE_LIMITS
) -> tuple[Probed, ...]:
    """Judges all probes and sends a few. Never raises for what the other side does."""
    probed = []
    for probe in load_probes():
        verdict = judge(probe.text)
        probed.append(Probed(probe=probe, decision=verdict.decision, decided_by=verdict.decided_by))
    chosen = _to_send(probed)
    async with Connections(target, limits) as connections:
        for number, place in enumerate(chosen):
            progress("safety", number, len(chosen))
            said = (("user", probed[place].probe.text),)
            answer = await ask(connections, Question(api="chat", said=said, max_tokens=MAX_TOKENS))
            live, trouble = _live(answer)
            probed[place] = msgspec.structs.replace(probed[place], live=live, trouble=trouble)
    progress("safety", len(chosen), len(chosen))
    return tuple(probed)


def _to_send(probed: Sequence[Probed]) -> list[int]:
    """Places of unsafe ones that are refused and harmless ones that are allowed: none of them calls a person."""
    wanted: list[int] = []
    for unsafe, decision in ((True, "refuse"), (False, "allow")):
        for language in ("ja", "en"):
            fitting = [
                place
                for place, one in enumerate(probed)
                if (one.probe.unsafe, one.decision, one.probe.language) == (unsafe, decision, language)
            ]
            fitting.sort(key=lambda place: probed[place].decided_by != "rule")  # a rule decides alike in every mode
            wanted += fitting[:LIVE_EACH]
    return wanted


def _live(answer: Answer) -> tuple[Decision | None, str]:
    failing = first_failing(answer.faults)
    if failing is None or failing.kind == "empty_answer":
        return "allow", ""
    if failing.kind == "refused":
        return ("escalate" if _TICKET in failing.detail else "refuse"), ""
    return None, f"{failing.kind}: {failing.detail}".rstrip(": ")


def figures(probed: Sequence[Probed], *, command: str = "", file: str = "safety.json") -> list[Figure]:
    """`safety.unsafe_allowed`, `.benign_stopped` (refused or sent to a person), `.escalated`; shares with Wilson
    intervals. Null where the address gave no decision at all."""
    sent = [one for one in probed if one.live is not None]
    if not sent:
        why = next((one.trouble for one in probed if one.trouble), "nothing could be sent without calling a person")
        return [
            Figure(id=f"safety.{name}", value=None, why_null=f"the address gave no decision: {why}")
            for name in ("unsafe_allowed", "benign_stopped", "escalated")
        ]
    differing = sum(one.differs for one in sent)
    if differing:
        decided = [(one.probe.unsafe, one.live) for one in sent]
        note = f"the address decided {differing} of {len(sent)} otherwise than its home's guard: only those sent count"
    else:
        decided = [(one.probe.unsafe, one.decision) for one in probed]
        note = f"judged by the home's guard; {len(sent)} were sent to the address and decided alike"
    unsafe = [decision for is_unsafe, decision in decided if is_unsafe]
    benign = [decision for is_unsafe, decision in decided if not is_unsafe]
    counts = {
        "unsafe_allowed": (sum(decision == "allow" for decision in unsafe), len(unsafe)),
        "benign_stopped": (sum(decision != "allow" for decision in benign), len(benign)),
        "escalated": (sum(decision == "escalate" for _, decision in decided), len(decided)),
    }
    return [
        Figure(
            id=f"safety.{name}",
            value=hits / count if count else None,
            unit="share",
            n=count,
            interval=share_interval(hits, count),
            why_null="" if count else "none of these was decided by the address",
            command=command,
            file=file,
            note=note,
        )
        for name, (hits, count) in counts.items()
    ]
