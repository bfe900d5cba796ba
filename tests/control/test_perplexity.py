"""Measurements as values: what they say, how two differ, what is kept of them, and on which text."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.control.perplexity import base, baselines, compare, llama_probabilities, output_matrix, texts
from sekisho.control.perplexity.base import BLOCK, Measurement, Scores, Stretch, Unmeasured
from sekisho.engines import builtin, stretches
from sekisho.engines.config import ModelConfig

NATS = st.floats(0, 30)


def measured(nll: list[float], **fields: object) -> Measurement:
    scores = Scores([Stretch([0] * (len(nll) + 1), nll)], {}, "engine 1")
    made = base.measurement(scores, model="m", text_id="t@768", route="r", took_s=1.0, at=2.0, model_hash="h")
    return msgspec.structs.replace(made, **fields)


@given(st.lists(NATS, min_size=1, max_size=300))
def test_perplexity_is_exp_of_the_mean(nll: list[float]) -> None:
    """Over all predictions, whatever the blocks; the blocks hold the same sum."""
    found = measured(nll)
    assert found.perplexity == pytest.approx(math.exp(sum(nll) / len(nll)))
    assert (found.tokens, len(found.blocks)) == (len(nll), math.ceil(len(nll) / BLOCK))
    assert sum(found.blocks) == pytest.approx(sum(nll))


@pytest.mark.parametrize("nll", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_number_is_no_measurement(nll: list[float]) -> None:
    """Nothing, NaN and infinity are refused, not averaged."""
    with pytest.raises(Unmeasured):
        measured(nll)


@settings(max_examples=25)
@given(st.lists(NATS, min_size=256, max_size=400), st.floats(-0.5, 0.5))
def test_a_loss_that_is_the_same_everywhere_is_told_exactly(nll: list[float], shift: float) -> None:
    """The interval of a constant difference has no width, and the relative difference is exp(shift) - 1."""
    found = base.delta(measured([each + shift for each in nll]), measured(nll))
    assert found.relative == pytest.approx(math.expm1(shift), abs=1e-9)
    assert found.low is not None
    assert found.low == pytest.approx(found.value, abs=1e-5 * math.exp(30))
    assert found.low <= found.high + 1e-9


def test_a_difference_by_chance_has_zero_in_its_interval() -> None:
    """Noise of mean zero on 3,000 tokens: in at least 88 of 100 trials the interval holds zero; a real loss of 0.05
    nats beside the same noise never does."""
    chance = np.random.default_rng(5)
    nll = chance.uniform(0, 8, 3000)
    holds = hidden = 0
    for _ in range(100):
        noise = chance.normal(0, 0.1, 3000)
        found = base.delta(measured(list(nll + noise)), measured(list(nll)))
        holds += found.low <= 0 <= found.high
        lossy = base.delta(measured(list(nll + noise + 0.05)), measured(list(nll)))
        hidden += lossy.low <= 0
    assert holds >= 88
    assert hidden == 0


def test_few_tokens_have_a_difference_but_no_interval() -> None:
    """The interval is None, and why is said."""
    found = base.delta(measured([1.0] * 100), measured([0.9] * 100))
    assert (found.low, found.high) == (None, None)
    assert found.reason == "100 tokens are too few for an interval"
    assert found.value > 0


@pytest.mark.parametrize("field", ["text_id", "route", "model_hash"])
def test_only_like_is_compared_with_like(field: str) -> None:
    """Another text, route or model file is named and refused."""
    with pytest.raises(Unmeasured, match=field):
        base.delta(measured([1.0] * 9), measured([1.0] * 9, **{field: "other"}))


# --- texts -----------------------------------------------------------------------------------------------------------


def test_the_built_in_text_is_english_and_japanese() -> None:
    """Some thousand characters of each; its id changes with its content."""
    text = texts.built_in()
    assert sum("a" <= each <= "z" for each in text.body) > 3000
    assert sum("\u3040" <= each <= "\u9fff" for each in text.body) > 1500
    assert text.id.startswith("work:")
    assert texts.part_id(text, "light", 3) == f"{text.id}@768#3"
    assert texts.part_id(text, "full", None) == f"{text.id}@1024"


def test_an_own_text_is_read_or_told_why_not(tmp_path: Path) -> None:
    """A readable file gives a text; a missing, empty, huge or undecodable one a reason with its path."""
    path = tmp_path / "ours.txt"
    path.write_text("朝の会議 " * 100, encoding="utf-8")
    first = texts.own(path)
    path.write_text("朝の会議 " * 101, encoding="utf-8")
    assert first.id.startswith("ours.txt:")
    assert texts.own(path).id != first.id
    for content, why in ((b" \n", "empty"), (b"\xff\xfe\xfa", "not UTF-8"), (b"a" * 100_000, "larger")):
        path.write_bytes(content)
        with pytest.raises(Unmeasured, match=why):
            texts.own(path)
    with pytest.raises(Unmeasured, match="no such file"):
        texts.own(tmp_path / "none.txt")


@given(st.lists(st.integers(0, 9), min_size=2, max_size=400), st.sampled_from([[], [1]]), st.integers(4, 90))
def test_stretches_hold_the_text_once_and_in_order(tokens: list[int], opening: list[int], length: int) -> None:
    """No stretch is longer than asked, each begins with the opening, no token comes twice, and what is dropped at the
    end is less than half a stretch."""
    parts = stretches.cut(tokens, opening, length)
    body = [token for part in parts for token in part[len(opening) :]]
    assert all(part[: len(opening)] == opening and len(part) <= length for part in parts)
    assert tokens[: len(body)] == body
    assert 2 * (len(tokens) - len(body)) < length
    assert [stretches.cut(tokens, opening, length, only=each) for each in range(len(parts) + 1)] == [
        [part] for part in (*parts, parts[0])
    ]


def test_a_text_without_a_prediction_is_refused() -> None:
    """Nothing, one token alone, a stretch without room."""
    for tokens, length in (([], 8), ([1], 8), ([1, 2, 3], 1)):
        with pytest.raises(ValueError, match="predict"):
            stretches.cut(tokens, [], length)


@given(st.integers(1, 40), st.integers(2, 900))
def test_positions_of_a_cross_check_can_be_predicted(count: int, length: int) -> None:
    """Rising, from 1 to the last token, never more than asked."""
    found = llama_probabilities.spread(count, length)
    assert found == sorted(set(found))
    assert 1 <= len(found) <= count
    assert found[0] >= 1
    assert found[-1] == length - 1


# --- comparing and keeping -------------------------------------------------------------------------------------------


def test_routes_agree_within_the_tolerance_only() -> None:
    """On positions that both have; a difference beyond the tolerance is told with both figures."""
    first = {1: 2.0, 2: 4.0, 3: 9.0}
    assert compare.agree(first, {1: 2.0, 2: 4.0}).agrees
    assert compare.agree(first, {1: 2.0, 2: 4.02}, tolerance=0.005).agrees
    found = compare.agree(first, {1: 2.0, 2: 4.2}, tolerance=0.005)
    assert not found.agrees
    assert "disagree: 3.0000 and 3.1000 nats on 2 positions" in found.why
    with pytest.raises(Unmeasured):
        compare.agree(first, {7: 1.0})


def test_baselines_outlive_the_process_and_ask_anew_for_anything_else(tmp_path: Path) -> None:
    """Found again for the same weights, text, route and engine version; for no other; a broken file counts as empty."""
    kept = baselines.Baselines(tmp_path / "b.json")
    kept.put(measured([1.0] * 300, kv={"key_type": "f16"}))
    again = baselines.Baselines(tmp_path / "b.json")
    like = measured([1.2] * 300, kv={"key_type": "q4_0"})
    assert again.get(like) == measured([1.0] * 300, kv={"key_type": "f16"})
    for field in ("model_hash", "text_id", "route", "software"):
        assert again.get(msgspec.structs.replace(like, **{field: "other"})) is None
    (tmp_path / "b.json").write_bytes(b"\xff[")
    assert baselines.Baselines(tmp_path / "b.json").get(like) is None


def test_a_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    """The same file gives the same one; one changed byte at the head, the end or between samples of a small file gives
    another; a model elsewhere goes by its address and name."""
    path = tmp_path / "m.gguf"
    content = bytearray(range(256)) * 600
    path.write_bytes(content)
    first = baselines.fingerprint(ModelConfig("m", path=str(path)))
    assert baselines.fingerprint(ModelConfig("other", path=str(path))) == first
    for at in (0, len(content) // 2, len(content) - 1):
        changed = content.copy()
        changed[at] ^= 1
        path.write_bytes(changed)
        assert baselines.fingerprint(ModelConfig("m", path=str(path))) != first
    there = ModelConfig("m", engine="openai_http", url="http://127.0.0.1:1/v1")
    assert baselines.fingerprint(there) != baselines.fingerprint(msgspec.structs.replace(there, upstream_model="x"))
    with pytest.raises(Unmeasured, match="no such file"):
        baselines.fingerprint(ModelConfig("m", path=str(tmp_path / "none")))


def test_the_output_matrix_gives_the_likelihoods_of_a_plain_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the vocabulary at a time, with a bias and a soft cap: the same as all at once in 64 bits."""
    matrix = output_matrix.OutputMatrix(builtin.path())
    chance = np.random.default_rng(3)
    states = chance.normal(0, 2, (50, matrix.width)).astype(np.float32)
    targets = chance.integers(0, matrix.vocabulary, 50)
    whole = np.concatenate([rows for _, rows in matrix._parts()]).astype(np.float64)
    monkeypatch.setattr(output_matrix, "_ROWS_BYTES", 4 * matrix.width * 100)
    bias = chance.normal(0, 1, matrix.vocabulary).astype(np.float32)
    for given_bias, cap in ((None, None), (bias, None), (bias, 30.0)):
        matrix._bias, matrix.cap = given_bias, cap
        logits = states @ whole.T + (0 if given_bias is None else given_bias)
        logits = np.tanh(logits / cap) * cap if cap else logits
        expected = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        expected = expected - logits[np.arange(50), targets]
        assert matrix.nll(states, targets) == pytest.approx(expected, abs=1e-4)


def test_hidden_states_of_another_width_are_refused() -> None:
    """A model whose states do not fit its output matrix has something between them."""
    matrix = output_matrix.OutputMatrix(builtin.path())
    with pytest.raises(Unmeasured, match="hidden states"):
        matrix.nll(np.zeros((1, 7), np.float32), np.zeros(1, np.int64))
