"""From logits to tokens, each request for itself."""

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
from hypothesis import given, settings

from sekisho.engines.torch_worker.sampling import Sampler, SamplingSettings, alternatives

pytestmark = pytest.mark.kv

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40).map(torch.tensor)


@settings(deadline=None)
@given(LOGITS, st.integers(0, 40), st.floats(0.01, 1), st.floats(0, 1), st.floats(0.1, 3), st.integers(0, 2**31))
def test_only_what_the_filters_leave_is_said(
    logits: "torch.Tensor", top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    """By the definitions, token for token: the `top_k` best; of them the fewest with `top_p` of the probability; of
    them those with `min_p` of the best one's. The best token is always among them."""
    sampling = SamplingSettings(temperature, top_p, top_k, min_p, seed)
    sampler = Sampler(sampling, [])
    probabilities = torch.softmax(((logits - logits.max()) / temperature).double(), 0)
    order = probabilities.argsort(descending=True, stable=True)
    best = order[:top_k] if top_k else order
    shares = probabilities[best] / probabilities[best].sum()
    needed = int((shares.cumsum(0) < top_p - 1e-9).sum()) + 1
    least = max(float(probabilities[best[min(needed, len(best)) - 1]]), min_p * float(probabilities.max()))
    allowed = {each for each in range(len(logits)) if float(probabilities[each]) >= least * (1 - 1e-6)}
    said = {sampler.choose(logits) for _ in range(20)}
    assert said <= allowed
    assert int(logits.argmax()) in allowed


def test_draws_have_the_models_probabilities() -> None:
    """Of 20,000 draws, each token's share is its probability, within four standard deviations."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])
    sampler = Sampler(SamplingSettings(temperature=0.8, seed=1), [])
    expected = torch.softmax(logits.double() / 0.8, 0)
    drawn = torch.bincount(torch.tensor([sampler.choose(logits) for _ in range(20_000)]), minlength=5) / 20_000
    assert bool(((drawn - expected).abs() < 4 * (expected * (1 - expected) / 20_000).sqrt()).all())


@settings(deadline=None)
@given(LOGITS, st.integers(0, 2**63))
def test_a_seed_is_a_text(logits: "torch.Tensor", seed: int) -> None:
    """The same seed draws the same tokens, and noise of rounding in the logits does not change them."""
    one, two = (Sampler(SamplingSettings(seed=seed), []) for _ in range(2))
    noisy = logits + torch.linspace(-1e-7, 1e-7, len(logits))
    assert [one.choose(logits) for _ in range(5)] == [two.choose(noisy) for _ in range(5)]


def test_penalties_follow_their_definitions() -> None:
    """Frequency counts, presence does not, both look at the answer only; repetition looks at the prompt as well."""
    logits = torch.tensor([1.0, 1.0, 1.0, -1.0])
    sampler = Sampler(
        SamplingSettings(temperature=0, frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=2.0), [2, 3]
    )
    for token in (0, 0, 1):
        sampler.saw(token)
    assert sampler._adjusted(logits).tolist() == [0.5 - 1.25, 0.5 - 0.75, 0.5, -2.0]
    assert logits.tolist() == [1.0, 1.0, 1.0, -1.0]
    assert not sampler.takes_best


def test_the_coldest_temperature_takes_the_best() -> None:
    """Not the last token of the vocabulary, as dividing by almost nothing would."""
    logits = torch.tensor([0.1, 3.0, 2.9, -1.0])
    for temperature in (1e-46, 1e-30, 1e-7, 0.0):
        assert Sampler(SamplingSettings(temperature, seed=1), []).choose(logits) == 1


def test_a_bias_forbids_and_forces() -> None:
    """-100 keeps a token away, 100 makes it the only one, at any temperature."""
    logits = torch.tensor([3.0, 2.0, 1.0])
    for temperature in (0.0, 1.0):
        away = Sampler(SamplingSettings(temperature, seed=1, logit_bias={0: -100.0}), [])
        forced = Sampler(SamplingSettings(temperature, seed=1, logit_bias={2: 100.0}), [])
        assert 0 not in {away.choose(logits) for _ in range(50)}
        assert {forced.choose(logits) for _ in range(50)} == {2}


@settings(deadline=None)
@given(LOGITS, st.integers(0, 5), st.data())
def test_logprobs_are_the_models_own(logits: "torch.Tensor", count: int, data: st.DataObject) -> None:
    """They are the logarithms of the softmax, the best first, whatever was chosen."""
    token = data.draw(st.integers(0, len(logits) - 1))
    expected = torch.log_softmax(logits.double(), 0)
    found = alternatives(logits, token, count)
    assert found.chosen == pytest.approx(float(expected[token]))
    assert [value for _, value in found.best] == pytest.approx(expected.sort(descending=True).values[:count].tolist())
    assert all(value == pytest.approx(float(expected[each])) for each, value in found.best)
