"""Which format each page should have: a pure function from importance, budget and policy to formats.

The cost of a page in format f is `root of its mass * distortion(f)`, its price `bytes(f)`. Per row the total cost is
the least possible for the bytes that it takes: one price of a byte (a Lagrange multiplier) decides for all pages, as in
the bit allocation of Shoham and Gersho (1988), and of pages that are alike as many as fit get the better format. A page
can go down only, unless its full-precision copy is at hand.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor

from sekisho.kv.formats import DENSE, EVICTED, FORMATS, Format, layout
from sekisho.kv.policy import KVPolicy

# Mean squared error of the quantiser on a normal variable, relative to its variance; 8 bits: a row's largest in 127.
DISTORTION: Final = {16: 0.0, 8: 5e-5, 4: 0.0095, 3: 0.0345, 2: 0.1175}
KEY_WEIGHT: Final = 6.0  # a key moves every weight of its query, a value only its own share: measured
EVICTED_DISTORTION: Final = KEY_WEIGHT + 1.0  # all of a key and a value
FRESH_MASS: Final = 5.0  # of a page nobody has looked at yet: well above average, for what is given up stays so
_LEAST_MASS: Final = 4e-4  # of an average page: what nobody looks at now may be asked for later
_ROUNDS: Final = 32
LEVELS: Final = ("L0", "L1", "L2", "L3")


def level(form_id: int) -> int:
    """Index into `LEVELS`: dense; eight bits; fewer, for keys or for values; gone."""
    if form_id == EVICTED:
        return 3
    form = FORMATS[form_id]
    return 0 if form.dense else 1 if min(form.key_bits, form.value_bits) == 8 else 2


def levels(formats: Tensor) -> Tensor:
    """`level` of each of many format ids, int64."""
    return _level_table(formats.device)[formats.long() + 1]


@cache
def _level_table(device: torch.device) -> Tensor:
    return torch.tensor([level(each) for each in (EVICTED, *sorted(FORMATS))], device=device)


@dataclass(frozen=True)
class Pages:
    """The pages of B rows: what they are now and what is known of them. All (B, H, P); `count[b]` of row b exist."""

    formats: Tensor  # int8
    mass: Tensor  # float32: attention on the page, times the number of pages in the row (1: an average page)
    settled: Tensor  # float32: the importance at which the page got its format; NaN: it has none yet
    restorable: Tensor  # bool: full-precision numbers are at hand
    count: Tensor  # (B,) int64


@dataclass(frozen=True)
class Terms:
    """What a decision about pages rests on. `allowed_bytes` (B,): what each row's pages may take."""

    policy: KVPolicy
    allowed_bytes: Tensor


def is_due(before: int, more: int) -> bool:
    """Whether so many more pages are a reason to decide about all of a row's pages anew: about sixteen times while
    their number doubles, every fourth page at first. A plan costs as much as many decode steps."""
    stride = max(4, 1 << max(0, (before + more).bit_length() - 5))
    return before // stride != (before + more) // stride


def importance(mass: Tensor) -> Tensor:
    """0 to 1, see `policy`; `mass` 1 is an average page."""
    return (0.5 + torch.log10(mass.clamp(min=1e-12)) / 4).clamp(0, 1)


def choices(policy: KVPolicy) -> tuple[int, ...]:
    """The format ids a page may have under a policy, from best to least."""
    quantised = [Format(*step).id for step in policy.ladder]
    return (DENSE.id, *quantised, *([EVICTED] if policy.evict else []))


def plan(pages: Pages, policy: KVPolicy, head_dim: int, dense_itemsize: int, allowed_bytes: Tensor) -> Tensor:
    """The format id for each page, (B, H, P) int8; pages beyond a row's count keep theirs. `allowed_bytes` (B,) is for
    pages alone and is not looked at where the policy has no budget. Where even the least formats do not fit, they are
    the answer."""
    ids = choices(policy)
    score = importance(pages.mass)
    exists = torch.arange(pages.formats.shape[2], device=score.device) < pages.count[:, None, None]
    reachable, within = _reachable(pages, ids), _within(score, ids, policy)
    may = torch.where((reachable & within).any(-1, keepdim=True), reachable & within, reachable)
    # What lies lower than the policy's least, without a copy, stays as it is, and where it is.
    stuck, exists = exists & ~may.any(-1), exists & may.any(-1)
    allowed_bytes = allowed_bytes - held_bytes(pages.formats, stuck, head_dim, dense_itemsize)
    settled = exists & ((score - pages.settled).abs() <= policy.hysteresis) & _is_choice(pages.formats, ids)
    prices, costs = _prices(ids, head_dim, dense_itemsize, score.device), _costs(pages.mass, ids)
    if policy.budget is None:
        chosen = torch.where(may, torch.arange(len(ids), device=score.device), len(ids)).amin(-1)
    else:
        held = _only_now(pages.formats, ids)
        first = torch.where(settled[..., None], held, may)
        chosen = _allocate(first, exists, prices, costs, allowed_bytes)
        over = _spent(chosen, exists, prices) > allowed_bytes
        if bool((over[:, None, None] & settled).any()):
            unheld = _allocate(may, exists, prices, costs, allowed_bytes)
            chosen = torch.where(over[:, None, None], unheld, chosen)
        settled = settled & ~over[:, None, None]
    target = torch.tensor(ids, dtype=torch.int8, device=score.device)[chosen.clamp(max=len(ids) - 1)]
    return torch.where(exists & ~settled, target, pages.formats)


def _prices(ids: tuple[int, ...], head_dim: int, dense_itemsize: int, device: torch.device) -> Tensor:
    sizes = [0 if each == EVICTED else layout(FORMATS[each], head_dim, dense_itemsize).page_bytes for each in ids]
    return torch.tensor(sizes, dtype=torch.float64, device=device)


def held_bytes(formats: Tensor, among: Tensor, head_dim: int, dense_itemsize: int) -> Tensor:
    """(B,): bytes of the pages of `among` as they are."""
    sizes = _prices((EVICTED, *sorted(FORMATS)), head_dim, dense_itemsize, formats.device)
    return (sizes[formats.long() + 1] * among).sum((1, 2))


def _costs(mass: Tensor, ids: tuple[int, ...]) -> Tensor:
    """(B, H, P, choices): what each choice costs in quality. By the root of the mass: tomorrow's attention is nearer to
    the mean than today's. Measured."""
    losses = [EVICTED_DISTORTION if each == EVICTED else _distortion(FORMATS[each]) for each in ids]
    return mass.clamp(min=_LEAST_MASS).sqrt()[..., None].double() * torch.tensor(losses, device=mass.device)


def _distortion(form: Format) -> float:
    return KEY_WEIGHT * DISTORTION[form.key_bits] + DISTORTION[form.value_bits]


def _is_choice(formats: Tensor, ids: tuple[int, ...]) -> Tensor:
    return _only_now(formats, ids).any(-1)


def _only_now(formats: Tensor, ids: tuple[int, ...]) -> Tensor:
    return formats[..., None] == torch.tensor(ids, dtype=torch.int8, device=formats.device)


def _reachable(pages: Pages, ids: tuple[int, ...]) -> Tensor:
    """(B, H, P, choices): a copy at hand reaches all; what is quantised reaches itself and fewer bits, in keys and in
    values."""
    bits = torch.zeros(max(FORMATS) + 2, 2, dtype=torch.int16, device=pages.formats.device)
    for each, form in FORMATS.items():
        bits[each + 1] = torch.tensor([form.key_bits, form.value_bits])
    now = bits[pages.formats.long() + 1]
    then = bits[torch.tensor(ids, device=pages.formats.device) + 1]
    lower = (then <= now[..., None, :]).all(-1)
    return lower | pages.restorable[..., None]


def _within(score: Tensor, ids: tuple[int, ...], policy: KVPolicy) -> Tensor:
    """(B, H, P, choices): what the thresholds allow. With a budget they say only what may be evicted."""
    limits = policy.level_thresholds
    last = len(policy.ladder)  # index of the least quantised format in ids
    allowed = torch.ones(*score.shape, len(ids), dtype=torch.bool, device=score.device)
    if policy.budget is not None:
        if policy.evict:
            allowed[..., -1] = score < limits.L3_evict
        return allowed
    allowed[..., 0] = score >= limits.L1_int8
    for index, step in enumerate(policy.ladder, start=1):
        if index < last:
            least = limits.L2_int4 if min(step) == 8 else limits.L3_evict
            allowed[..., index] = score >= least
    if policy.evict:
        allowed[..., -1] = score < limits.L3_evict
        allowed[..., last] = score >= limits.L3_evict
    return allowed


def _allocate(may: Tensor, exists: Tensor, prices: Tensor, costs: Tensor, allowed: Tensor) -> Tensor:
    """(B, H, P): the choice for each page at the least price of a byte with which its row stays within its bytes."""
    costs = costs.masked_fill(~may, torch.inf)
    batch = may.shape[0]
    low, high = (torch.full((batch,), power, dtype=torch.float64, device=may.device) for power in (-14.0, 4.0))
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        over = _spent(_cheapest(costs, prices, middle), exists, prices) > allowed
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return _filled(_cheapest(costs, prices, high), _cheapest(costs, prices, low), exists, prices, allowed)


def _filled(fits: Tensor, better: Tensor, exists: Tensor, prices: Tensor, allowed: Tensor) -> Tensor:
    """Pages that are alike change their choice at the same price, all or none: of those between two choices as many
    get the better one as still fit, the newest first."""
    more = (prices[better] - prices[fits]) * exists
    taken = more.transpose(1, 2).flip(1).flatten(1).cumsum(1).unflatten(1, (more.shape[2], more.shape[1]))
    room = (allowed - _spent(fits, exists, prices))[:, None, None]
    return torch.where(taken.flip(1).transpose(1, 2) <= room, better, fits)


def _cheapest(costs: Tensor, prices: Tensor, log_price: Tensor) -> Tensor:
    return (costs + (10.0**log_price)[:, None, None, None] * prices).argmin(-1)


def _spent(chosen: Tensor, exists: Tensor, prices: Tensor) -> Tensor:
    return (prices[chosen] * exists).sum((1, 2))
