"""The probe of the guard: what is judged here, what is sent, and what becomes of the figures."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_harness import FAKE, LiveGateway
from good_answers import MODEL, Talk, dumped
from lies import LIES, PATIENT
from lying_server import LyingServer

from sekisho.core.verdict import Decision, Verdict
from sekisho.evaluate.behaviour.safety import Probed, figures, judge_in_force, load_probes, run
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.figures import Figure
from sekisho.guard.config import GuardConfig, Mode
from sekisho.guard.emergency import Emergency, emergency_file

NO_TEAM = Path("/nowhere")
PROBES = load_probes()
HELD_OUT = Path(__file__).parents[1] / "guard" / "heldout.jsonl"


def perfect(text: str) -> Verdict:
    """Refuses what is unsafe and allows the rest."""
    unsafe = next(probe.unsafe for probe in PROBES if probe.text == text)
    return Verdict("refuse" if unsafe else "allow", decided_by="rule")


class Address:
    """Answers each text as it is told to; keeps what it was asked."""

    def __init__(self, decide: Callable[[str], Decision]) -> None:
        self.decide = decide
        self.asked: list[str] = []

    async def __call__(self, talk: Talk) -> None:
        text = talk.body["messages"][0]["content"]
        self.asked.append(text)
        decision = self.decide(text)
        whole = talk.whole()
        if decision != "allow":
            words = "Ticket: esc_0123" if decision == "escalate" else "No."
            message = {"content": words, "refusal": words}
            whole["choices"] = [{"index": 0, "message": message, "finish_reason": "content_filter"}]
        await talk.send(dumped(whole))


async def probed(way: Any, judge: Callable[[str], Verdict] = perfect) -> tuple[Probed, ...]:
    async with LyingServer() as server:
        server.ways["way"] = way
        return await run(server.target("way"), judge, limits=PATIENT)


def by_name(results: tuple[Probed, ...]) -> dict[str, Figure]:
    return {figure.id.removeprefix("safety."): figure for figure in figures(results, command="c")}


def test_the_texts() -> None:
    """Forty, half of them unsafe, half of each Japanese, all of them this probe's own."""
    assert len(PROBES) == len({probe.id for probe in PROBES}) == len({probe.text for probe in PROBES}) == 40
    for unsafe in (True, False):
        for language in ("ja", "en"):
            assert sum((probe.unsafe, probe.language) == (unsafe, language) for probe in PROBES) == 10
    assert {probe.category for probe in PROBES if not probe.unsafe} == {"none"}
    others = HELD_OUT.read_text(encoding="utf-8")
    assert not [probe.id for probe in PROBES if probe.text in others]


async def test_eight_are_sent_and_none_of_them_calls_a_person() -> None:
    """Two of each kind and language, only such as are refused or allowed here; all of them judged."""

    def judge(text: str) -> Verdict:
        verdict = perfect(text)
        return Verdict("escalate", decided_by="rule") if len(text) % 2 else verdict

    address = Address(lambda text: judge(text).decision)
    results = await probed(address, judge)
    assert len(results) == 40
    assert len(address.asked) == len(set(address.asked)) == 8
    assert "escalate" not in {judge(text).decision for text in address.asked}
    sent = [one for one in results if one.live is not None]
    assert sorted((one.probe.unsafe, one.probe.language) for one in sent) == sorted(
        [(unsafe, language) for unsafe in (True, False) for language in ("en", "ja")] * 2
    )


async def test_rules_are_sent_before_the_classifier_s() -> None:
    """What only the classifier refuses may be an escalation in another mode."""

    def judge(text: str) -> Verdict:
        late = text in {probe.text for probe in PROBES if probe.unsafe and probe.id[-2:] in ("09", "10")}
        decision: Decision = perfect(text).decision
        return Verdict(decision, decided_by="rule" if late else "classifier")

    address = Address(lambda text: perfect(text).decision)
    await probed(address, judge)
    sent = {probe.id for probe in PROBES if probe.text in address.asked and probe.unsafe}
    assert sent == {"u-ja-09", "u-ja-10", "u-en-09", "u-en-10"}


async def test_an_address_that_decides_alike_gives_all_forty() -> None:
    """Shares of twenty, with Wilson intervals, and a note on how many were sent."""
    made = by_name(await probed(Address(lambda text: perfect(text).decision)))
    assert [(name, figure.value, figure.n) for name, figure in made.items()] == [
        ("unsafe_allowed", 0.0, 20),
        ("benign_stopped", 0.0, 20),
        ("escalated", 0.0, 40),
    ]
    assert all(figure.interval is not None and figure.unit == "share" and figure.command for figure in made.values())
    assert "8 were sent" in made["escalated"].note


async def test_an_address_without_a_guard_is_found() -> None:
    """It lets through what its home refuses: only what was sent counts then, and all of it was let through."""
    made = by_name(await probed(Address(lambda text: "allow")))
    assert (made["unsafe_allowed"].value, made["unsafe_allowed"].n) == (1.0, 4)
    assert (made["benign_stopped"].value, made["benign_stopped"].n) == (0.0, 4)
    assert "4 of 8 otherwise" in made["unsafe_allowed"].note


async def test_an_address_that_stops_everything_is_found() -> None:
    """A ticket for the harmless counts as stopped, and as escalated."""
    made = by_name(await probed(Address(lambda text: "escalate")))
    assert (made["benign_stopped"].value, made["escalated"].value) == (1.0, 1.0)
    assert made["unsafe_allowed"].value == 0.0


async def test_what_the_judge_here_does_counts() -> None:
    """Allowed unsafe ones, stopped harmless ones and escalations, each where it belongs."""

    def judge(text: str) -> Verdict:
        probe = next(probe for probe in PROBES if probe.text == text)
        if probe.id in ("u-ja-05", "u-en-05"):
            return Verdict("allow", decided_by="rule")
        if probe.id in ("h-ja-05", "u-en-06"):
            return Verdict("escalate", decided_by="rule")
        return Verdict("refuse", decided_by="rule") if probe.id == "h-en-05" else perfect(text)

    made = by_name(await probed(Address(lambda text: judge(text).decision), judge))
    assert [made[name].value for name in ("unsafe_allowed", "benign_stopped", "escalated")] == [0.1, 0.1, 0.05]


@pytest.mark.parametrize("way", ["status_500", "status_401", "html_page", "cut_at_once"])
async def test_an_address_that_gives_no_decision_gives_no_figure(way: str) -> None:
    """Null, with the reason: the judgement here proves nothing about the address."""
    made = by_name(await probed(LIES[way].way))
    assert all(figure.value is None and LIES[way].fault in figure.why_null for figure in made.values())


async def test_a_judge_that_escalates_everything_sends_nothing() -> None:
    """No person is called, and the figures say why they are null."""
    address = Address(lambda text: "escalate")
    made = by_name(await probed(address, lambda text: Verdict("escalate")))
    assert address.asked == []
    assert all(figure.value is None and "calling a person" in figure.why_null for figure in made.values())


@pytest.mark.parametrize("mode", ["basic", "production", "off", "emergency"])
async def test_the_judge_here_is_the_gateway_s(mode: Mode, gateway: Callable[..., LiveGateway]) -> None:
    """In every mode, all forty are decided by a real gateway as they are judged here."""
    config = GuardConfig(mode=mode, test_mode=True, output=False)
    live = await asyncio.to_thread(gateway, FAKE, guard=config)
    judge = judge_in_force(config, live.home.guard)
    client = live.client()

    def decided(text: str) -> Decision:
        body = {"model": "fake", "messages": [{"role": "user", "content": text}]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code in (200, 429), answer.text
        if answer.status_code == 429:
            return "escalate"  # a key's twenty tickets are waiting
        words = answer.json()["choices"][0]["message"].get("refusal")
        return "allow" if not words else "escalate" if "esc_" in words else "refuse"

    for probe in PROBES:
        assert await asyncio.to_thread(decided, probe.text) == judge(probe.text).decision, probe.id


async def test_a_real_address_agrees_with_its_home(gateway: Callable[..., LiveGateway]) -> None:
    """Eight requests to a real gateway in `basic`: no ticket, no difference, and figures of all forty."""
    live = await asyncio.to_thread(gateway, FAKE, guard=GuardConfig(output=False))
    judge = judge_in_force(live.plan.settings.guard, live.home.guard)
    results = await run(Target("gateway", live.url, "fake", Key(live.key)), judge, limits=PATIENT)
    assert sum(one.live is not None for one in results) == 8
    assert not any(one.differs for one in results)
    made = by_name(results)
    assert (made["unsafe_allowed"].n, made["benign_stopped"].n) == (20, 20)
    listed = await asyncio.to_thread(live.client().get, "/v1/escalations")
    assert listed.json()["data"] == []


def test_an_emergency_is_in_force_whatever_the_settings_say(tmp_path: Path) -> None:
    """Nothing passes then; without one, `off` lets everything pass."""
    import msgspec

    calm = judge_in_force(GuardConfig(mode="off"), tmp_path)
    assert {calm(probe.text).decision for probe in PROBES} == {"allow"}
    emergency_file(tmp_path).write_bytes(msgspec.json.encode(Emergency(0.0, "test", "drill")))
    alarmed = judge_in_force(GuardConfig(), tmp_path)
    assert "allow" not in {alarmed(probe.text).decision for probe in PROBES}
    assert MODEL


def test_the_packaged_guard_lets_no_unsafe_one_through() -> None:
    """In `basic` and in `production`; how many harmless ones it stops is what the figure is for."""
    modes: tuple[Mode, ...] = ("basic", "production")
    for mode in modes:
        judge = judge_in_force(GuardConfig(mode=mode), NO_TEAM)
        assert [probe.id for probe in PROBES if probe.unsafe and judge(probe.text).decision == "allow"] == []
