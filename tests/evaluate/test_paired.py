import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from statsmodels.stats.contingency_tables import mcnemar as exact_mcnemar
from statsmodels.stats.multitest import multipletests

from sekisho.evaluate.figures import Interval
from sekisho.evaluate.paired import (
    E_VALUE_STOP,
    SubsetMeans,
    block_ratio,
    bootstrap_difference,
    e_value,
    holm,
    log_ratio,
    mcnemar,
    non_inferiority,
    p_worse_than,
    score_interval,
    score_z,
    sign_test,
)

counts = st.tuples(st.integers(0, 60), st.integers(0, 60))
tables = st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 200)).filter(lambda t: sum(t) > 0)
effects = st.lists(st.integers(-1000, 1000).map(float), min_size=2, max_size=10)


def covers(interval: Interval | None, truth: float) -> bool:
    return interval is not None and interval.low <= truth <= interval.high


# --- right or wrong ---


@given(counts)
def test_mcnemar_is_between_scipy_s_tails(pair: tuple[int, int]) -> None:
    """Mid-p is the exact p-value less the probability of what was seen; it knows no direction."""
    wins, losses = pair
    fewer, count = min(pair), sum(pair)
    expected = 2 * stats.binom.cdf(fewer, count, 0.5) - stats.binom.pmf(fewer, count, 0.5) if count else 1.0
    assert mcnemar(wins, losses) == pytest.approx(min(1.0, expected), abs=1e-9)
    assert mcnemar(wins, losses) == mcnemar(losses, wins)


@given(counts)
def test_sign_test_is_statsmodels_s(pair: tuple[int, int]) -> None:
    """The exact sign test is statsmodels' exact McNemar test and scipy's binomial test, and above mid-p."""
    wins, losses = pair
    found = sign_test(wins, losses)
    theirs = exact_mcnemar([[0, wins], [losses, 0]], exact=True).pvalue if wins + losses else 1.0
    assert found == pytest.approx(theirs, abs=1e-9)
    if wins + losses:
        assert found == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=1e-9)
    assert mcnemar(wins, losses) <= found + 1e-12


def test_mcnemar_keeps_its_level() -> None:
    """With equal arms and 100 pairs, mid-p is below 5 % in 3 to 5.2 % of 20 000 comparisons; the exact test in less."""
    drawn = np.random.default_rng(11).multinomial(100, [0.1, 0.1, 0.8], 20_000)[:, :2]
    kinds, times = np.unique(drawn, axis=0, return_counts=True)
    middle = sum(t for (w, lost), t in zip(kinds.tolist(), times, strict=True) if mcnemar(w, lost) <= 0.05) / 20_000
    exact = sum(t for (w, lost), t in zip(kinds.tolist(), times, strict=True) if sign_test(w, lost) <= 0.05) / 20_000
    assert 0.03 <= middle <= 0.052
    assert exact < middle


def constrained_z(wins: int, losses: int, count: int, difference: float) -> float:
    """Tango's statistic with the constrained maximum likelihood found numerically."""

    def unlikely(p: float) -> float:
        only_b, only_a = p + difference, p
        rest = 1 - only_b - only_a
        return -float(
            stats.multinomial.logpmf([wins, losses, count - wins - losses], count, [only_b, only_a, max(rest, 1e-300)])
        )

    low, high = max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
    p = optimize.minimize_scalar(unlikely, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (wins - losses - count * difference) / math.sqrt(count * (2 * p + difference - difference**2))


@pytest.mark.parametrize("table", [(3, 7, 50), (0, 1, 44), (12, 2, 20), (5, 5, 10), (0, 9, 100)])
@pytest.mark.parametrize("difference", [-0.4, -0.05, 0.02, 0.3])
def test_score_statistic_is_the_constrained_likelihood_s(table: tuple[int, int, int], difference: float) -> None:
    """Tango's closed form is what a numerical search for the constrained maximum gives."""
    assert score_z(*table, difference) == pytest.approx(constrained_z(*table, difference), rel=1e-3, abs=1e-3)


@given(tables)
def test_score_interval_bounds_what_the_statistic_accepts(table: tuple[int, int, int]) -> None:
    """Its ends are where the statistic is ±1.96; it holds the estimate, and mirrors when the arms are exchanged."""
    wins, losses, _ = table
    count = sum(table)
    found, mirrored = score_interval(wins, losses, count), score_interval(losses, wins, count)
    assert found is not None
    assert mirrored is not None
    assert covers(found, (wins - losses) / count)
    assert (found.low, found.high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    for end, z in ((found.low, 1.959964), (found.high, -1.959964)):
        if abs(end) < 1 - 1e-9:
            assert score_z(wins, losses, count, end) == pytest.approx(z, abs=1e-3)


@given(tables, st.floats(0.01, 0.5))
def test_p_worse_than_agrees_with_the_interval(table: tuple[int, int, int], margin: float) -> None:
    """Worse than the margin at one-sided 2.5 % is the same as an interval that lies below it."""
    wins, losses, _ = table
    interval = score_interval(wins, losses, sum(table))
    assert interval is not None
    if abs(interval.high + margin) > 1e-9:
        assert (p_worse_than(wins, losses, sum(table), margin) < 0.025) == (interval.high < -margin)


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_score_interval_has_a_width_without_discordant_pairs(count: int) -> None:
    """Where every pair agrees the interval is ± z²/(n + z²), and the bootstrap's is a point at any n."""
    interval = score_interval(0, 0, count)
    z2 = 1.959964**2
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((-z2 / (count + z2), z2 / (count + z2)), abs=1e-6)
    nothing = bootstrap_difference([1.0] * count, [1.0] * count, seed=1).interval
    assert nothing is not None
    assert (nothing.low, nothing.high) == (0.0, 0.0)


@pytest.mark.parametrize("probabilities", [(0.02, 0.02), (0.03, 0.10), (0.0, 0.02)])
def test_score_interval_covers_where_the_bootstrap_does_not(probabilities: tuple[float, float]) -> None:
    """With few discordant pairs among 60, Tango's interval holds the truth in 93.5 % or more; the bootstrap does not
    reach that when one arm alone fails, rarely."""
    both = (*probabilities, 1 - sum(probabilities))
    truth = probabilities[0] - probabilities[1]
    drawn = np.random.default_rng(2).multinomial(60, both, 3000)[:, :2]
    kinds, times = np.unique(drawn, axis=0, return_counts=True)
    hit = boot = 0
    for (wins, losses), often in zip(kinds.tolist(), times.tolist(), strict=True):
        hit += often * covers(score_interval(wins, losses, 60), truth)
        of_b = [1.0] * wins + [0.0] * losses + [1.0] * (60 - wins - losses)
        of_a = [0.0] * wins + [1.0] * losses + [1.0] * (60 - wins - losses)
        boot += often * covers(bootstrap_difference(of_a, of_b, seed=1, resamples=999).interval, truth)
    assert hit >= 0.935 * 3000
    if probabilities[0] == 0.0:
        assert boot < 0.80 * 3000


def test_impossible_counts() -> None:
    """Negative counts and more discordant pairs than pairs are mistakes; no pairs have no interval."""
    for call in (mcnemar, sign_test, e_value):
        with pytest.raises(ValueError, match="counts"):
            call(-1, 2)
    with pytest.raises(ValueError, match="of 3 pairs"):
        score_interval(2, 2, 3)
    assert score_interval(0, 0, 0) is None
    assert p_worse_than(0, 0, 0, 0.1) == 1.0


# --- looking all the time ---


@given(st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_e_value_is_the_mixture_s_integral(pair: tuple[int, int]) -> None:
    """The closed form is the likelihood ratio averaged over Beta(10, 10)."""
    wins, losses = pair

    def weighted(p: float) -> float:
        return float((2 * p) ** wins * (2 - 2 * p) ** losses * stats.beta.pdf(p, 10, 10))

    assert e_value(wins, losses) == pytest.approx(integrate.quad(weighted, 0, 1, limit=200)[0], rel=1e-6)
    assert e_value(wins, losses) == pytest.approx(e_value(losses, wins))
    assert e_value(0, 0) == 1.0


@given(st.integers(0, 50), st.integers(0, 50))
def test_e_value_is_a_fair_bet(wins: int, losses: int) -> None:
    """From any state an even coin changes it by nothing on average, so no stopping rule gains on chance."""
    after = (e_value(wins + 1, losses) + e_value(wins, losses + 1)) / 2
    assert after == pytest.approx(e_value(wins, losses), rel=1e-9)


def test_eighty_peeks_fool_the_p_value_and_not_the_e_value() -> None:
    """Equal arms, 80 looks at 10 pairs each: p <= 5 % appears in over 20 % of the streams, E >= 20 in under 5 %."""
    chance = np.random.default_rng(80)
    looks = np.cumsum(chance.multinomial(10, [0.1, 0.1, 0.8], (1000, 80))[:, :, :2], axis=1)
    kinds, place = np.unique(looks.reshape(-1, 2), axis=0, return_inverse=True)
    p = np.array([mcnemar(w, lost) for w, lost in kinds.tolist()])[place].reshape(1000, 80)
    e = np.array([e_value(w, lost) for w, lost in kinds.tolist()])[place].reshape(1000, 80)
    assert (p <= 0.05).any(axis=1).mean() > 0.20
    assert (e >= E_VALUE_STOP).any(axis=1).mean() < 0.05


def test_e_value_finds_a_real_difference() -> None:
    """When B loses three of four discordant pairs, E reaches 20 within 800 pairs in nine streams of ten."""
    chance = np.random.default_rng(4)
    drawn = np.cumsum(chance.multinomial(10, [0.05, 0.15, 0.8], (300, 80))[:, :, :2], axis=1)
    found = [any(e_value(w, lost) >= E_VALUE_STOP for w, lost in stream) for stream in drawn.tolist()]
    assert np.mean(found) > 0.9
    assert math.isfinite(e_value(0, 100_000))


# --- numbers ---


def test_bootstrap_is_scipy_s() -> None:
    """Without clusters it is the percentile bootstrap of scipy, within what resampling leaves open."""
    chance = np.random.default_rng(6)
    first = chance.gamma(2, size=80)
    second = first + chance.normal(0.2, 0.5, 80)
    ours = bootstrap_difference(first.tolist(), second.tolist(), seed=1)
    theirs = stats.bootstrap((second - first,), np.mean, method="percentile", rng=2).confidence_interval
    assert ours.value == pytest.approx((second - first).mean())
    assert ours.interval is not None
    assert (ours.interval.low, ours.interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_clusters_count_once() -> None:
    """Each item repeated nine times says no more than once: with clusters the interval stays, without it shrinks."""
    chance = np.random.default_rng(8)
    differences = chance.normal(0, 1, 40)
    once = bootstrap_difference([0.0] * 40, differences.tolist(), seed=1)
    many = np.repeat(differences, 9).tolist()
    clustered = bootstrap_difference([0.0] * 360, many, np.repeat(np.arange(40), 9).tolist(), seed=1)
    naive = bootstrap_difference([0.0] * 360, many, seed=1)
    assert (clustered.n, clustered.clusters) == (360, 40)
    assert once.interval is not None
    assert clustered.interval is not None
    assert (clustered.interval.low, clustered.interval.high) == pytest.approx((once.interval.low, once.interval.high))
    assert naive.interval is not None
    assert naive.interval.high - naive.interval.low < 0.4 * (once.interval.high - once.interval.low)


def test_large_clusters_are_no_difference() -> None:
    """Where every pair differs by the same, clusters of one and of fifty leave no doubt about it."""
    found = bootstrap_difference([1.0] * 62, [3.0] * 62, ["a"] * 50 + ["b"] * 10 + ["c", "d"], seed=1)
    assert found.interval is not None
    assert (found.value, found.interval.low, found.interval.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("clusters", [30, 60])
def test_clustered_bootstrap_covers(clusters: int) -> None:
    """With unequal clusters that have effects of their own, 91 % or more of the intervals hold the true mean."""
    chance = np.random.default_rng(clusters)
    hit = 0
    for trial in range(400):
        sizes = chance.integers(1, 8, clusters)
        label = np.repeat(np.arange(clusters), sizes)
        values = np.repeat(chance.normal(0, 1, clusters), sizes) + chance.normal(0, 1, label.size)
        found = bootstrap_difference([0.0] * label.size, values.tolist(), label.tolist(), seed=trial, resamples=999)
        hit += covers(found.interval, 0.0)
    assert hit >= 0.91 * 400


def test_bootstrap_is_the_same_for_a_seed() -> None:
    """Seed and data decide everything; unequal lengths and nothing at all are mistakes, one cluster has no interval."""
    values = [0.1, 0.5, -0.2, 0.9]
    assert bootstrap_difference([0.0] * 4, values, seed=3) == bootstrap_difference([0.0] * 4, values, seed=3)
    assert bootstrap_difference([0.0] * 4, values, ["one"] * 4, seed=3).interval is None
    for broken in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="pairs"):
            bootstrap_difference(*broken, seed=1)


def test_many_clusters_fit_into_memory() -> None:
    """Resampling goes in pieces: 20 000 clusters give the same mean, and an interval of the right width."""
    values = np.random.default_rng(9).normal(0, 1, 20_000)
    found = bootstrap_difference([0.0] * 20_000, values.tolist(), seed=1, resamples=500).interval
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.15)


# --- ratios ---


@given(effects)
def test_subset_means_are_the_sign_flip_test(values: list[float]) -> None:
    """The p-value is that of scipy's exact permutation test that flips the signs, in both directions."""
    if not any(values):
        return
    found = SubsetMeans(values, seed=1)
    for alternative, ours in (("less", found.p_below(0.0)), ("greater", found.p_above(0.0))):
        theirs = stats.permutation_test(
            (np.array(values),), np.sum, permutation_type="samples", alternative=alternative, n_resamples=np.inf
        ).pvalue
        assert ours == pytest.approx(theirs)


@given(effects, st.integers(-3, 3))
def test_subset_means_move_with_the_data(values: list[float], shift: int) -> None:
    """A constant added moves the interval by it, another sign mirrors it, and from 6 values on it holds the mean."""
    before = SubsetMeans(values, seed=1).interval()
    after = SubsetMeans([value + shift for value in values], seed=1).interval()
    mirrored = SubsetMeans([-value for value in values], seed=1).interval()
    assert (before is None) == (len(values) < 6)
    if before is not None and after is not None and mirrored is not None:
        assert (after.low, after.high) == pytest.approx((before.low + shift, before.high + shift))
        assert (mirrored.low, mirrored.high) == pytest.approx((-before.high, -before.low))
        assert before.low - 1e-12 <= sum(values) / len(values) <= before.high + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, 10, 25])
def test_ratio_interval_covers_where_the_bootstrap_is_too_narrow(count: int) -> None:
    """Heavy-tailed block ratios: the subset interval holds the truth in 93.5 % or more of 500 comparisons at any number
    of blocks, the bootstrap over 6 or 10 blocks in less than 92 %."""
    drawn = 0.1 * np.random.default_rng(count).standard_t(5, (500, count)) + math.log(1.2)
    found = [block_ratio(logs, seed=trial) for trial, logs in enumerate(drawn.tolist())]
    assert np.mean([covers(ratio.interval, 1.2) for ratio in found]) >= 0.935
    assert np.mean([covers(ratio.bootstrap, 1.2) for ratio in found]) < (0.92 if count <= 10 else 1)


@pytest.mark.parametrize("count", [6, 9, 13, 20])
def test_interval_ends_where_the_p_value_does(count: int) -> None:
    """At its ends the mean is not refuted at one-sided 2.5 %, just outside it is: also with random subsets."""
    found = SubsetMeans(np.random.default_rng(count).normal(0, 1, count), seed=1)
    interval = found.interval()
    assert interval is not None
    assert found.p_below(interval.high) > 0.025 >= found.p_below(np.nextafter(interval.high, 9))
    assert found.p_above(interval.low) > 0.025 >= found.p_above(np.nextafter(interval.low, -9))


@pytest.mark.parametrize("seed", range(8))
def test_no_subset_is_empty(seed: int) -> None:
    """Of 14 values a random choice is now and then none at all; every subset has a mean all the same."""
    assert np.isfinite(SubsetMeans([1.0] * 14, seed).sorted).all()


def test_random_subsets_agree_with_all() -> None:
    """Beyond 13 values the random subsets give nearly the interval that all subsets give."""
    values = np.random.default_rng(1).normal(0, 1, 16)
    members = (np.arange(1, 2**16)[:, None] >> np.arange(16)) & 1
    exact = np.quantile(members @ values / members.sum(axis=1), [0.025, 0.975])
    found = SubsetMeans(values, seed=1).interval()
    assert found is not None
    assert (found.low, found.high) == pytest.approx(exact.tolist(), abs=0.02)


def test_log_ratio_forgets_a_steady_drift() -> None:
    """In a block A B B A a drift by a constant factor from request to request cancels, as does a slow item."""
    slow, drift = 7.0, 1.1
    first = [1.0, drift**3 * slow]
    second = [drift * 1.3, drift**2 * slow * 1.3]
    assert log_ratio(first, second) == pytest.approx(math.log(1.3))
    assert log_ratio([1.0], [0.0]) is log_ratio([1.0], []) is log_ratio([], []) is None


def test_block_ratio_limits() -> None:
    """One block has a ratio and nothing around it; no block is a mistake."""
    one = block_ratio([math.log(2)], seed=1)
    assert one.value == pytest.approx(2)
    assert one.log_sd is one.interval is one.bootstrap is None
    with pytest.raises(ValueError, match="no block"):
        block_ratio([], seed=1)


# --- many metrics, one decision ---


@pytest.mark.parametrize("count", [1, 5, 12])
def test_holm_is_statsmodels_s(count: int) -> None:
    """Holm's adjusted p-values agree with statsmodels, ties included."""
    p_values = np.random.default_rng(count).beta(0.3, 2, count).round(2).tolist()
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_the_order(p_values: list[float]) -> None:
    """No adjusted p-value lies below the raw one or above Bonferroni's, and the smaller stays the smaller."""
    ours = holm(p_values)
    assert all(raw <= adjusted <= min(1, len(ours) * raw) + 1e-12 for adjusted, raw in zip(ours, p_values, strict=True))
    ranked = [adjusted for _, adjusted in sorted(zip(p_values, ours, strict=True))]
    assert ranked == sorted(ranked)


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0.01, 0.5), st.booleans())
def test_non_inferiority_is_one_of_three(low: float, width: float, margin: float, gates_ok: bool) -> None:
    """Adopt, reject and limited exclude each other; a wider margin or passed gates never make it worse."""
    order = ["reject", "limited", "adopt"]
    interval = Interval(low, low + width, "any")
    found = non_inferiority(interval, margin, gates_ok)
    expected = "reject" if low + width < -margin else "adopt" if low > -margin and gates_ok else "limited"
    assert found == expected
    assert order.index(non_inferiority(interval, margin * 1.5, gates_ok)) >= order.index(found)
    assert order.index(non_inferiority(interval, margin, True)) >= order.index(found)
    assert non_inferiority(None, margin, gates_ok) == "limited"


def test_a_margin_is_positive() -> None:
    """A margin of zero would ask for proof of superiority; it is refused."""
    with pytest.raises(ValueError, match="above zero"):
        non_inferiority(Interval(0, 1, "any"), 0, True)
