"""A whole evaluation of the built-in model, small, through real gateway and engine."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from evaluation_harness import STEPS, concluded, measure, site, small_plan

from sekisho.audit.export import signing_key
from sekisho.audit.keys import WriterKeys
from sekisho.core.errors import InvalidRequest
from sekisho.evaluate import evaluation
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.conclusion import attest
from sekisho.evaluate.report import signing
from sekisho.ops.home import Home
from sekisho.store import Store

pytestmark = pytest.mark.usefixtures("uncollected")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "bench-home").create()


async def steps_of(home: Home, run: str) -> dict[str, int]:
    """Finished steps with their attempts."""
    store = await Store.open(home.database)
    try:
        return {step.key: step.attempts for step in await store.run_steps(run) if step.state == "done"}
    finally:
        await store.close()


def test_a_whole_evaluation(mini: Target, llama: Target, home: Home) -> None:
    """Every step leaves its figures; what was not measured is open and never passes; the report is signed, tells the
    verdict in both languages, and a second run asks nothing again. Neither the gateway's nor the engine's key stands in
    the folder or in the database."""
    plan = small_plan(llama, mini)
    asyncio.run(measure(home, "run-1", plan, site(llama, mini, home)))
    attempts = asyncio.run(steps_of(home, "run-1"))
    assert set(STEPS) <= set(attempts)
    asyncio.run(measure(home, "run-1", plan, site(llama, mini, home)))
    assert asyncio.run(steps_of(home, "run-1")) == attempts

    WriterKeys.load_or_create(home.secrets)
    key = signing_key(home.secrets)
    folder = home.runs / "run-1"
    done = concluded(home, folder, key)
    figures = {figure.id: figure for figure in done.figures.all}
    assert figures["gate.gateway.chat_oneshot"].value is True
    assert figures["gate.gateway.no_key"].value is True
    assert figures["bench.engine.closed.p2.t24.success_rate"].value == 1.0
    assert figures["bench.engine.closed.p2.t24.ttft_p95_s"].interval is None
    assert "80" in figures["bench.engine.closed.p2.t24.ttft_p95_s"].interval_missing
    assert figures["continuity.chat.rate"].n == 4
    assert figures["cold.ttfb_s"].value is None
    assert figures["cold.ttfb_s"].why_null == "not in this test"
    assert figures["codex.tasks"].value is None
    assert figures["rubric.adoptable_rate"].value is None
    assert figures["sessions.responses.tasks"].value == 2
    assert done.scorecard.verdict.decision == "undecided"
    outcomes = {result.criterion.id: result.outcome for result in done.scorecard.results}
    assert outcomes["quality"] == outcomes["cold_first_byte"] == outcomes["chat_continuity"] == "open"
    assert outcomes["chat_gates"] == "pass"
    _no_key_is_in_any_file(home, mini, llama)
    html = done.report.read_text("utf-8")
    assert "Undecided" in html
    assert "判定保留" in html
    assert signing.check_manifest(folder, signing.public_key(key)).ok
    (folder / "bench.csv").write_text("better")
    assert signing.check_manifest(folder).changed == ("bench.csv",)


def test_what_a_person_counted_is_shown_as_such(mini: Target, llama: Target, home: Home) -> None:
    """An attested figure decides its criterion and names the person; a measured one cannot be attested."""
    plan = msgspec.structs.replace(
        small_plan(llama, mini), sessions=0, codex=False, safety=False, rubric=False, continuity=(), cold_starts=0
    )
    asyncio.run(measure(home, "run-1", plan, site(llama, mini, home)))
    folder = home.runs / "run-1"
    attest(folder, "ui.fatal_errors", 2, by="hanako", n=30, note="the chat page", now=0.0)
    attest(folder, "ui.fatal_errors", 0, by="hanako", n=30, note="repeated", now=1.0)
    done = concluded(home, folder)
    figure = done.figures.get("ui.fatal_errors")
    assert figure is not None
    assert (figure.value, figure.n, figure.attested_by) == (0, 30, "hanako")
    outcomes = {result.criterion.id: result.outcome for result in done.scorecard.results}
    assert outcomes["chat_ui_errors"] == "pass"
    assert len((folder / "attested.jsonl").read_text().splitlines()) == 2
    with pytest.raises(InvalidRequest, match="not a figure that a person counts"):
        attest(folder, "continuity.chat.rate", 1, by="hanako", n=30, note="", now=0.0)
    with pytest.raises(InvalidRequest, match="Who counted"):
        attest(folder, "codex.cuts", 0, by=" ", n=20, note="", now=0.0)


def _no_key_is_in_any_file(home: Home, *targets: Target) -> None:
    for target in targets:
        assert target.key is not None
    secrets = [target.key.reveal().encode() for target in targets if target.key is not None]
    for folder, _, names in os.walk(home.path):
        for name in names:
            body = Path(folder, name).read_bytes()
            assert not any(secret in body for secret in secrets), name


def test_the_steps_with_evidence_are_those_that_run(mini: Target, llama: Target, home: Home) -> None:
    """`step_keys` names no step that is not there, and misses none but those without figures of their own."""
    plan = small_plan(llama, mini)
    assert set(evaluation.step_keys(plan)) == set(STEPS) - {"environment", "rubric"}
