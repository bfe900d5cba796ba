"""kill -9 in every step of an evaluation."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_harness import STEPS, but_for_times, concluded

from sekisho.evaluate.client.target import Target
from sekisho.ops.home import Home

CHILD = Path(__file__).with_name("evaluation_child.py")
INNER = {"bench": ("cell:1", "cell:3"), "continuity-chat": ("talk:3",), "sessions-chat": ("task:2",)}
DEATHS = tuple(death for step in STEPS for death in (*INNER.get(step, ()), step))


def child(home: Home, run: str, engine: Target, gateway: Target, death: str) -> int:
    assert engine.key is not None
    assert gateway.key is not None
    environment = os.environ | {"ENGINE_KEY": engine.key.reveal(), "GATEWAY_KEY": gateway.key.reveal()}
    command = [sys.executable, str(CHILD), str(home.path), run, engine.url, gateway.url, engine.model, death]
    return subprocess.run(command, env=environment, check=False, timeout=300).returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_was_killed_in_each_step_comes_to_the_same_report(
    mini: Target, llama: Target, tmp_path: Path
) -> None:
    """A run that is killed once in every step, and in the middle of cells, conversations and sessions, ends with the
    figures, the scorecard and the charts' requests of one that nobody disturbed, but for times."""
    home = Home(tmp_path / "killed").create()
    assert child(home, "whole", llama, mini, "never") == 0
    for death in DEATHS:
        assert child(home, "killed", llama, mini, death) == -signal.SIGKILL, death
    assert child(home, "killed", llama, mini, "never") == 0
    whole, killed = (concluded(home, home.runs / run) for run in ("whole", "killed"))
    told = [{but_for_times(each, done.run) for each in done.figures.all} for done in (whole, killed)]
    assert {each[0] for each in told[0]} == {each[0] for each in told[1]}
    assert told[0] == told[1]
    for first, second in zip(whole.scorecard.results, killed.scorecard.results, strict=True):
        assert (first.criterion.id, first.outcome) == (second.criterion.id, second.outcome)
    assert whole.scorecard.verdict == killed.scorecard.verdict
    lines = [(home.runs / run / "bench.csv").read_text().count("\n") for run in ("whole", "killed")]
    assert lines[0] == lines[1]
