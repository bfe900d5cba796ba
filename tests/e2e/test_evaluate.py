"""`sekisho evaluate`, `bench` and `compare` as a person uses them: a server of one's own, and no key."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e_harness import Launch, Sekisho, eventually

MINI = "  - {name: sekisho-mini, path: builtin}\n"


@pytest.fixture
def served(launch: Launch) -> Sekisho:
    sekisho = launch(MINI)
    sekisho.up()
    return sekisho


def begun(sekisho: Sekisho, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "SEKISHO_HOME": str(sekisho.home.path), "LANG": "C.UTF-8"}
    return subprocess.Popen(
        (sys.executable, "-m", "sekisho", *arguments),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def temporary(sekisho: Sekisho) -> list[dict[str, Any]]:
    """Keys that measurements made and that are still good for something."""
    keys = json.loads(sekisho.run("key", "list", "--json").stdout)
    return [key for key in keys if key["name"].startswith("evaluate-")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_nothing_to_a_signed_report(served: Sekisho) -> None:
    """The quick evaluation, killed by signal 9 while it measures and taken up again, ends in an undecided scorecard
    and a report that verifies; the engine really was restarted; an edited report does not verify; what was attested
    and approved is in the next one; no key of it is left."""
    process = begun(served, "evaluate", "--quick")
    assert eventually(lambda: list(served.home.runs.glob("*/steps/cold.json")), 120)
    process.kill()
    process.wait()
    assert len(temporary(served)) == 1
    done = served.run("evaluate", "--resume", "last", "--json", timeout_s=600)
    assert done.returncode == 0, (done.stdout, done.stderr)
    told = json.loads(done.stdout)
    assert told["decision"] == "undecided"
    assert told["signed"] is True
    assert not temporary(served)
    measured = json.loads(Path(told["report"]).with_name("figures.json").read_text())["all"]
    figures = {each["id"]: each for each in measured}
    assert figures["cold.ttfb_s"]["value"] > 0
    assert figures["bench.engine.closed.p3.t256.success_rate"]["n"] == 80
    assert figures["bench.engine.closed.p3.t256.ttft_p95_s"]["interval"] is not None
    assert figures["bench.engine.crashes"]["value"] == 0
    assert figures["security.unauthenticated_successes"]["value"] == 0
    assert figures["security.plaintext_keys_in_logs"]["value"] == 0

    assert served.json("evaluate", "verify", "last")["ok"] is True
    report = Path(told["report"])
    changed = report.with_name("better.html")
    changed.write_bytes(report.read_bytes().replace(b"Undecided", b"Adopt now"))
    assert served.json("evaluate", "verify", str(changed), code=1)["error"]["ok"] is False
    changed.unlink()

    folder = report.parent
    for name in ("steps/bench.json", "records.json", "plan.json"):
        path = folder / name
        sound = path.read_bytes()
        path.write_bytes(sound.replace(b"7", b"8"))
        served.json("evaluate", "report", "last", code=2)  # nobody signs what was not measured
        path.unlink()
        if name == "steps/bench.json":
            served.json("evaluate", "report", "last", code=2)
        path.write_bytes(sound)
    served.json("evaluate", "attest", "last", "ui.fatal_errors", "0", "--n", "30", "--by", "hanako")
    approved = ("scorecard", "approve", "--measured-by", "taro", "--by", "hanako", "--why", "day 1")
    served.json(*approved)
    again = served.json("evaluate", "report", "last", "--since", "7d")
    outcomes = {each["criterion"]["id"]: each["outcome"] for each in again["scorecard"]["results"]}
    assert outcomes["chat_ui_errors"] == "pass"
    assert again["scorecard"]["approval"]["status"] == "approved"
    assert [row["run"] for row in served.json("evaluate", "list")["runs"]] == [again["run"]]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_second_runner_is_turned_away_and_ctrl_c_takes_the_key_along(served: Sekisho) -> None:
    """Two processes do not work on one run; Ctrl+C ends within seconds, says how to go on, and revokes its key."""
    process = begun(served, "evaluate", "--quick", "--no-cold")
    assert eventually(lambda: list(served.home.runs.glob("*/environment.json")), 60)
    second = served.run("evaluate", "--resume", "last")
    assert second.returncode == 1
    assert f"process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not temporary(served)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_benchmark_and_a_comparison(served: Sekisho) -> None:
    """`bench` leaves table, JSON, summary and page; a model compared with itself is never rejected."""
    folder = served.home.path / "out"
    line = ("--parallel", "2", "--sizes", "16x8", "--closed-only", "--warmups", "1", "--out", str(folder))
    told = served.json("bench", *line)
    assert told["requests"] == 16
    assert told["failed"] == 0
    assert {path.name for path in folder.iterdir()} == {"bench.csv", "bench.json", "summary.txt", "bench.html"}
    assert (folder / "bench.csv").read_text().startswith("parallel,tokens,req_id,http,total,ttfb,completion_tokens")
    arms = ("sekisho-mini", f"{served.url}#sekisho-mini")
    key = served.home.path / "key"
    key.write_text(served.key)
    compared = served.run("evaluate", "compare", *arms, "--blocks", "6", "--key", f"file:{key}", "--json")
    verdict = json.loads(compared.stdout)
    assert verdict["verdict"] == "limited"
    assert verdict["interleaved"] is True
    assert compared.returncode == 1
    assert served.run("bench", "--key", served.key).returncode == 2
    assert served.key not in served.run("bench", "--key", served.key).stderr
