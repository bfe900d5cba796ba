"""Which format each page gets: within the bytes, as good as these bytes can be, and never what cannot be had."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
import msgspec
from hypothesis import assume, given

from sekisho.kv.formats import DENSE, EVICTED, FORMATS, Format, layout
from sekisho.kv.plan import DISTORTION, KEY_WEIGHT, Pages, choices, importance, plan
from sekisho.kv.policy import WIDTHS, KVPolicy, LevelThresholds

pytestmark = pytest.mark.kv

HEAD_DIM = 64
ITEMSIZE = 2
NEW = DENSE.id


def bytes_of(form_id: int) -> int:
    return 0 if form_id == EVICTED else layout(FORMATS[form_id], HEAD_DIM, ITEMSIZE).page_bytes


def loss_of(form_id: int) -> float:
    if form_id == EVICTED:
        return KEY_WEIGHT + 1
    return KEY_WEIGHT * DISTORTION[FORMATS[form_id].key_bits] + DISTORTION[FORMATS[form_id].value_bits]


def pages_of(
    masses: list[list[list[float]]],
    formats: int | list[list[list[int]]] = NEW,
    settled: float = torch.nan,
    restorable: bool = False,
    count: list[int] | None = None,
) -> Pages:
    """Pages as they are when nothing is said: fresh, dense, without copies."""
    mass = torch.tensor(masses, dtype=torch.float32)
    now = torch.full(mass.shape, formats, dtype=torch.int8) if isinstance(formats, int) else torch.tensor(formats)
    now = now.to(torch.int8)
    counts = torch.tensor(count if count is not None else [mass.shape[2]] * mass.shape[0])
    at_hand = torch.full(mass.shape, restorable) | (now == DENSE.id)
    return Pages(now, mass, torch.full(mass.shape, settled), at_hand, counts)


def planned(pages: Pages, policy: KVPolicy, allowed: float | list[float]) -> "torch.Tensor":
    rows = pages.formats.shape[0]
    each = allowed if isinstance(allowed, list) else [allowed] * rows
    return plan(pages, policy, HEAD_DIM, ITEMSIZE, torch.tensor(each, dtype=torch.float64))


def permitted(mass: float, now: int, restorable: bool, policy: KVPolicy) -> list[int]:
    """The documented rules, told again in plain words for one page."""
    score = float(importance(torch.tensor(mass)))
    limits = policy.level_thresholds
    can, may = [], []
    for place, form_id in enumerate(choices(policy)):
        if not restorable:
            if form_id == EVICTED:
                fewer = True
            elif now == EVICTED:
                fewer = False
            else:
                old, new = FORMATS[now], FORMATS[form_id]
                fewer = new.key_bits <= old.key_bits and new.value_bits <= old.value_bits
            if not fewer:
                continue
        can.append(form_id)
        least = place == len(policy.ladder)
        if policy.budget is not None:
            fits = form_id != EVICTED or score < limits.L3_evict
        elif form_id == DENSE.id:
            fits = score >= limits.L1_int8
        elif form_id == EVICTED:
            fits = score < limits.L3_evict
        elif least:
            fits = not (policy.evict and score < limits.L3_evict)
        else:
            eight = min(FORMATS[form_id].key_bits, FORMATS[form_id].value_bits) == 8
            fits = score >= (limits.L2_int4 if eight else limits.L3_evict)
        if fits:
            may.append(form_id)
    return may or can


all_formats = st.tuples(st.sampled_from(WIDTHS), st.sampled_from(WIDTHS))
ladders = (
    st.lists(all_formats, min_size=1, max_size=5)
    .map(lambda steps: tuple(sorted({sum(step): step for step in steps}.values(), key=sum, reverse=True)))
    .filter(bool)
)
limits = st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=3, max_size=3).map(
    lambda each: LevelThresholds(*sorted(each)[::-1])
)
budgets = st.none() | st.floats(0.02, 1)
policies = st.builds(
    KVPolicy,
    level_thresholds=limits | st.just(LevelThresholds()) | st.just(LevelThresholds(0, 0, 0)),
    budget=budgets,
    ladder=ladders,
    evict=st.booleans(),
    hysteresis=st.sampled_from([0.0, 0.05, 0.3]),
)
masses = st.floats(1e-4, 30).map(lambda mass: float(torch.tensor(mass)))


@st.composite
def situations(draw: st.DrawFn) -> Pages:
    """Rows of pages in all states that there are."""
    rows, heads, places = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 4))
    shape = (rows, heads, places)
    many = rows * heads * places

    def table(each: st.SearchStrategy[float], dtype: "torch.dtype") -> "torch.Tensor":
        return torch.tensor(draw(st.lists(each, min_size=many, max_size=many)), dtype=dtype).reshape(shape)

    now = table(st.sampled_from([EVICTED, *FORMATS]), torch.int8)
    settled = table(st.floats(0, 1) | st.just(torch.nan), torch.float32)
    at_hand = table(st.booleans(), torch.bool) | (now == DENSE.id)
    count = torch.tensor(draw(st.lists(st.integers(0, places), min_size=rows, max_size=rows)))
    return Pages(now, table(masses, torch.float32), settled, at_hand, count)


@given(pages=situations(), policy=policies, share=st.floats(0.0, 1.2))
def test_a_plan_asks_for_what_can_be_had(pages: Pages, policy: KVPolicy, share: float) -> None:
    """Whatever is planned is reachable and permitted by the thresholds, or is what the page has already; pages beyond
    a row's end keep what they have; and the bytes are kept wherever any permitted plan keeps them."""
    rows, heads, places = pages.formats.shape
    allowed = share * heads * places * bytes_of(DENSE.id)
    found = planned(pages, policy, allowed)
    assert found.dtype == torch.int8
    for row in range(rows):
        spent = least = 0
        for head, page in itertools.product(range(heads), range(places)):
            now, then = int(pages.formats[row, head, page]), int(found[row, head, page])
            if page >= pages.count[row]:
                assert then == now
                continue
            at_hand = bool(pages.restorable[row, head, page])
            may = permitted(float(pages.mass[row, head, page]), now, at_hand, policy) or [now]
            assert then == now or then in may
            spent += bytes_of(then)
            least += min(bytes_of(each) for each in may)
        if policy.budget is not None:
            assert spent <= max(allowed, least)


@given(
    mass=st.lists(masses, min_size=1, max_size=5),
    ladder=ladders,
    evict=st.booleans(),
    thresholds=st.sampled_from([LevelThresholds(), LevelThresholds(0, 0, 0), LevelThresholds(1, 0.6, 0.5)]),
    share=st.floats(0.02, 1),
)
def test_no_plan_does_better_with_these_bytes(
    mass: list[float], ladder: tuple[tuple[int, int], ...], evict: bool, thresholds: LevelThresholds, share: float
) -> None:
    """Against all plans there are: none that takes as few bytes costs less, and what is left of the bytes allowed is
    less than one page's step."""
    policy = KVPolicy(budget=share, ladder=ladder, evict=evict, level_thresholds=thresholds)
    allowed = share * len(mass) * bytes_of(DENSE.id)
    found = planned(pages_of([[mass]]), policy, allowed)[0, 0].tolist()
    weights = [max(each, 4e-4) ** 0.5 for each in mass]

    def cost(plan_of_all: tuple[int, ...]) -> float:
        return sum(weight * loss_of(each) for weight, each in zip(weights, plan_of_all, strict=True))

    options = [permitted(each, NEW, True, policy) for each in mass]
    spent = sum(map(bytes_of, found))
    assume(spent <= allowed)
    best = min(cost(each) for each in itertools.product(*options) if sum(map(bytes_of, each)) <= spent)
    assert cost(tuple(found)) <= best * (1 + 1e-6) + 1e-12
    reachable = min(cost(each) for each in itertools.product(*options) if sum(map(bytes_of, each)) <= allowed)
    largest = max(weight * loss_of(min(each, key=bytes_of)) for weight, each in zip(weights, options, strict=True))
    assert cost(tuple(found)) <= reachable + largest


@given(mass=st.lists(masses, min_size=1, max_size=12), shares=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)))
def test_more_bytes_never_cost_more(mass: list[float], shares: tuple[float, float]) -> None:
    """A larger budget gives a plan that is at least as good."""
    policy = KVPolicy(level_thresholds=LevelThresholds(0, 0, 0), evict=True)
    costs = []
    for share in sorted(shares):
        found = planned(pages_of([[mass]]), policy, share * len(mass) * bytes_of(DENSE.id))[0, 0].tolist()
        costs.append(sum(max(one, 0.02) * loss_of(each) for one, each in zip(mass, found, strict=True)))
    assert costs[1] <= costs[0] * (1 + 1e-9)


@given(mass=masses, count=st.integers(2, 40), share=st.floats(0.15, 0.95))
def test_pages_that_are_alike_share_the_budget(mass: float, count: int, share: float) -> None:
    """Equal pages do not all take the worse of two formats: what is left over is less than the step of one page."""
    policy = KVPolicy(level_thresholds=LevelThresholds(0, 0, 0))
    allowed = share * count * bytes_of(DENSE.id)
    found = planned(pages_of([[[mass] * count]]), policy, allowed)[0, 0].tolist()
    spent = sum(map(bytes_of, found))
    steps = [bytes_of(each) for each in choices(policy)]
    assert spent <= allowed
    assert allowed - spent < max(better - worse for better, worse in itertools.pairwise(steps))


def test_the_newest_of_equal_pages_get_more() -> None:
    """Where the better format is not for all, it is for those that were written last."""
    policy = KVPolicy(level_thresholds=LevelThresholds(0, 0, 0), ladder=((8, 8), (4, 4)))
    eight, four = (Format(bits, bits).id for bits in (8, 4))
    found = planned(pages_of([[[3.0] * 4]]), policy, 2 * bytes_of(eight) + 2 * bytes_of(four) + 1)
    assert found[0, 0].tolist() == [four, four, eight, eight]


@given(mass=masses, thresholds=limits, evict=st.booleans())
def test_without_a_budget_the_thresholds_decide(mass: float, thresholds: LevelThresholds, evict: bool) -> None:
    """A page is dense at or above the first threshold, in eight bits at or above the second, in four at or above the
    third, and else has the fewest bits, or none where pages may be evicted."""
    policy = KVPolicy(budget=None, level_thresholds=thresholds, evict=evict)
    found = int(planned(pages_of([[[mass]]]), policy, 0.0))
    score = float(importance(torch.tensor(mass)))
    if score >= thresholds.L1_int8:
        expected = DENSE.id
    elif score >= thresholds.L2_int4:
        expected = Format(8, 8).id
    elif score >= thresholds.L3_evict:
        expected = Format(4, 4).id
    else:
        expected = EVICTED if evict else Format(2, 2).id
    assert found == expected


@pytest.mark.parametrize(
    ("mass", "expected"), [(1.0, 0.5), (6.31, 0.7), (0.158, 0.3), (1e9, 1.0), (0.0, 0.0), (1e-30, 0.0)]
)
def test_importance_is_what_the_policy_says(mass: float, expected: float) -> None:
    """An average page is 0.5, six times as much 0.7, a sixth 0.3; all within 0 and 1."""
    assert float(importance(torch.tensor(mass))) == pytest.approx(expected, abs=1e-3)


@given(
    mass=masses,
    moved=st.floats(-0.2, 0.2),
    hysteresis=st.floats(0.01, 0.15),
    budget=st.sampled_from([None, 0.9]),
    now=st.sampled_from(range(1, 5)),
)
def test_hysteresis_holds_a_page(mass: float, moved: float, hysteresis: float, budget: float | None, now: int) -> None:
    """A page keeps its format as long as its importance is near the one at which it got it, and the bytes allow."""
    policy = KVPolicy(budget=budget, hysteresis=hysteresis)
    score = float(importance(torch.tensor(mass)))
    form_id = choices(policy)[now]
    pages = pages_of([[[mass] * 3]], form_id, settled=score + moved, restorable=True)
    found = planned(pages, policy, 3.0 * bytes_of(DENSE.id))
    if abs(moved) < hysteresis * 0.999:
        assert found.tolist() == [[[form_id] * 3]]
    elif abs(moved) > hysteresis * 1.001 + 1e-6:
        free = planned(pages_of([[[mass] * 3]], form_id, restorable=True), policy, 3.0 * bytes_of(DENSE.id))
        assert found.tolist() == free.tolist()


def test_hysteresis_yields_to_the_budget() -> None:
    """Pages that would be held are not, where the row would take too much with them."""
    pages = pages_of([[[1.0] * 4]], Format(8, 8).id, settled=0.5)
    found = planned(pages, KVPolicy(), 4 * bytes_of(Format(4, 4).id))
    assert found.tolist() == [[[Format(4, 4).id] * 4]]


def test_pages_that_cannot_follow_count_against_the_budget() -> None:
    """Pages with fewer bits than the ladder has stay, and the others make do with what these leave."""
    two, eight = Format(2, 2).id, Format(8, 8).id
    policy = KVPolicy(ladder=((8, 8), (4, 4)))
    pages = pages_of([[[1.0] * 4]], [[[two, two, eight, eight]]])
    found = planned(pages, policy, 2 * bytes_of(two) + 2 * bytes_of(Format(4, 4).id))
    assert found.tolist() == [[[two, two, Format(4, 4).id, Format(4, 4).id]]]


@pytest.mark.parametrize("evict", [False, True])
def test_what_was_evicted_comes_back_only_from_a_copy(evict: bool) -> None:
    """With a copy at hand, an evicted page gets a format again when there is room; without one it stays evicted."""
    policy = KVPolicy(level_thresholds=LevelThresholds(0, 0, 0), evict=evict)
    gone = pages_of([[[1.0] * 2]], EVICTED)
    assert planned(gone, policy, 1e9).tolist() == [[[EVICTED, EVICTED]]]
    back = msgspec.structs.replace(policy, budget=0.5)
    assert planned(pages_of([[[1.0] * 2]], EVICTED, restorable=True), back, 1e9).tolist() == [[[DENSE.id] * 2]]


@pytest.mark.parametrize("budget", [None, 0.25])
def test_rows_are_planned_alone(budget: float | None) -> None:
    """A row's plan does not depend on the rows beside it."""
    generator = torch.Generator().manual_seed(5)
    mass = (torch.randn(4, 2, 9, generator=generator) * 2).exp()
    pages = pages_of(mass.tolist(), count=[9, 4, 0, 7])
    allowed = [float(each) * 2 * bytes_of(DENSE.id) * 0.25 for each in pages.count]
    together = planned(pages, KVPolicy(budget=budget), allowed)
    for row in range(4):
        alone = Pages(
            *(each[row : row + 1] for each in (pages.formats, mass, pages.settled, pages.restorable)),
            pages.count[row : row + 1],
        )
        assert torch.equal(planned(alone, KVPolicy(budget=budget), allowed[row]), together[row : row + 1])


@pytest.mark.parametrize("shape", [(0, 2, 0), (2, 2, 0), (0, 2, 3)])
def test_nothing_to_plan(shape: tuple[int, int, int]) -> None:
    """No rows or no pages: an empty plan."""
    blank = torch.zeros(shape)
    pages = Pages(blank.to(torch.int8), blank, blank, blank.bool(), torch.zeros(shape[0], dtype=torch.int64))
    assert planned(pages, KVPolicy(), 1.0).shape == shape


def test_a_page_whose_mass_is_no_number_gets_a_format() -> None:
    """NaN is a page nobody knows: it gets some format that is permitted, and spoils no other page's."""
    known = planned(pages_of([[[1.0, 2.0, 3.0]]]), KVPolicy(budget=None), 0.0)[0, 0, :2].tolist()
    found = planned(pages_of([[[1.0, 2.0, torch.nan]]]), KVPolicy(budget=None), 0.0)[0, 0].tolist()
    assert found[:2] == known
    assert found[2] in choices(KVPolicy())
