"""The pages of one layer: in which format each lies, where, and what is known of it."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sekisho.kv.clock import Clock
from sekisho.kv.formats import DENSE, EVICTED, FORMATS, PAGE, decode_pages, encode_pages, layout
from sekisho.kv.kernels import encoder_for
from sekisho.kv.plan import FRESH_MASS, LEVELS, Pages, Terms, held_bytes, importance, is_due, levels, plan
from sekisho.kv.pool import PagePool
from sekisho.kv.rotation import Transform

_AT_ONCE = 512  # pages that are packed or unpacked at a time: bounds the memory for it
_NOWHERE = -1


class PageTable:
    """(B rows, H heads, P pages) of formats, slots, attention mass. `counts[b]` pages of row b are real.

    Pages are immutable and may be shared by rows; another format means another page. Not for several threads.
    """

    def __init__(self, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.head_dim, self.dtype, self.device = head_dim, dtype, device
        self.clock = Clock()
        self.counts: list[int] = []
        self.forgotten: list[int] = []  # pages at each row's beginning that a sliding window has left behind
        self.formats = torch.full((0, kv_heads, 0), EVICTED, dtype=torch.int8, device=device)
        self.slots = torch.full((0, kv_heads, 0), _NOWHERE, dtype=torch.int32, device=device)
        self.copies = torch.full((0, kv_heads, 0), _NOWHERE, dtype=torch.int32, device=device)
        self.mass = torch.zeros(0, kv_heads, 0, device=device)
        self.settled = torch.zeros(0, kv_heads, 0, device=device)
        self._pools: dict[int, PagePool] = {}
        self._host = self._new_pool(DENSE.id, torch.device("cpu"))
        self.moves = 0  # pages that got another format after their first
        # Attention mass by level, in heads and steps; last what lay on tokens outside the pages.
        self.hits = torch.zeros(len(LEVELS) + 1, dtype=torch.float64, device=device)

    def _new_pool(self, form_id: int, device: torch.device) -> PagePool:
        return PagePool(layout(FORMATS[form_id], self.head_dim, self.dtype.itemsize).page_bytes, device)

    @property
    def pools(self) -> Mapping[int, PagePool]:
        """By format id; empty ones are not there."""
        return self._pools

    @property
    def host(self) -> PagePool:
        """Full-precision copies."""
        return self._host

    def pool_data(self) -> dict[int, Tensor]:
        """The memory that kernels read, by format id."""
        return {each: pool.data for each, pool in self._pools.items()}

    @property
    def allocated_bytes(self) -> int:
        """Pools and tables on the device."""
        tables = (getattr(self, name) for name, _ in self._tables())
        pools = sum(pool.allocated_bytes for pool in self._pools.values())
        return pools + sum(each.untyped_storage().nbytes() for each in tables)

    @property
    def used_bytes(self) -> int:
        """As `allocated_bytes`, without idle slots and the books about slots."""
        return sum(pool.used * pool.page_bytes for pool in self._pools.values()) + sum(
            each.numel() * each.element_size() for each in (getattr(self, name) for name, _ in self._tables())
        )

    @property
    def host_bytes(self) -> int:
        """Full-precision copies in the host's memory."""
        return self._host.allocated_bytes

    def exists(self) -> Tensor:
        """(B, 1, P) bool: which places of the table are a row's pages, evicted ones included."""
        counts = torch.tensor(self.counts, device=self.device)
        return torch.arange(self.formats.shape[2], device=self.device) < counts[:, None, None]

    # --- rows --------------------------------------------------------------------------------------------------------

    def add_rows(self, count: int) -> None:
        """Rows without pages."""
        self._grow(len(self.counts) + count, self.formats.shape[2])
        self.counts += [0] * count
        self.forgotten += [0] * count

    def select(self, index: Tensor) -> None:
        """The rows of `index` (n,), in its order; pages of a row that is named twice are shared."""
        order = index.tolist()
        again = [row for place, row in enumerate(order) if row in order[:place]]
        gone = [row for row in range(len(self.counts)) if row not in order]
        for form_id, slots in self._held(again).items():
            self._pools[form_id].hold(slots)
        self._host.hold(self._held_copies(again))
        self._release(self._held(gone), self._held_copies(gone))
        self.counts = [self.counts[row] for row in order]
        self.forgotten = [self.forgotten[row] for row in order]
        pages = max(self.counts, default=0)
        for name, _ in self._tables():
            setattr(self, name, getattr(self, name)[:, :, :pages][index])
        self._tidy()

    def truncate(self, row: int, pages: int) -> None:
        """Keeps the first `pages` of a row's pages."""
        gone = torch.zeros_like(self.formats, dtype=torch.bool)
        gone[row, :, pages : self.counts[row]] = True
        self._let_go(gone)
        self.counts[row], self.forgotten[row] = pages, min(pages, self.forgotten[row])
        most = max(self.counts)
        if most < self.formats.shape[2]:
            for name, _ in self._tables():
                setattr(self, name, getattr(self, name)[:, :, :most].clone())

    def forget_before(self, row: int, page: int) -> None:
        """Lets the pages of a row before `page` go, their copies too: nobody will look at them again."""
        end = min(page, self.counts[row])
        if end <= self.forgotten[row]:
            return
        gone = torch.zeros_like(self.formats, dtype=torch.bool)
        gone[row, :, self.forgotten[row] : end] = True
        self.forgotten[row] = end
        self._let_go(gone)

    def add_forgotten(self, rows: Sequence[int], count: int) -> None:
        """So many more pages at the end of rows whose earlier ones are all forgotten: nobody will look at them."""
        for row in rows:
            self.counts[row] += count
            self.forgotten[row] += count
        self._grow(len(self.counts), max(self.formats.shape[2], *self.counts))

    def kept(self, row: int) -> int:
        """Pages of a row that somebody may look at."""
        return self.counts[row] - self.forgotten[row]

    def keep_copies(self) -> None:
        """Full-precision copies of the dense pages that have none."""
        at = tuple((self.exists() & (self.formats == DENSE.id) & (self.copies == _NOWHERE)).nonzero().unbind(1))
        if at[0].numel():
            slots, sharers = self.slots[at].long().unique(return_inverse=True)
            copies = self._host.put(self._pools[DENSE.id].data[slots].cpu())
            self.copies[at] = self._host.share(copies, sharers.cpu()).to(self.device)

    def drop_copies(self) -> None:
        """Gives up what `keep_copies` and the host's copies of new pages have kept."""
        self._host.release(self._held_copies(list(range(len(self.counts)))))
        self.copies.fill_(_NOWHERE)
        self._tidy()

    def unsettle(self) -> None:
        """Hysteresis holds no page at the next decision: what decides has changed, not the pages."""
        self.settled.fill_(torch.nan)

    def _let_go(self, gone: Tensor) -> None:
        here = gone & (self.formats != EVICTED)
        forms, slots, copies = self.formats[here], self.slots[here], self.copies[gone]
        self._release(
            {int(each): slots[forms == each].long() for each in forms.unique()}, copies[copies != _NOWHERE].long()
        )
        self.formats[gone], self.slots[gone], self.copies[gone] = EVICTED, _NOWHERE, _NOWHERE
        self._tidy()

    def _held(self, rows: list[int]) -> dict[int, Tensor]:
        """Slots by format, once for each page of each of `rows` that lies there."""
        forms, slots = self.formats[rows], self.slots[rows].long()
        return {form_id: slots[forms == form_id] for form_id in self._pools} if rows else {}

    def _held_copies(self, rows: list[int]) -> Tensor:
        copies = self.copies[rows]
        return copies[copies != _NOWHERE].long().cpu()

    def _release(self, slots: Mapping[int, Tensor], copies: Tensor) -> None:
        for form_id, theirs in slots.items():
            self._pools[form_id].release(theirs)
        self._host.release(copies.cpu())

    def _tables(self) -> Iterator[tuple[str, float]]:
        """The tables and what stands where nothing is."""
        yield from (("formats", EVICTED), ("slots", _NOWHERE), ("copies", _NOWHERE), ("mass", 0.0), ("settled", 0.0))

    def _grow(self, rows: int, pages: int) -> None:
        for name, blank in self._tables():
            old = getattr(self, name)
            grown = old.new_full((rows, old.shape[1], pages), blank)
            grown[: old.shape[0], :, : old.shape[2]] = old
            setattr(self, name, grown)

    def restore(
        self,
        tables: Mapping[str, Tensor],
        counts: list[int],
        forgotten: list[int],
        pools: Mapping[int, PagePool],
        host: PagePool,
    ) -> None:
        """Takes all that another table was made of; whoever calls vouches that slots and holders agree."""
        for name, _ in self._tables():
            setattr(self, name, tables[name])
        self.counts, self.forgotten = list(counts), list(forgotten)
        self._pools, self._host = dict(pools), host

    # --- pages -------------------------------------------------------------------------------------------------------

    def add_pages(
        self, rows: list[int], keys: Tensor, values: Tensor, mass: Tensor | None, transform: Transform, terms: Terms
    ) -> None:
        """(rows, H, n * PAGE, D) tokens become n pages at the end of each of `rows`, which have the same number of
        pages; then these are decided upon or, from time to time, all pages of these rows. `mass` (rows, H, n): their
        share of attention, where it is known."""
        first, count = self.counts[rows[0]], keys.shape[2] // PAGE
        if first + count > self.formats.shape[2]:
            self._grow(len(self.counts), first + count)
        for row in rows:
            self.counts[row] += count
        index, span = torch.tensor(rows, device=self.device), slice(first, first + count)
        self.formats[index, :, span] = DENSE.id
        self.mass[index, :, span] = FRESH_MASS if mass is None else mass * self.kept(rows[0])
        self.settled[index, :, span] = torch.nan
        fresh = torch.zeros_like(self.formats, dtype=torch.bool)
        fresh[index, :, span] = True
        # Rows in ascending order, so that the pages come in the order in which a mask finds them.
        order = index.argsort()
        paged = [each[order].unflatten(2, (count, PAGE)).flatten(0, 2) for each in (keys, values)]
        if terms.policy.host_copy:
            copies = [each.to(self.dtype).cpu() for each in paged]
            dense = encode_pages(copies[0], copies[1], DENSE)
            self.copies[fresh] = self._host.put(dense).to(self.device, torch.int32)
        target = self._target(terms, fresh, index, span)
        if is_due(first, count) or self._too_large(target[index], terms, index):
            target = self._target(terms, fresh, index, slice(0, first + count))
        for form_id in target[fresh].unique().tolist():
            places = (fresh & (target == form_id)).nonzero()
            mine = (target[fresh] == form_id).nonzero().squeeze(1)
            for part, chosen in zip(places.split(_AT_ONCE), mine.split(_AT_ONCE), strict=True):
                slots = self._store(part, form_id, paged[0][chosen], paged[1][chosen], transform)
                self.slots[tuple(part.unbind(1))] = slots.to(torch.int32)
        self.formats = torch.where(fresh, target, self.formats)
        self._settle(fresh | self._move(target, ~fresh, transform))

    def plan(self, transform: Transform, terms: Terms) -> None:
        """Decides about all pages anew."""
        nothing = torch.zeros_like(self.formats, dtype=torch.bool)
        every = torch.arange(len(self.counts), device=self.device)
        whole = slice(0, self.formats.shape[2])
        self._settle(self._move(self._target(terms, nothing, every, whole), ~nothing, transform))

    def _target(self, terms: Terms, fresh: Tensor, rows: Tensor, span: slice) -> Tensor:
        """The plan for the pages of `span` of `rows` (n,), which may take their part of what is allowed; all others
        stay as they are."""
        with self.clock.measure("planning"):
            at_hand = fresh | (self.formats == DENSE.id) | (self.copies != _NOWHERE)
            formats, mass, settled, reach = (
                each[rows][:, :, span] for each in (self.formats, self.mass, self.settled, at_hand)
            )
            last = torch.tensor(self.counts, dtype=torch.int64, device=self.device)[rows]
            kept = torch.tensor([self.kept(row) for row in rows.tolist()], device=self.device)
            part = (last - span.start) / kept.clamp(min=1) if span.start else torch.ones_like(kept)
            pages = Pages(formats, mass, settled, reach, last.clamp(max=span.stop) - span.start)
            allowed = terms.allowed_bytes[rows] * part.clamp(max=1)
            target = self.formats.clone()
            target[rows, :, span] = plan(pages, terms.policy, self.head_dim, self.dtype.itemsize, allowed)
            return target

    def _too_large(self, formats: Tensor, terms: Terms, rows: Tensor) -> bool:
        """Whether some of `rows` (n,) would take more than is allowed with these formats (n, H, P)."""
        if terms.policy.budget is None:
            return False
        held = held_bytes(formats, self.exists()[rows], self.head_dim, self.dtype.itemsize)
        return bool((held > terms.allowed_bytes[rows]).any())

    def _settle(self, changed: Tensor) -> None:
        self.settled = torch.where(changed, importance(self.mass), self.settled)
        self._tidy()

    def _store(self, places: Tensor, form_id: int, keys: Tensor, values: Tensor, transform: Transform | None) -> Tensor:
        """(n, PAGE, D) numbers into new slots, (n,), for the pages at `places` (n, 3). `transform`: they are as the
        model gave them; None: as the format stores them."""
        if form_id == EVICTED:
            return torch.full((places.shape[0],), _NOWHERE, device=self.device)
        with self.clock.measure("packing"):
            if form_id == DENSE.id:
                keys, values = keys.to(self.dtype), values.to(self.dtype)
            elif transform is not None:
                keys, values = transform.stored(keys, values, places[:, :2])
            if form_id not in self._pools:
                self._pools[form_id] = self._new_pool(form_id, self.device)
            encode = encode_pages if form_id == DENSE.id else encoder_for(keys.device)
            return self._pools[form_id].put(encode(keys, values, FORMATS[form_id]))

    def _move(self, target: Tensor, among: Tensor, transform: Transform) -> Tensor:
        """Brings pages into their target's format; which ones, (B, H, P) bool."""
        changed = among & self.exists() & (target != self.formats)
        for old in self.formats[changed].unique().tolist():
            for new in target[changed & (self.formats == old)].unique().tolist():
                here = changed & (self.formats == old) & (target == new)
                for copied in (here & (self.copies != _NOWHERE), here & (self.copies == _NOWHERE)):
                    if bool(copied.any()):
                        self._convert(copied.nonzero(), old, new, transform)
                self.moves += int(here.sum())
        self.formats = torch.where(changed, target, self.formats)
        return changed

    def _convert(self, places: Tensor, old: int, new: int, transform: Transform) -> None:
        """Pages that have full-precision copies, or of which none has one: those are where the numbers come from.
        Pages that are shared stay so where they move together."""
        at = tuple(places.unbind(1))
        slots, copies = self.slots[at].long(), self.copies[at].long()
        from_copies = int(copies[0]) != _NOWHERE
        sources, sharers = (copies if from_copies else slots).unique(return_inverse=True)
        one = torch.empty_like(sources).scatter_(0, sharers, torch.arange(sharers.numel(), device=self.device))
        parts = []
        for source, owner in zip(sources.split(_AT_ONCE), places[one].split(_AT_ONCE), strict=True):
            if new == EVICTED:
                break
            if from_copies:
                stored = self._host.data[source.cpu()].to(self.device)
                numbers = decode_pages(stored, DENSE, self.head_dim, self.dtype, self.dtype)
            else:
                numbers = self.numbers(old, source, torch.float32)
            plain = from_copies or old == DENSE.id
            parts.append(self._store(owner, new, *numbers, transform if plain else None))
        self.slots[at] = self._pools[new].share(torch.cat(parts), sharers) if parts else _NOWHERE
        if old != EVICTED:
            self._pools[old].release(slots)

    def numbers(self, form_id: int, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(n, PAGE, D) keys and values as they are stored in `slots` (n,)."""
        pages = self._pools[form_id].data[slots]
        return decode_pages(pages, FORMATS[form_id], self.head_dim, dtype, self.dtype)

    def observe(self, page_mass: Tensor, decay: float, steps: Sequence[int] | None = None) -> None:
        """(B, H, P) shares of attention, in one step or the mean of `steps[b]` of row b; what is not finite says
        nothing. `decay` is for each step. Raises ValueError on another shape."""
        if page_mass.shape != self.mass.shape:
            raise ValueError(f"attention on pages {tuple(page_mass.shape)}, but there are {tuple(self.mass.shape)}")
        kept = [self.kept(row) for row in range(len(self.counts))]
        seen = page_mass.nan_to_num(0.0, 0.0, 0.0)
        average = torch.tensor(kept, dtype=torch.float32, device=self.device)[:, None, None]
        many = torch.tensor(steps if steps is not None else [1] * len(kept), dtype=torch.float64, device=self.device)
        self.mass.lerp_(seen * average, (1 - decay**many).float()[:, None, None])
        shares = seen.double() * many[:, None, None]
        self.hits.index_add_(0, levels(self.formats).flatten(), shares.flatten())
        self.hits[-1] += many.sum() * shares.shape[1] - shares.sum()

    def decoded(self, transform: Transform) -> tuple[Tensor, Tensor]:
        """(B, H, P * PAGE, D) keys and values as the model would have them, zero where pages are gone."""
        keys, values = (
            torch.zeros(*self.formats.shape, PAGE, self.head_dim, dtype=self.dtype, device=self.device)
            for _ in range(2)
        )
        for form_id in self._pools:
            for places in (self.exists() & (self.formats == form_id)).nonzero().split(_AT_ONCE):
                at = tuple(places.unbind(1))
                found = self.numbers(form_id, self.slots[at].long(), torch.float32)
                plain = found if form_id == DENSE.id else transform.plain(*found, places[:, :2])
                keys[at], values[at] = (each.to(self.dtype) for each in plain)
        return keys.flatten(2, 3), values.flatten(2, 3)

    def page(self, row: int, page: int, transform: Transform) -> tuple[Tensor, Tensor]:
        """(H, PAGE, D) keys and values of one page of a row, as the model would have them; from the full-precision
        copies where there are such. Where the page is gone, the means of its head are the best guess."""
        keys, values = (each[row].float().repeat(1, PAGE, 1) for each in transform.means)
        for head, (form_id, slot, copy) in enumerate(
            zip(self.formats[row, :, page], self.slots[row, :, page].long(), self.copies[row, :, page], strict=True)
        ):
            owner = torch.tensor([[row, head]], device=self.device)
            if int(copy) != _NOWHERE:
                stored = self._host.data[int(copy)].unsqueeze(0).to(self.device)
                found = decode_pages(stored, DENSE, self.head_dim, torch.float32, self.dtype)
            elif int(form_id) == EVICTED:
                continue
            else:
                found = self.numbers(int(form_id), slot.unsqueeze(0), torch.float32)
                found = found if int(form_id) == DENSE.id else transform.plain(*found, owner)
            keys[head], values[head] = found[0][0], found[1][0]
        return keys, values

    def _tidy(self) -> None:
        """Gives memory back that pools no longer need."""
        for form_id, pool in list(self._pools.items()):
            if pool.used == 0:
                del self._pools[form_id]
            elif pool.loose:
                moved = pool.compact()
                here = self.exists() & (self.formats == form_id)
                self.slots[here] = moved[self.slots[here].long()].to(torch.int32)
        if self._host.capacity and not self._host.used:
            self._host = self._new_pool(DENSE.id, torch.device("cpu"))
        elif self._host.loose:
            moved = self._host.compact().to(self.device)
            here = self.copies != _NOWHERE
            self.copies[here] = moved[self.copies[here].long()].to(torch.int32)
