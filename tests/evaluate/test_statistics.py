import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

from sekisho.evaluate.paired import score_interval
from sekisho.evaluate.statistics import (
    agreement,
    binomial_cdf,
    ecdf,
    exact_share_interval,
    highest_rate,
    median,
    pairs_for_margin,
    pairs_for_ratio,
    pairs_for_share,
    percentile,
    quantile,
    share_interval,
    smallest_n,
)

numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)
percents = st.integers(1, 99)


@given(numbers, percents)
def test_percentile_is_numpy_s_inverted_cdf(values: list[float], percent: int) -> None:
    """Nearest rank is the inverse of the empirical distribution, in exact arithmetic."""
    ordered = sorted(values)
    exact = ordered[-(-len(ordered) * percent // 100) - 1]
    assert percentile(values, percent) == exact
    if len(values) * percent % 100:  # at whole ranks numpy may round to the neighbour
        assert exact == np.quantile(values, percent / 100, method="inverted_cdf")


def test_percentile_by_hand() -> None:
    """Ranks of 20 values: P95 is the 19th, P50 the 10th, P100 the last; nothing has no percentile."""
    values = list(range(20, 0, -1))
    assert [percentile(values, p) for p in (95, 50, 100, 0.1)] == [19, 10, 20, 1]
    assert percentile([], 95) is None
    with pytest.raises(ValueError, match="percent"):
        percentile(values, 0)


@given(numbers, percents, st.randoms(use_true_random=False))
def test_quantiles_do_not_see_order_and_grow_with_percent(values: list[float], percent: int, chance) -> None:  # type: ignore[no-untyped-def]
    """Shuffling changes nothing; a higher percentile is no lower; the value lies in its interval."""
    shuffled = values.copy()
    chance.shuffle(shuffled)
    seen = quantile(values, percent, floor=0)
    assert seen == quantile(shuffled, percent, floor=0)
    assert (percentile(values, percent) or 0) <= (percentile(values, min(100, percent + 7)) or 0)
    if seen.interval is not None:
        assert seen.interval.low <= (seen.value or 0) <= seen.interval.high


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=200))
def test_quantiles_follow_a_scale(values: list[int]) -> None:
    """Twice the values plus one have twice the median plus one, interval included."""
    before, after = median(values), median([2 * value + 1 for value in values])
    assert after.value == 2 * (before.value or 0) + 1
    if before.interval is not None and after.interval is not None:
        assert after.interval.low == 2 * before.interval.low + 1
        assert after.interval.high == 2 * before.interval.high + 1


@pytest.mark.parametrize(("percent", "needed"), [(95, 72), (99, 368), (50, 6), (5, 72)])
def test_smallest_n(percent: float, needed: int) -> None:
    """A two-sided interval exists from exactly this many values on: the share beyond the extreme value decides."""
    assert smallest_n(percent) == needed
    assert quantile(range(needed), percent, floor=0).interval is not None
    assert quantile(range(needed - 1), percent, floor=0).interval is None
    side = max(percent, 100 - percent) / 100
    assert side**needed <= 0.025 < side ** (needed - 1)


def test_tails_need_eighty() -> None:
    """P95 of 79 successes has a value and no interval, and says how many it needs; the median of 30 has both."""
    seen = quantile(range(79), 95)
    assert (seen.value, seen.interval, seen.needed) == (75, None, 80)
    assert seen.interval_missing == "an interval for P95 needs at least 80 values, not 79"
    assert quantile(range(80), 95).interval is not None
    assert median(range(30)).interval is not None
    assert median(range(30)).interval_missing == ""
    assert quantile(range(367), 99).needed == 368
    assert quantile([], 95).value is None


@pytest.mark.parametrize("count", [80, 100, 333, 1000])
@pytest.mark.parametrize("percent", [50, 90, 95])
def test_quantile_interval_is_scipy_s(count: int, percent: int) -> None:
    """scipy's binomial quantile test, turned round, gives the same two order statistics."""
    values = np.random.default_rng(count).lognormal(size=count)
    ours = quantile(values, percent).interval
    theirs = stats.quantile_test(values, q=0, p=percent / 100).confidence_interval(0.95)
    assert ours is not None
    assert (ours.low, ours.high) == (theirs.low, theirs.high)


@pytest.mark.parametrize(("percent", "count"), [(95, 80), (95, 200), (50, 10), (50, 31)])
def test_quantile_interval_covers(percent: int, count: int) -> None:
    """Of 2000 lognormal samples, at least 94 % have the true quantile in their 95 % interval."""
    truth = math.exp(stats.norm.ppf(percent / 100))
    samples = np.random.default_rng(7).lognormal(size=(2000, count))
    intervals = [quantile(sample, percent).interval for sample in samples]
    assert sum(i is not None and i.low <= truth <= i.high for i in intervals) >= 0.94 * 2000


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (40, 0.03), (3000, 0.95), (200_000, 0.5)])
def test_binomial_cdf_is_scipy_s(count: int, share: float) -> None:
    """The binomial distribution from logarithms agrees with scipy to nine digits, also for long runs."""
    k = np.arange(count + 1)
    assert np.allclose(binomial_cdf(count, share), stats.binom.cdf(k, count, share), atol=1e-9, rtol=1e-6)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_share_intervals_are_statsmodels_s(pair: tuple[int, int]) -> None:
    """Wilson and Clopper–Pearson agree with statsmodels; both hold the share itself."""
    hits, count = pair
    for ours, method in ((share_interval(hits, count), "wilson"), (exact_share_interval(hits, count), "beta")):
        low, high = proportion_confint(hits, count, method=method)
        assert ours is not None
        assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-8)
        assert ours.low - 1e-12 <= hits / count <= ours.high + 1e-12


def test_share_of_nothing() -> None:
    """Without observations there is no interval and no bound; more hits than observations is a mistake."""
    assert share_interval(0, 0) is exact_share_interval(0, 0) is highest_rate(0, 0) is None
    for broken in (share_interval, exact_share_interval, highest_rate):
        with pytest.raises(ValueError, match="3 of 2"):
            broken(3, 2)


@pytest.mark.parametrize(("count", "percent"), [(100, 2.95), (300, 0.99), (600, 0.50)])
def test_zero_failures_bound_the_rate(count: int, percent: float) -> None:
    """No failure in 100, 300, 600 bounds the failure rate at 2.95, 0.99, 0.50 %: a little below three over n."""
    bound = highest_rate(0, count)
    assert bound is not None
    assert bound * 100 == pytest.approx(percent, abs=0.005)
    assert bound < 3 / count
    assert (1 - bound) ** count == pytest.approx(0.05)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_highest_rate_is_the_beta_quantile(pair: tuple[int, int]) -> None:
    """The one-sided exact bound is a quantile of a beta distribution, and 1 when everything failed."""
    failures, count = pair
    exact = 1.0 if failures == count else stats.beta.ppf(0.95, failures + 1, count - failures)
    assert highest_rate(failures, count) == pytest.approx(exact, abs=1e-8)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=600), st.sampled_from([10, 40, 200]))
def test_thinned_ecdf_keeps_its_shape(values: list[int], at_most: int) -> None:
    """No more points than asked for, all of them true, first and last kept, and each dropped one close to the line."""
    points = ecdf(values, at_most)
    full = stats.ecdf(values).cdf
    truth = dict(zip(full.quantiles.tolist(), full.probabilities.tolist(), strict=True))
    assert len(points) <= at_most
    assert all(share == pytest.approx(truth[x]) for x, share in points)
    assert (points[0][0], points[-1]) == (min(values), (max(values), 1.0))
    xs = [x for x, _ in points]
    marks = (at_most - 2) // 2
    width = max(values) - min(values)
    for x, share in truth.items():
        after = np.searchsorted(xs, x, side="right")
        if x not in xs:
            assert share - points[after - 1][1] <= 1 / marks + 1e-9
            assert xs[after] - x <= width / marks + 1e-9


def test_ecdf_limits() -> None:
    """Nothing has no line; a line of less than four points is a mistake; few values are not thinned."""
    assert ecdf([]) == ()
    assert ecdf([3, 1, 3, 2]) == ((1.0, 0.25), (2.0, 0.5), (3.0, 1.0))
    with pytest.raises(ValueError, match="4 points"):
        ecdf([1.0], 3)


ratings = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=60)


@given(ratings)
def test_kappa_is_statsmodels_s(pairs: list[tuple[int, int]]) -> None:
    """Cohen's kappa, plain and quadratic, agrees with statsmodels wherever it is defined."""
    ours = agreement([a for a, _ in pairs], [b for _, b in pairs])
    table = np.zeros((6, 6))
    for pair in pairs:
        table[pair] += 1
    if ours.kappa is None:
        assert len({a for pair in pairs for a in pair}) == 1
        return
    assert ours.kappa == pytest.approx(cohens_kappa(table, return_results=False), abs=1e-9)
    assert ours.kappa_weighted == pytest.approx(cohens_kappa(table, wt="quadratic", return_results=False), abs=1e-9)
    assert ours.agreed == int(table.trace())


@given(ratings)
def test_agreement_has_no_first_rater(pairs: list[tuple[int, int]]) -> None:
    """Exchanging the raters changes nothing, and a wider tolerance agrees no less."""
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    one, other = agreement(first, second, within=1), agreement(second, first, within=1)
    assert (one.agreed, one.share) == (other.agreed, other.share)
    assert one.kappa == pytest.approx(other.kappa)
    assert one.by_chance == pytest.approx(other.by_chance)
    assert one.agreed >= agreement(first, second).agreed


def test_within_one_point_is_chance() -> None:
    """On scores that are mostly 4 and 5, agreement within one point is high by chance; kappa says it is nothing."""
    chance = np.random.default_rng(3)
    first, second = chance.choice([2, 3, 4, 5], (2, 4000), p=[0.1, 0.2, 0.3, 0.4]).tolist()
    seen = agreement(first, second, within=1)
    assert (seen.share or 0) > 2 / 3
    assert seen.share == pytest.approx(seen.by_chance, abs=0.02)
    assert abs(seen.kappa or 1) < 0.03
    assert abs(seen.kappa_weighted or 1) < 0.03


def test_agreement_limits() -> None:
    """Full agreement on one label leaves kappa undefined; words have no weighted kappa; lengths must match."""
    assert agreement([1, 1], [1, 1]).kappa is None
    assert agreement(["a", "b", "a"], ["a", "b", "b"]).kappa_weighted is None
    assert agreement(["a", "b", "a"], ["a", "b", "b"]).share == pytest.approx(2 / 3)
    assert agreement([], []).share is None
    with pytest.raises(ValueError, match="2 and 1"):
        agreement([1, 2], [1])


def test_pairs_needed_for_a_share() -> None:
    """Pairs for 80 % power at 20 % discordant, for 1, 2, 3, 5, 10 points (Connor 1987)."""
    found = [pairs_for_share(points / 100, 0.20) for points in (1, 2, 3, 5, 10)]
    assert found == [15_696, 3_923, 1_742, 626, 155]


def test_pairs_needed_for_a_ratio() -> None:
    """Pairs to see 5 % at a log-sd of 0.03, 0.10, 0.30; a ratio and its inverse need the same."""
    assert [pairs_for_ratio(1.05, sd) for sd in (0.03, 0.10, 0.30)] == [3, 33, 297]
    assert pairs_for_ratio(1 / 1.05, 0.1) == 33


def test_pairs_needed_give_the_power() -> None:
    """With the number of pairs that it names, McNemar's statistic finds the difference four times in five."""
    count = pairs_for_share(0.05, 0.20)
    drawn = np.random.default_rng(5).multinomial(count, [0.125, 0.075, 0.80], 4000)
    wins, losses = drawn[:, 0], drawn[:, 1]
    found = np.abs(wins - losses) / np.sqrt(wins + losses) > 1.96
    assert 0.78 <= found.mean() <= 0.83


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.05, 0.2])
def test_pairs_needed_even_if_no_pair_differs(margin: float) -> None:
    """It is the smallest number at which full agreement is within the margin, by Tango's interval: 189 for 2 %."""
    count = pairs_for_margin(margin, 0.0)
    at, before = score_interval(0, 0, count), score_interval(0, 0, count - 1)
    assert at is not None
    assert before is not None
    assert at.low > -margin >= before.low - 1e-9
    assert margin != 0.02 or count == 189


def test_pairs_needed_show_a_margin() -> None:
    """With the number of pairs that it names, equal arms are shown to be within the margin four times in five."""
    count = pairs_for_margin(0.05, 0.10)
    drawn = np.random.default_rng(5).multinomial(count, [0.05, 0.05, 0.90], 1000)[:, :2].tolist()
    intervals = [score_interval(wins, losses, count) for wins, losses in drawn]
    assert 0.76 <= np.mean([i is not None and i.low > -0.05 for i in intervals]) <= 0.84


@pytest.mark.parametrize(
    ("call", "arguments"),
    [(pairs_for_share, (0.3, 0.2)), (pairs_for_ratio, (1.0, 0.1)), (pairs_for_margin, (0.0, 0.2))],
)
def test_no_number_of_pairs_is_enough(call, arguments: tuple[float, float]) -> None:  # type: ignore[no-untyped-def]
    """A difference larger than the discordant share, or no difference at all, has no sample size."""
    with pytest.raises(ValueError, match=r"not possible|no number"):
        call(*arguments)
