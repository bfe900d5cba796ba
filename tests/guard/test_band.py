import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.verdict import Decision
from sekisho.guard.band import Band, Point, band_of, calibrate, fewest, risk_threshold
from sekisho.guard.classifier import Scores


def scored(harm: float, refuse: float = 0.0, category: str = "medical") -> Scores:
    return Scores(1 - harm, harm - refuse, refuse, category, 1.0)  # type: ignore[arg-type]


def point(
    decision: Decision, harm: float, refuse: float = 0.0, language: str = "en", category: str = "medical"
) -> Point:
    return Point(language, decision, scored(harm, refuse, category))


def test_how_many_positives_a_bound_needs() -> None:
    """19 at .05 and 99 at .01, as conformal risk control has it."""
    assert (fewest(0.05), fewest(0.01), fewest(0.1)) == (19, 99, 9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300), st.sampled_from([0.01, 0.05, 0.1, 0.3]))
def test_the_threshold_is_the_largest_that_meets_the_bound(harms: list[float], alpha: float) -> None:
    """n/(n+1)·R̂ + 1/(n+1) ≤ α at the threshold, and the next larger score would break it."""
    n, found = len(harms), risk_threshold(harms, alpha)
    bound = (sum(harm < found for harm in harms) + 1) / (n + 1)
    if n < fewest(alpha):
        assert found == 0.0
        return
    assert bound <= alpha + 1e-9
    larger = [harm for harm in harms if harm > found]
    if larger:
        assert (sum(harm < min(larger) for harm in harms) + 1) / (n + 1) > alpha


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_the_risk_holds_on_exchangeable_data(alpha: float) -> None:
    """Over 2,000 draws the mean share of unsafe texts that are allowed stays within α (three standard errors)."""
    rng = random.Random(7)
    misses = draws = 0
    for _ in range(2_000):
        threshold = risk_threshold([rng.betavariate(2, 1) for _ in range(60)], alpha)
        misses += rng.betavariate(2, 1) < threshold
        draws += 1
    assert misses / draws <= alpha + 3 * (alpha * (1 - alpha) / draws) ** 0.5


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_a_band_keeps_both_promises_on_its_own_rows(seed: int) -> None:
    """Per category that stands on its own rows: unsafe → ALLOW ≤ α, and benign → REFUSE ≤ its α."""
    rng = random.Random(seed)
    points = []
    for _ in range(300):
        decision: Decision = rng.choice(["allow", "escalate", "refuse"])
        harm = rng.betavariate(1, 3) if decision == "allow" else rng.betavariate(3, 1)
        points.append(point(decision, harm, harm * rng.random(), "ja", rng.choice(["medical", "legal"])))
    band = band_of(points, 0.05)
    for category in ("medical", "legal"):
        own = [one for one in points if one.scores.category == category]
        unsafe = [one for one in own if one.decision != "allow"]
        benign = [one for one in own if one.decision == "allow"]
        allowed = sum(band.decide(one.scores, "ja").decision == "allow" for one in unsafe)
        refused = sum(band.decide(one.scores, "ja").decision == "refuse" for one in benign)
        assert allowed <= 0.05 * len(unsafe)
        assert refused <= 0.05 * len(benign)


def test_too_few_positives_fall_back_and_say_so() -> None:
    """18 positives at .05 take the language's thresholds; an unknown language takes those of all."""
    points = [point("refuse", 0.5 + n / 100, 0.4) for n in range(40)] + [point("allow", n / 100) for n in range(40)]
    points += [point("refuse", 0.9, 0.8, category="sexual") for _ in range(18)]
    band = band_of(points, 0.05)
    assert band.thresholds["en/sexual"].pooled == "en/*"
    assert band.thresholds["en/sexual"].allow_below == band.thresholds["en/*"].allow_below
    assert any("en/sexual: 18 unsafe rows, 19 needed" in note for note in band.notes)
    assert band.threshold("ja", "medical") == band.thresholds["*/*"]


def test_too_few_rows_in_all_are_an_error() -> None:
    """No threshold is made up."""
    with pytest.raises(ValueError, match="needs 19"):
        band_of([point("refuse", 0.9)], 0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        band_of([point("refuse", 0.9)], 0.0)


def test_between_the_thresholds_a_person_decides() -> None:
    """Below is ALLOW, above is REFUSE, between is ESCALATE, sure only where escalation is the likeliest."""
    points = [point("refuse", 0.5 + n / 100, 0.5 + n / 100) for n in range(40)]
    points += [point("allow", n / 100, n / 100) for n in range(40)]
    band = band_of(points, 0.05)
    assert band.decide(scored(0.1), "en").decision == "allow"
    assert band.decide(scored(0.9, 0.9), "en").decision == "refuse"
    assert band.decide(scored(0.9, 0.1), "en")[::4] == ("escalate", True)
    assert band.decide(scored(0.6, 0.3), "en").sure is False


def test_a_band_survives_its_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What is saved is what is loaded; a torn file is an error."""
    band = band_of([point("refuse", 0.9)] * 30 + [point("allow", 0.1)] * 30)
    band.save(tmp_path / "guard" / "band.json")
    assert Band.load(tmp_path / "guard" / "band.json") == band
    (tmp_path / "torn.json").write_text('{"alpha": 0.05')
    with pytest.raises(ValueError, match="truncated"):
        Band.load(tmp_path / "torn.json")


def test_calibrate_scores_the_plain_form() -> None:
    """Rows are normalised as in the judge before they are scored."""
    from sekisho.guard.evaluation import Labelled

    seen: list[str] = []

    class Fake:
        def scores(self, text: str, language: str) -> Scores:
            seen.append(text)
            return scored(0.9 if "harm" in text else 0.1)

    rows = [Labelled("ＨＡＲＭ please", "en", "refuse", "fraud")] * 20 + [Labelled("hello", "en", "allow", "none")] * 20
    band = calibrate(rows, Fake(), 0.05)
    assert seen[0] == "harm please"
    assert band.thresholds["en/medical"].unsafe == 20
