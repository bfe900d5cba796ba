"""`sekisho doctor` as a person types it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import Programs

from sekisho.cli.running import run
from sekisho.ops.home import Home

Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The exit code and the output of `sekisho doctor …` on a home of its own."""
    for name in ("DATABASE_URL", "SEKISHO_LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    monkeypatch.setenv("SEKISHO_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "pynvml", None)

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run(("doctor", *arguments))
        return code, capsys.readouterr().out

    return call


@pytest.fixture
def home(tmp_path: Path, unused_tcp_port: int) -> Home:
    """One whose only model is a link to nothing."""
    made = Home(tmp_path / "home").create()
    (made.models / "gone.gguf").symlink_to("/nowhere")
    model = f"{{name: m, path: {made.models / 'gone.gguf'}}}"
    made.settings_file.write_text(f"gateway: {{port: {unused_tcp_port}}}\nmodels: [{model}]\n")
    return made


def test_in_the_readers_language(doctor: Doctor, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What, why and fix are English or Japanese; JSON has both."""
    code, english = doctor()
    assert code == 1
    assert "a link to /nowhere, which is not there" in english
    assert "fix: put the file there, or mend the link" in english
    monkeypatch.setenv("SEKISHO_LANG", "ja")
    _, japanese = doctor()
    assert "リンク先 /nowhere がありません" in japanese
    assert "which is not there" not in japanese
    found = json.loads(doctor("--json")[1])["findings"]
    (link,) = [finding for finding in found if finding["case"] == "model_file.bad"]
    assert (link["why"], link["why_ja"]) == ("a link to /nowhere, which is not there", "リンク先 /nowhere がありません")


def test_settings_that_cannot_be_read_stop_nothing(doctor: Doctor, home: Home) -> None:
    """They are a finding; the rest is examined with the defaults."""
    home.settings_file.write_text("gatewy: 1\n")
    code, output = doctor("--json")
    found = json.loads(output)["findings"]
    assert code == 1
    assert "settings.wrong" in [finding["case"] for finding in found]
    assert "python.good" in [finding["case"] for finding in found]


def test_the_cards_alone(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line a card with memory, share, use and processes; without cards a sentence; nothing is made in the home."""
    programs = Programs(tmp_path / "bin", monkeypatch)
    assert "No graphics card seen" in doctor("--gpus")[1]
    programs.put(
        "nvidia-smi",
        'case "$1" in --query-gpu=*) echo "0, GPU-0, 46068, 31217, 64, NVIDIA A40"; '
        'echo "1, GPU-1, [N/A], [N/A], [N/A], NVIDIA GB10" ;; '
        '*) echo "GPU-0, 40170, 30950, /usr/bin/python3" ;; esac',
    )
    code, table = doctor("--gpus")
    assert code == 0
    head, first, second = table.splitlines()
    assert head.split()[:2] == ["card", "name"]
    assert [cell.strip() for cell in first.split("  ") if cell.strip()][:6] == [
        "0",
        "NVIDIA A40",
        "30.5 GiB",
        "45.0 GiB",
        "68%",
        "64%",
    ]
    assert "/usr/bin/python3 (40170, 30.2 GiB)" in first
    assert second.count("—") == 5
    told = json.loads(doctor("--gpus", "--json")[1])
    assert (told["source"], told["gpus"][0]["used_bytes"]) == ("nvidia-smi", 31217 << 20)
    assert not (tmp_path / "home").exists()
