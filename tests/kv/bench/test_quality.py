"""Predictions against full precision, and recall."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

from sekisho.kv.bench import needles, texts
from sekisho.kv.bench.contenders import Contender, Dial, contender
from sekisho.kv.bench.entries import Entry, entries, label
from sekisho.kv.bench.layers import recording_cache
from sekisho.kv.bench.models import load
from sekisho.kv.bench.needles import NeedlePlan, is_answer
from sekisho.kv.bench.quality import Observations, QualityPlan, QualityRow, compare, row
from sekisho.kv.bench.unavailable import Unavailable

pytestmark = pytest.mark.kv

PLAN = QualityPlan(context=320, tail=96, block=32, stretches=2)
EXACT = Contender("exact", lambda config, dtype, knobs: recording_cache(config.num_hidden_layers), {})


def random_texts(count: int, length: int) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 300, (1, length), generator=generator) for _ in range(count)]


def compared(model: Any, *those: Contender, plan: QualityPlan = PLAN) -> dict[str, QualityRow]:
    texts_ = random_texts(plan.stretches, plan.context + 1)
    rows = compare(model, texts_, [(Entry(each.name), each) for each in those], plan, lambda said: None)
    return {each.entry.name: each for each in rows}


def test_full_precision_against_itself_is_exact(model: Any) -> None:
    """A cache that loses nothing diverges by nothing, agrees everywhere and costs no perplexity, and the perplexity is
    that of the model's plain forward pass over the same tokens."""
    found = compared(model, EXACT)["exact"]
    assert found.mean_divergence.value == pytest.approx(0, abs=1e-6)
    assert found.p99_divergence.value == pytest.approx(0, abs=1e-6)
    assert found.agreement.value == 1
    assert found.delta_perplexity.value == pytest.approx(0, abs=1e-5)
    model.set_attn_implementation("sdpa")
    losses = []
    for text in random_texts(2, 321):
        with torch.no_grad():
            logits = model(text[:, :-1]).logits[0, -96:]
        losses.append(torch.nn.functional.cross_entropy(logits, text[0, -96:], reduction="none"))
    assert found.perplexity.value == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)
    assert found.perplexity.n == 192
    assert found.perplexity.blocks == 6


def test_fewer_bits_diverge_more(model: Any) -> None:
    """Four bits diverge more than eight and eight more than sixteen, by far: the measure sees the difference."""
    names = ("full", "uniform-8bit", "uniform-4bit", "kivi-2bit-g32")
    found = compared(model, *map(contender, names))
    order = [found[name].mean_divergence.value for name in names]
    assert order[:3] == sorted(order[:3])
    assert order[2] is not None
    assert order[2] > 10 * (order[0] or 0)
    shares = [found[name].share.value for name in names]
    assert shares[0] == 1
    assert [found[name].share.n for name in names] == [2] * 4


def test_block_by_block_is_token_by_token_for_a_lossless_cache(model: Any) -> None:
    """The block's length is a matter of speed: with nothing lost the figures are the same."""
    by_token = QualityPlan(context=96, tail=8, block=1, stretches=1)
    by_block = QualityPlan(context=96, tail=8, block=8, stretches=1)
    one, other = (compared(model, EXACT, plan=plan)["exact"].perplexity.value for plan in (by_token, by_block))
    assert one == pytest.approx(other, rel=1e-4)


def test_figures_follow_their_definitions() -> None:
    """By hand: two positions with known distributions give known divergence, agreement and relative perplexity."""
    expected = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64))
    found = torch.log(torch.tensor([[0.25, 0.75], [0.9, 0.1]], dtype=torch.float64))
    seen = Observations()
    seen.add(expected, found, torch.tensor([0, 0]))
    seen.shares, seen.bytes = [0.5], [10]
    figures = row(Entry("by hand"), contender("full"), seen)
    divergence = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert figures.mean_divergence.value == pytest.approx(divergence / 2)
    assert figures.agreement.value == 0.5
    assert figures.delta_perplexity.value == pytest.approx(2**0.5 - 1)
    assert figures.mean_divergence.n == 2


def test_who_cannot_take_part_is_a_row_with_a_reason(model: Any) -> None:
    """An impossible target and a backend that is not there leave numbers empty and say why; the others are measured."""

    def broken(config: Any, dtype: Any, knobs: Any) -> Any:
        raise ImportError("the backend is not installed")

    those = [
        (Entry("broken"), Contender("broken", broken, {})),
        (Entry("kivi-4bit-g32", 0.05), contender("kivi-4bit-g32")),
        (Entry("full"), contender("full")),
    ]
    rows = compare(model, random_texts(1, 321), those, PLAN, lambda said: None)
    assert [each.share.value for each in rows] == [None, None, 1.0]
    assert rows[0].perplexity.reason == "the backend is not installed"
    assert "at least" in str(rows[1].perplexity.reason)


@pytest.mark.parametrize(("name", "within"), [("kivi-2bit-g32", 0.06), ("snapkv", 0.014), ("h2o", 0.014)])
def test_a_target_is_met_at_the_end_of_the_tail(model: Any, name: str, within: float) -> None:
    """What a contender holds when all is read is the target, from below and to within a group of 32 tokens where it
    moves by groups, though it holds another share after the prompt."""
    plan = QualityPlan(context=448, tail=128, block=32, stretches=1)
    rows = compare(model, random_texts(1, 449), [(Entry(name, 0.7), contender(name))], plan, lambda said: None)
    assert rows[0].share.value is not None
    assert 0.7 - within <= rows[0].share.value <= 0.7


def test_targets_are_for_those_who_have_a_dial() -> None:
    """Everyone has a natural point; only a contender with a dial stands at targets too, and labels tell them apart."""
    dialled = Contender("dialled", EXACT.build, {}, Dial("knob", 0, lambda tokens: 1))
    names = [label(entry) for entry, _ in entries([EXACT, dialled], (0.3, 0.15))]
    assert names == ["exact", "dialled", "dialled at 30 %", "dialled at 15 %"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" 4711.", True),
        ("4711", True),
        ('The key is "4711"!', True),
        ("47110", False),
        ("14711", False),
        ("4711-A", False),
        ("47 11", False),
        ("", False),
    ],
)
def test_recall_is_counted_by_exact_answer(text: str, right: bool) -> None:
    """The answer stands by itself; a longer number that contains it is wrong."""
    assert is_answer(text, "4711") is right


def test_needles_lie_where_they_should(folder: Path) -> None:
    """With its question each prompt is as long as the context; its fact is at its depth; every run makes the same."""
    loaded = load(str(folder), folder)
    filler = " ".join(f"word{number % 300}" for number in range(1000))
    plan = NeedlePlan(context=200, depths=(0.0, 0.5, 1.0), each=2)
    found = needles.needles(loaded, filler, plan)
    assert len(found) == 6
    assert len({each.answer for each in found}) == 6
    for each in found:
        assert each.text.shape[1] + each.question.shape[1] == 200
    unknown = [(each.text[0] == 0).nonzero().float().mean() / each.text.shape[1] for each in found]
    assert [float(each) for each in unknown[::2]] == pytest.approx([0, 0.5, 1], abs=0.1)
    assert [each.answer for each in needles.needles(loaded, filler, plan)] == [each.answer for each in found]
    with pytest.raises(Unavailable, match="needs a text"):
        needles.needles(loaded, "word1 word2", plan)


@pytest.mark.parametrize("asked", ["inside", "later"])
def test_a_lossless_cache_recalls_what_full_precision_recalls(folder: Path, asked: needles.Asked) -> None:
    """On the same prompts the exact cache has the very count of full precision, which is no foregone one: the answer is
    what the model itself says, for half of the needles."""
    loaded = load(str(folder), folder)
    filler = " ".join(f"word{number % 300}" for number in range(400))
    found = needles.needles(loaded, filler, NeedlePlan(context=120, depths=(0.5,), each=4))
    said = []

    for each in found[:2]:
        cache = recording_cache(3)
        loaded.model.set_attn_implementation("sekisho_bench")
        with torch.no_grad():
            logits = loaded.model(torch.cat((each.text, each.question), 1), cache=cache).logits[:, -1]
        said.append(loaded.tokenizer.decode([int(logits.argmax())]))
    known = [
        needles.Needle(each.text, each.question, answer, 1) for each, answer in zip(found[:2], said, strict=True)
    ] + found[2:]
    rows = needles.recall(loaded, known, [(Entry("exact"), EXACT)], asked, lambda said: None)
    assert rows[0].recall == rows[0].full
    assert rows[0].full.value == 0.5
    assert rows[0].recall.n == 4


def test_stretches_are_spread_over_the_text() -> None:
    """As many as fit and no more than asked for, from the first token to the last, never beyond."""
    ids = list(range(100))
    found = texts.windows(lambda text: ids, "", 29, 3)
    assert [int(each[0, 0]) for each in found] == [0, 35, 70]
    assert all(each.shape == (1, 30) for each in found)
    assert len(texts.windows(lambda text: ids, "", 60, 3)) == 1
    with pytest.raises(Unavailable, match="100 tokens"):
        texts.windows(lambda text: ids, "", 100, 1)
