"""`sekisho kv bench`."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
HAS_TORCH = importlib.util.find_spec("torch") is not None
TEXT = Path(__file__).parents[2] / "docs" / "limits.md"
MEASURED = ("kv", "bench", "--context", "640", "--caches", "full,tiered,uniform-4bit", "--targets", "0.4")


@pytest.mark.skipif(HAS_TORCH, reason="PyTorch is installed here")
def test_without_pytorch_it_says_what_to_install(sekisho: Run) -> None:
    """Nothing but the name of what is missing and the line that installs it."""
    code, _, error = sekisho("kv", "bench")
    assert code == 1
    assert "torch" in error
    assert "pip install 'sekisho[kv]'" in error


@pytest.mark.kv
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--targets", "25"), "between 0 and 1"),
        (("--parts", "speeds"), "quality, needles, memory, speed"),
        (("--caches", "kivi"), "kivi-4bit-g64"),
    ],
)
def test_what_cannot_be_is_told(sekisho: Run, arguments: tuple[str, ...], words: str) -> None:
    """A wrong share, part or cache ends with 2, and says what would be right."""
    code, _, error = sekisho("kv", "bench", *arguments)
    assert code == 2
    assert words in error


@pytest.mark.kv
@pytest.mark.parametrize("body", ['{"mode": "fast"}', '{"budgte": 1}', '{"budget": 7}', "[]", "{"])
def test_a_file_that_is_no_policy_is_told(sekisho: Run, tmp_path: Path, body: str) -> None:
    """The line has the file's name."""
    (tmp_path / "mine.json").write_text(body)
    code, _, error = sekisho("kv", "bench", "--policy", str(tmp_path / "mine.json"))
    assert code == 2
    assert "mine.json" in error


@pytest.mark.kv
def test_caches_are_compared(sekisho: Run, tmp_path: Path) -> None:
    """The built-in model's quality under three caches: full precision loses nothing, the others hold fewer bytes; the
    file says what the screen says, and a page is written."""
    code, out, error = sekisho(*MEASURED, "--parts", "quality", "--out", str(tmp_path), "--text", str(TEXT), "--json")
    assert code == 0, error
    found = json.loads(out)
    assert found == json.loads((tmp_path / "kv.json").read_text())
    rows = {(row["entry"]["name"], row["entry"]["target"]): row for row in found["quality"]}
    assert rows["full", None]["mean_divergence"]["value"] < 1e-4
    assert rows["tiered", 0.4]["share"]["value"] <= 0.41
    assert rows["uniform-4bit", None]["share"]["value"] < 0.3
    page = (tmp_path / "kv.html").read_text()
    assert "<svg" in page
    assert "tiered at 40 %" in page
