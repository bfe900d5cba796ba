"""`sekisho policy tune`, `compare`, `ablate` and `set --preset auto`."""

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from sekisho.cli.failure import CommandFailed
from sekisho.cli.policy_tune import goal_of
from sekisho.cli.tuning_messages import TABLE
from sekisho.control.policy_book import PolicyBook
from sekisho.control.tuner_target import Goal
from sekisho.core.clock import SystemClock

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--prompt-tokens", "64", "--answer-tokens", "16")


def small_home(home: Path, **fields: object) -> None:
    """A home whose model has two short contexts."""
    home.mkdir(parents=True, exist_ok=True)
    model = {"name": "mini", "path": "builtin", "context": 512, "slots": 2, "threads": 1} | fields
    (home / "sekisho.yaml").write_text(json.dumps({"models": [model]}))


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("contexts>=3x", Goal("contexts", times=3)),
        ("first_token_ms<=500", Goal("first_token_ms", value=500)),
        (" memory_bytes <= 8GiB ", Goal("memory_bytes", value=8 * 2**30)),
        ("decode_tokens_per_s>=1.25X", Goal("decode_tokens_per_s", times=1.25)),
    ],
)
def test_goals_are_read(text: str, goal: Goal) -> None:
    """A multiple of what is now, or a value in the figure's unit; sizes with their own."""
    assert goal_of(text) == goal


@pytest.mark.parametrize(
    "text", ["contexts", "contexts<=3", "speed>=3", "contexts>=0", "contexts>=3ms", "kv_bytes<=8GX", "contexts>=1.2.3"]
)
def test_a_goal_that_is_none_is_refused(text: str) -> None:
    """With what it may be."""
    with pytest.raises(CommandFailed, match="--goal") as refused:
        goal_of(text)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("tune", "--improve", "speed"), 2, "decode_tokens_per_s, prefill_tokens_per_s"),
        (("tune", "--axes", "kv,nix"), 2, "kv, prompt, slots, threads, speculation"),
        (("tune", "--memory", "much"), 2, "--memory"),
        (("tune", "--measurements", "3"), 2, "at least 16"),
        (("tune", "--kv-budget", "1KiB"), 2, "does not hold one context"),
        (("tune", "--model", "nobody"), 3, "nobody: no such model"),
        (("tune", "--text", "/nowhere.txt"), 2, "/nowhere.txt"),
        (("tune", "--apply"), 3, "no agent runs"),
        (("compare", "current", "nix"), 2, "3b, 8b, 20b, chat, batch, quality, baseline, auto"),
        (("compare", "current", "baseline"), 2, "mean the same settings"),
        (("compare", "current", "kv.budget=0.3"), 2, "kv.budget: llama.cpp has one type"),
        (("compare", "current", "kv.mode=fast"), 2, "kv.mode"),
        (("compare", "current", "version:9"), 3, "no such version"),
        (("compare", "current", "version:x"), 2, "a version is a number"),
        (("compare", "current", "batch", "--order", "aabb"), 2, "abba or ab"),
        (("ablate", "kv.key_type=q8_0", "kv.key_type=q4_0"), 2, "both change kv.key_type"),
        (("ablate", "kv.budget=0.3"), 2, "kv.budget: llama.cpp has one type"),
        (("ablate", "kv8"), 2, "FIELD=VALUE"),
        (("set", "--preset", "auto", "--model", "nobody"), 2, "nobody: no such model"),
    ],
)
def test_what_cannot_be_is_told_before_anything_runs(
    sekisho: Run, home: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """With what would be right; no worker is started for it."""
    small_home(home)
    found, out, error = sekisho("policy", *arguments)
    assert (found, words in error) == (code, True), out + error
    assert not list((home / "tuning").glob("*.json"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"engine": "openai_http", "url": "http://127.0.0.1:1/v1", "path": None}, "only workers of llama_cpp, torch"),
        ({"embeddings": True}, "makes embeddings"),
    ],
)
def test_a_model_that_cannot_be_tried_says_why(sekisho: Run, home: Path, fields: dict[str, Any], words: str) -> None:
    small_home(home, **fields)
    code, _, error = sekisho("policy", "tune")
    assert (code, words in error) == (2, True), error


def test_memory_is_looked_at_first(sekisho: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is needed, what is free, and what to do."""
    small_home(home)
    monkeypatch.setattr("sekisho.ops.swap_room.free_bytes", lambda: 300 * 2**20)
    code, _, error = sekisho("policy", "compare", "current", "engine.slots=8")
    assert code == 1
    assert "535 MiB are needed, 300 MiB are free" in error
    assert "sekisho down first" in error


def test_two_policies_are_compared(sekisho: Run, home: Path) -> None:
    """On real workers: each figure of both, its ratio, and two files of which the page is whole; the policy that is in
    the home's book counts where no agent runs."""
    small_home(home)
    with PolicyBook(home / "control", SystemClock()) as book:
        book.change({"engine": {"slots": 1}}, by="t", why="t")
    command = ("policy", "compare", "version:0", "current", "--blocks", "1", "--order", "ab", *SMALL)
    code, out, error = sekisho(*command, "--json")
    assert code == 0, error
    found = json.loads(out)
    ratios = {each["figure"]: each["value"] for each in found["comparison"]["ratios"]}
    assert (ratios["contexts"], ratios["kv_bytes"]) == (0.5, 0.5)
    assert ratios["decode_tokens_per_s"] > 0
    data, page = map(Path, found["files"])
    assert json.loads(data.read_text())["comparison"] == found["comparison"]
    assert [stat.S_IMODE(each.stat().st_mode) for each in (data, page)] == [0o600, 0o600]
    drawing = page.read_text().partition("<svg")[2].partition("</svg>")[0]
    assert ElementTree.fromstring(f"<svg{drawing}</svg>") is not None


def test_why_nothing_was_measured_is_told_in_words_and_as_a_value(
    sekisho: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that no context holds: the page and the terminal say so in the user's language, the report by kind; an
    ablation without a whole round has failed, it was not interrupted."""
    small_home(home, context=256)
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    fault = "a context of 256 tokens has no room for prompts of 400"
    long = ("--prompt-tokens", "400")
    code, out, error = sekisho("policy", "tune", "--axes", "threads", *long)
    assert (code, f"計測できず: 基準を計測できませんでした: {fault}" in out) == (1, True), out + error
    (data,) = (home / "tuning").glob("*-tune.json")
    assert json.loads(data.read_text())["tuning"]["why"] == {"kind": "baseline_not_measured", "fault": fault}
    assert f"基準を計測できませんでした: {fault}" in data.with_suffix(".html").read_text()
    code, _, error = sekisho("policy", "ablate", "engine.threads=1", "--rounds", "1", *long)
    assert (code, "no whole round was measured" in error, fault in error) == (1, True, True), error


def test_parts_are_ablated_in_japanese(
    sekisho: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads, extent and the place of the files; a part may have a name."""
    small_home(home)
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    to = tmp_path / "mine.html"
    code, out, error = sekisho("policy", "ablate", "one:engine.slots=1", "--rounds", "1", "--out", str(to), *SMALL)
    assert code == 0, error
    for words in ("1 要素 2 通りを 1 巡", "同時数", "one", str(tmp_path / "mine.json")):
        assert words in out
    assert 'lang="ja"' in to.read_text()


def test_a_preset_is_chosen_by_size(sekisho: Run, home: Path) -> None:
    """The built-in model's is told before the agent is looked for; models that disagree must be named."""
    small_home(home)
    code, out, _ = sekisho("policy", "set", "--preset", "auto")
    assert (code, "mini has 2.85M parameters: preset 3b" in out) == (3, True), out
    models = [{"name": "a", "path": "builtin"}, {"name": "b", "path": str(home / "gone.gguf")}]
    (home / "sekisho.yaml").write_text(json.dumps({"models": models}))
    code, _, error = sekisho("policy", "set", "--preset", "auto")
    assert (code, "no such file" in error) == (2, True), error


def test_both_languages_take_the_same_values() -> None:
    from string import Formatter

    for key, pair in TABLE.items():
        names = [sorted(name for _, name, _, _ in Formatter().parse(text) if name) for text in pair]
        assert names[0] == names[1], key


@pytest.mark.slow
def test_a_small_tuning_runs_to_its_end(sekisho: Run, home: Path) -> None:
    """Real workers, for a minute at most: whatever is found, the budget holds, and every candidate has its figures
    or a reason."""
    small_home(home)
    limits = ("--max-delta-ppl", "100000", "--max-prefill-slowdown", "0", "--axes", "kv", "--goal", "contexts>=3x")
    code, out, error = sekisho("policy", "tune", *limits, "--measurements", "20", "--minutes", "1", *SMALL, "--json")
    found = json.loads(out)
    report = found["tuning"]
    assert code == (1 if report["outcome"] == "not measured" else 0), error
    assert 0 < report["measurements"] <= 20
    assert {each["name"] for each in report["tried"]} <= {"kv=q8_0", "kv=q8_0/q4_0", "kv=q4_0"}
    assert all(each["observations"] or each["dropped"] for each in report["tried"])
    assert found["applied"] is None
    assert "the text is strange to the model" in found["notes"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [("tune", "--axes", "speculation"), ("compare", "current", "engine.slots=9"), ("ablate", "engine.slots=9")],
)
def test_an_interrupted_command_keeps_what_it_has(home: Path, command: tuple[str, ...]) -> None:
    """Ctrl+C: 130, a report of what was measured where there is any, and no worker is left."""
    small_home(home, slots=8)
    program = [sys.executable, "-m", "sekisho", "policy", *command, "--home", str(home)]
    child = subprocess.Popen(
        [*program, "--answer-tokens", "300"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    workers: list[psutil.Process] = []
    while not workers and time.monotonic() < until:
        time.sleep(0.1)
        workers = [each for each in psutil.Process(child.pid).children() if "llama_worker" in " ".join(each.cmdline())]
    child.send_signal(signal.SIGINT)
    out, error = child.communicate(timeout=60)
    assert child.returncode == 130, out + error
    assert "stopping" in error
    assert workers
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in workers)
    if command[0] == "tune":
        assert "stopped after" in out
        assert list((home / "tuning").glob("*-tune.html"))
