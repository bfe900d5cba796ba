"""What a `TieredRows` should hold, in plain dense tensors, and everything that must be true of one after each step."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sekisho.kv.formats import DENSE, EVICTED, FORMATS, PAGE, layout
from sekisho.kv.plan import DISTORTION
from sekisho.kv.policy import KVPolicy
from sekisho.kv.rows import HeadShape, TieredRows

CPU = torch.device("cpu")


@dataclass
class Row:
    """One sequence as the model gave it, (H, n, D) each."""

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[1]


@dataclass
class Shadow:
    """Tiered rows and their shadow, changed by the same steps. Tokens are drawn from a normal distribution, a mean for
    each channel; every step is followed by `check`."""

    rows: TieredRows
    seed: int = 0
    thorough: bool = True  # whether numbers and budget are checked after each step, or only what is held
    truth: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = self.rows.shape
        self.generator = torch.Generator().manual_seed(self.seed)
        self.means = torch.randn(2, 1, shape.kv_heads, 1, shape.head_dim, generator=self.generator)

    def tokens(self, batch: int, count: int) -> tuple[Tensor, Tensor]:
        shape = self.rows.shape
        size = (2, batch, shape.kv_heads, count, shape.head_dim)
        keys, values = (torch.randn(size, generator=self.generator) + self.means).to(shape.dtype)
        return keys, values

    # --- steps ---

    def add_rows(self, count: int) -> None:
        self.rows.add_rows(count)
        empty = torch.zeros(self.rows.shape.kv_heads, 0, self.rows.shape.head_dim, dtype=self.rows.shape.dtype)
        self.truth += [Row(empty, empty) for _ in range(count)]
        self.check()

    def extend(self, count: int, skip: list[int] | None = None, known: bool = False) -> None:
        keys, values = self.tokens(len(self.truth), count)
        mass = torch.rand(keys.shape[:3], generator=self.generator).softmax(-1) if known else None
        before = self.snapshot()
        self.rows.extend(keys, values, skip, mass)
        for place, row in enumerate(self.truth):
            first = skip[place] if skip else 0
            row.keys = torch.cat((row.keys, keys[place, :, first:]), 1)
            row.values = torch.cat((row.values, values[place, :, first:]), 1)
        self.check(before)

    def select(self, order: list[int]) -> None:
        self.rows.select(order)
        self.truth = [Row(self.truth[row].keys, self.truth[row].values) for row in order]
        self.check()

    def drop_last(self, count: int) -> None:
        """A page that is cut gives what it held: the shadow takes that over once it has been judged as a page."""
        self.check()
        stored = self.rows.materialise()
        copies = [self.restored(row, each.length - count) for row, each in enumerate(self.truth)]
        self.rows.drop_last(count)
        found = self.rows.materialise()
        for place, row in enumerate(self.truth):
            kept = max(0, row.length - count)
            row.keys, row.values = row.keys[:, :kept], row.values[:, :kept]
            sinks = min(kept, self.rows.sink_lengths[place])
            cut = kept - sinks - (kept - sinks) % PAGE + sinks  # where the page that was cut began
            if copies[place] is not None:
                start = found[0].shape[2] - kept
                for mine, theirs, held in zip((row.keys, row.values), found, stored, strict=True):
                    now = theirs[place, :, start + cut : start + kept]
                    then = held[place, :, held.shape[2] - kept - count :][:, cut:kept]
                    for head, copied in enumerate(copies[place]):
                        if copied:
                            assert torch.equal(now[head], mine[head, cut:kept])
                        elif bool((then[head] != 0).any()):
                            assert torch.allclose(now[head].float(), then[head].float(), rtol=1e-2, atol=1e-2)
                        mine[head, cut:kept] = now[head]
        self.check()

    def restored(self, row: int, kept: int) -> list[bool] | None:
        """Which heads of the page that a crop to `kept` tokens cuts come back as they were; None: none is cut."""
        sinks, table = self.rows.sink_lengths[row], self.rows.table
        page = (kept - sinks) // PAGE
        if kept <= sinks or page >= table.counts[row] or (kept - sinks) % PAGE == 0:
            return None
        self.truth[row] = Row(self.truth[row].keys.clone(), self.truth[row].values.clone())
        copies, forms = table.copies[row, :, page], table.formats[row, :, page]
        return [int(copy) >= 0 or int(form) == DENSE.id for copy, form in zip(copies, forms, strict=True)]

    def apply(self, policy: KVPolicy) -> None:
        before = self.snapshot()
        self.rows.apply(policy)
        self.check(before)

    def observe(self, power: float = 3.0) -> None:
        """Attention on pages, some of which get far more than others; sums to less than one for each head."""
        mass = (torch.randn(self.rows.table.mass.shape, generator=self.generator) * power).exp()
        mass = mass * (self.rows.table.exists() & (self.rows.table.formats != EVICTED))
        self.rows.observe(mass / (mass.sum(-1, keepdim=True) + 1))

    # --- what must be true ---

    def snapshot(self) -> tuple[Tensor, Tensor, list[int]]:
        table = self.rows.table
        return table.formats.clone(), table.copies.clone(), list(table.counts)

    def check(self, before: tuple[Tensor, Tensor, list[int]] | None = None) -> None:
        assert self.rows.lengths == [row.length for row in self.truth]
        self.check_books()
        self.check_memory()
        if self.thorough:
            self.check_numbers()
            self.check_budget()
        if before is not None:
            self.check_moves(*before)

    def check_books(self) -> None:
        """Every slot and every copy that a table names is in its pool, held exactly as often as it is named; nothing
        else is held; what is beyond a row's end is blank; forgotten pages are gone."""
        table = self.rows.table
        assert len(table.counts) == len(table.forgotten) == self.rows.batch == table.formats.shape[0]
        assert table.formats.shape[2] == max(table.counts, default=0)
        named: Counter[tuple[int, int]] = Counter()
        copied: Counter[int] = Counter()
        for row, (count, gone) in enumerate(zip(table.counts, table.forgotten, strict=True)):
            assert 0 <= gone <= count
            for head in range(self.rows.shape.kv_heads):
                forms, slots = table.formats[row, head].tolist(), table.slots[row, head].tolist()
                copies = table.copies[row, head].tolist()
                assert set(forms[count:]) <= {EVICTED}
                assert set(forms[:gone]) <= {EVICTED}
                assert set(copies[count:] + copies[:gone]) <= {-1}
                named.update((form, slot) for form, slot in zip(forms, slots, strict=True) if form != EVICTED)
                copied.update(copy for copy in copies if copy >= 0)
        pools = {**table.pools}
        assert set(pools) == {form for form, _ in named}
        for form, pool in pools.items():
            expected = [named[form, slot] for slot in range(pool.capacity)]
            assert pool.holders.tolist() == expected
            assert pool.used == sum(many > 0 for many in expected)
        assert sum(named.values()) == sum(int(pool.holders.sum()) for pool in pools.values())
        assert table.host.holders.tolist() == [copied[slot] for slot in range(table.host.capacity)]
        if not copied:
            assert table.host_bytes == 0

    def check_memory(self) -> None:
        """The bytes that are told are those of the storages, each counted once; what is idle is little."""
        rows, table = self.rows, self.rows.table
        tensors = [*rows._sinks, *rows._recent, *rows._means]
        tensors += [table.formats, table.slots, table.copies, table.mass, table.settled]
        for pool in table.pools.values():
            tensors += [pool.data, pool.holders, pool._free]
        storages = {each.data_ptr(): each.nbytes() for each in map(Tensor.untyped_storage, tensors)}
        assert rows.allocated_bytes == sum(storages.values())
        assert rows.used_bytes <= rows.allocated_bytes
        for pool in table.pools.values():
            assert pool.capacity - pool.used <= 2 * max(8, pool.capacity // 32)
        if rows.batch == 0:
            assert rows.allocated_bytes == 0

    def check_numbers(self) -> None:
        """Dense tokens and dense pages are the model's numbers, bit for bit; evicted ones are zero; those in between
        are as near as their formats promise."""
        keys, values = self.rows.materialise()
        for place, row in enumerate(self.truth):
            sinks, pages = self.rows.sink_lengths[place], self.rows.table.counts[place]
            start, end = sinks, sinks + pages * PAGE
            for part, (found, true) in enumerate(zip((keys, values), (row.keys, row.values), strict=True)):
                mine = found[place, :, found.shape[2] - row.length :]
                assert torch.equal(mine[:, :start], true[:, :start])
                assert torch.equal(mine[:, end:], true[:, end:])
                if pages:
                    paged = (each[:, start:end].float().unflatten(1, (pages, PAGE)) for each in (mine, true))
                    self.check_pages(place, part, *paged)

    def check_pages(self, row: int, part: int, got: Tensor, was: Tensor) -> None:
        """(H, pages, PAGE, D) numbers of one row, keys or values."""
        mean = self.rows._means[part][row].float()[:, :, None]  # (H, 1, 1, D)
        size = (was - mean).square().mean((2, 3))
        error = (got - was).square().mean((2, 3))
        rounding = (torch.finfo(self.rows.shape.dtype).eps * was.abs().amax((2, 3))).square() + 1e-10
        for head, forms in enumerate(self.rows.table.formats[row, :, : got.shape[1]].tolist()):
            for page, form_id in enumerate(forms):
                if form_id == EVICTED:
                    assert not bool(got[head, page].any())
                elif form_id == DENSE.id:
                    assert torch.equal(got[head, page], was[head, page])
                else:
                    bits = (FORMATS[form_id].key_bits, FORMATS[form_id].value_bits)[part]
                    # Four times the distortion: a page may have come down by several steps, each with its own error.
                    bound = 4 * DISTORTION[bits] * size[head, page] + rounding[head, page]
                    assert error[head, page] <= bound, (FORMATS[form_id], float(error[head, page] / size[head, page]))

    def check_budget(self) -> None:
        """A row's pages take no more than its budget, or none of them can take less."""
        rows, table = self.rows, self.rows.table
        if rows.policy.budget is None:
            return
        item = rows.shape.dtype.itemsize
        sizes = {form_id: layout(form, rows.shape.head_dim, item).page_bytes for form_id, form in FORMATS.items()}
        sizes[EVICTED] = 0
        whole = 2 * 2 * rows.shape.head_dim * PAGE * rows.shape.kv_heads
        for row, (count, gone) in enumerate(zip(table.counts, table.forgotten, strict=True)):
            spent = sum(sizes[each] for each in table.formats[row, :, :count].flatten().tolist())
            if spent > rows.policy.budget * whole * (count - gone) + 1e-6:
                least = rows.policy.ladder[-1]
                for form_id in table.formats[row, :, :count].flatten().tolist():
                    assert form_id == EVICTED or not reaches(form_id, least)

    def check_moves(self, formats: Tensor, copies: Tensor, counts: list[int]) -> None:
        """What has no full-precision copy goes down only, in keys and in values."""
        table = self.rows.table
        for row, count in enumerate(counts):
            for head in range(self.rows.shape.kv_heads):
                for page in range(min(count, table.counts[row])):
                    old, new = int(formats[row, head, page]), int(table.formats[row, head, page])
                    if int(copies[row, head, page]) < 0 and new != old:
                        assert new == EVICTED or reaches(old, (FORMATS[new].key_bits, FORMATS[new].value_bits))


def reaches(form_id: int, bits: tuple[int, int]) -> bool:
    """Whether a page in one format can come down to others' bits, and would be smaller there."""
    if form_id == EVICTED:
        return False
    form = FORMATS[form_id]
    return bits[0] <= form.key_bits and bits[1] <= form.value_bits and sum(bits) < form.key_bits + form.value_bits


def shadow(policy: KVPolicy, shape: HeadShape | None = None, window: int | None = None, seed: int = 0) -> Shadow:
    return Shadow(TieredRows(shape or HeadShape(2, 16, torch.float32, CPU), policy, window), seed)
