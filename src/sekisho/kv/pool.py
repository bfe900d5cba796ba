"""Memory for the pages of one format: one tensor, slots with reference counts, no more than is needed."""

import torch
from torch import Tensor

_GROWTH = 1 / 128  # of the capacity: what may lie idle
_LEAST_STEP = 1  # slots


class PagePool:
    """Slots of `page_bytes` bytes. Slots may be shared: each holder counts, and the last one to leave frees.

    Growing copies the pool, so the data may lie elsewhere after `put`: ask for `data` anew. Not for several threads.
    """

    def __init__(self, page_bytes: int, device: torch.device) -> None:
        self.page_bytes = page_bytes
        self.data = torch.empty(0, page_bytes, dtype=torch.uint8, device=device)
        self.holders = torch.zeros(0, dtype=torch.int32, device=device)
        self._free = torch.empty(0, dtype=torch.int64, device=device)

    @property
    def capacity(self) -> int:
        return self.data.shape[0]

    @property
    def used(self) -> int:
        """Slots that somebody holds."""
        return self.capacity - self._free.numel()

    @property
    def allocated_bytes(self) -> int:
        """Pages, idle slots and the books about them."""
        return sum(each.untyped_storage().nbytes() for each in (self.data, self.holders, self._free))

    @classmethod
    def restored(cls, capacity: int, slots: Tensor, pages: Tensor, holders: Tensor) -> "PagePool":
        """A pool that has (n, page_bytes) `pages` in `slots` (n,) with so many `holders` (n,) each."""
        pool = cls(pages.shape[1], pages.device)
        pool._resize(capacity)
        pool.data[slots] = pages
        pool.holders[slots] = holders
        pool._free = (pool.holders == 0).nonzero().squeeze(1)
        return pool

    def put(self, pages: Tensor) -> Tensor:
        """Stores (n, page_bytes) pages; their slots, (n,) int64, held once each."""
        count = pages.shape[0]
        if count > self._free.numel():
            self._resize(self.used + count + max(_LEAST_STEP, int((self.used + count) * _GROWTH)))
        slots, self._free = self._free[:count], self._free[count:].clone()
        self.data[slots] = pages
        self.holders[slots] = 1
        return slots

    def hold(self, slots: Tensor) -> None:
        """One more holder for each slot, (n,) int64; a slot may be named several times."""
        self.holders.index_add_(0, slots, torch.ones_like(slots, dtype=torch.int32))

    def release(self, slots: Tensor) -> None:
        """One holder fewer for each slot, (n,) int64."""
        if slots.numel() == 0:
            return
        self.holders.index_add_(0, slots, torch.full_like(slots, -1, dtype=torch.int32))
        touched = slots.unique()
        self._free = torch.cat((self._free, touched[self.holders[touched] == 0]))

    def share(self, slots: Tensor, sharers: Tensor) -> Tensor:
        """Slots just put, (n,), held by all that share them instead: `sharers` are indices into them. As int32, for a
        table."""
        self.hold(slots[sharers])
        self.release(slots)
        return slots[sharers].to(torch.int32)

    @property
    def loose(self) -> bool:
        """Whether `compact` would give back memory worth the copying."""
        return self._free.numel() > 2 * max(_LEAST_STEP, int(self.capacity * _GROWTH))

    def compact(self) -> Tensor:
        """Moves the pages together and gives memory back. Where each old slot has gone: (old capacity,) int64."""
        held = (self.holders > 0).nonzero().squeeze(1)
        moved = torch.full((self.capacity,), -1, dtype=torch.int64, device=self.data.device)
        moved[held] = torch.arange(held.numel(), device=held.device)
        spare = max(_LEAST_STEP, int(held.numel() * _GROWTH)) if held.numel() else 0
        self._take(self.data[held], self.holders[held], held.numel() + spare)
        return moved

    def _resize(self, capacity: int) -> None:
        free = self._free
        old = self.capacity
        self._take(self.data, self.holders, capacity)
        self._free = torch.cat((free, torch.arange(old, capacity, device=free.device)))

    def _take(self, data: Tensor, holders: Tensor, capacity: int) -> None:
        used = data.shape[0]
        grown = torch.empty(capacity, self.page_bytes, dtype=torch.uint8, device=data.device)
        grown[:used] = data
        counts = torch.zeros(capacity, dtype=torch.int32, device=data.device)
        counts[:used] = holders
        self.data, self.holders = grown, counts
        self._free = torch.arange(used, capacity, device=data.device)
