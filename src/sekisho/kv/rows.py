"""One layer's keys and values of several sequences, in tiers.

A row is a sequence: its first tokens (sinks) dense, then pages, then its recent tokens, dense. Rows are independent and
may have different lengths. Whatever leaves the recent window goes into a page whose format `plan` decides, and every
time pages are made, those that are there are decided upon anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sekisho.kv.formats import PAGE
from sekisho.kv.kernels.base import DenseTokens, PageView
from sekisho.kv.pages import PageTable
from sekisho.kv.plan import FRESH_MASS, Terms
from sekisho.kv.policy import KVPolicy
from sekisho.kv.rotation import Transform, centres, rotation

_SPARE = PAGE  # tokens of room behind the recent window: a page gathers there
_PARTS = ("keys", "values")


@dataclass(frozen=True)
class HeadShape:
    """What all layers' rows need to know of a model: heads and the numbers in them."""

    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class TieredRows:
    """See the module. `sinks` is taken from the policy once; the rest of a policy may change between any two tokens.

    `window`: a layer that sees only so many tokens back (None: all); pages that nobody can see are let go.
    Not for several threads. Raises ValueError on shapes that do not fit.
    """

    def __init__(self, shape: HeadShape, policy: KVPolicy, window: int | None = None) -> None:
        self.shape = shape
        self.policy = policy
        self.window = window
        self.rotation = rotation(shape.head_dim, shape.device)
        self.table = PageTable(shape.kv_heads, shape.head_dim, shape.dtype, shape.device)
        self._sinks = self._dense(0, policy.sinks)
        self._recent = self._dense(0, policy.recent_window + _SPARE)
        self._sink_length: list[int] = []
        self._recent_length: list[int] = []
        self._means = self._dense(0, 1)

    # --- what is there ---------------------------------------------------------------------------------------------

    @property
    def batch(self) -> int:
        return len(self._sink_length)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, those that were evicted included."""
        parts = zip(self._sink_length, self.table.counts, self._recent_length, strict=True)
        return [sinks + pages * PAGE + recent for sinks, pages, recent in parts]

    @property
    def sink_lengths(self) -> list[int]:
        """Tokens at each row's beginning that stay dense."""
        return list(self._sink_length)

    @property
    def dense_bytes(self) -> int:
        """Allocated for sinks and recent tokens."""
        return sum(each.untyped_storage().nbytes() for each in (*self._sinks, *self._recent))

    @property
    def allocated_bytes(self) -> int:
        """All that the cache holds on its device for this layer: tokens, pages, tables, means."""
        means = sum(each.untyped_storage().nbytes() for each in self._means)
        return self.dense_bytes + means + self.table.allocated_bytes

    @property
    def sink_room(self) -> int:
        """How many sinks a row may have."""
        return self._sinks[0].shape[2]

    @property
    def dense_tokens(self) -> int:
        """Sinks and recent tokens of all rows."""
        return sum(self._sink_length) + sum(self._recent_length)

    @property
    def used_bytes(self) -> int:
        """As `allocated_bytes`, without what is there for growth."""
        return (self.dense_tokens + self.batch) * self.dense_token_bytes + self.table.used_bytes

    @property
    def dense_token_bytes(self) -> int:
        """One token, keys and values of all heads, as it comes from the model."""
        return 2 * self.shape.kv_heads * self.shape.head_dim * self.shape.dtype.itemsize

    def _dense(self, batch: int, tokens: int) -> tuple[Tensor, Tensor]:
        size = (batch, self.shape.kv_heads, tokens, self.shape.head_dim)
        return tuple(torch.zeros(size, dtype=self.shape.dtype, device=self.shape.device) for _ in range(2))  # type: ignore[return-value]

    def _tokens(self, stored: tuple[Tensor, Tensor], length: list[int]) -> DenseTokens:
        return DenseTokens(*stored, torch.tensor(length, dtype=torch.int32, device=self.shape.device))

    # --- rows --------------------------------------------------------------------------------------------------------

    def add_rows(self, count: int) -> None:
        """New empty rows at the end."""
        more = (self._dense(count, each.shape[2]) for each in (self._sinks[0], self._recent[0], self._means[0]))
        self._sinks, self._recent, self._means = (
            (torch.cat((keys, new_keys)), torch.cat((values, new_values)))
            for (keys, values), (new_keys, new_values) in zip(
                (self._sinks, self._recent, self._means), more, strict=True
            )
        )
        for each in (self._sink_length, self._recent_length):
            each.extend([0] * count)
        self.table.add_rows(count)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps the named rows, in this order; a row named twice is shared until its copies differ. Raises IndexError
        for a row that is not there."""
        if list(rows) == list(range(self.batch)):
            return
        if any(not 0 <= row < self.batch for row in rows):
            raise IndexError(f"no rows {list(rows)} among {self.batch}")
        index = torch.tensor(list(rows), dtype=torch.int64, device=self.shape.device)
        self._sinks, self._recent, self._means = (
            (keys[index], values[index]) for keys, values in (self._sinks, self._recent, self._means)
        )
        self._sink_length, self._recent_length = (
            [each[row] for row in rows] for each in (self._sink_length, self._recent_length)
        )
        self.table.select(index)

    def state(self) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
        """What makes the rows besides their table: tensors, zero where no row has a token, and tokens by row."""
        means = {f"means.{name}": each for name, each in zip(_PARTS, self._means, strict=True)}
        kept = {}
        for tier, stored, lengths in (
            ("sinks", self._sinks, self._sink_length),
            ("recent", self._recent, self._recent_length),
        ):
            for name, into, each in zip(_PARTS, self._dense(self.batch, max(lengths, default=0)), stored, strict=True):
                for row, length in enumerate(lengths):
                    into[row, :, :length] = each[row, :, :length]
                kept[f"{tier}.{name}"] = into
        return kept | means, {"sinks": list(self._sink_length), "recent": list(self._recent_length)}

    def restore(self, tensors: Mapping[str, Tensor], lengths: Mapping[str, list[int]]) -> None:
        """The inverse of `state`, for rows of the same policy that hold nothing yet; the table is restored on its own.
        Raises ValueError on shapes that do not fit."""
        batch = len(lengths["recent"])
        for tier, stored in (("sinks", self._sinks), ("recent", self._recent), ("means", self._means)):
            fresh = self._dense(batch, stored[0].shape[2])
            for name, into in zip(_PARTS, fresh, strict=True):
                kept = tensors[f"{tier}.{name}"]
                tokens = into[:, :, : kept.shape[2]]
                if kept.shape != tokens.shape or max(lengths.get(tier, [0]), default=0) > kept.shape[2]:
                    raise ValueError(f"{tier}.{name} {tuple(kept.shape)} does not fit into {tuple(into.shape)}")
                tokens.copy_(kept)
            setattr(self, f"_{tier}", fresh)
        self._sink_length, self._recent_length = list(lengths["sinks"]), list(lengths["recent"])

    # --- growing -----------------------------------------------------------------------------------------------------

    def extend(
        self, keys: Tensor, values: Tensor, skip: Sequence[int] | None = None, mass: Tensor | None = None
    ) -> None:
        """(B, H, n, D) more tokens for each row; the first `skip[b]` of a row are padding. `mass` (B, H, n): the share
        of attention that each of them has had, where it is known."""
        batch, tokens = keys.shape[0], keys.shape[2]
        expected = (self.batch, self.shape.kv_heads, tokens, self.shape.head_dim)
        if keys.shape != expected or values.shape != expected:
            raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must be {expected}")
        skips = list(skip) if skip is not None else [0] * batch
        if len(skips) != batch or any(not 0 <= padding <= tokens for padding in skips):
            raise ValueError(f"{batch} rows of {tokens} tokens cannot skip {skips}")
        single: list[int] = []
        alike: dict[tuple[int, ...], list[int]] = {}
        for row, padding in enumerate(skips):
            if tokens - padding == 1 and self._only_appends(row):
                single.append(row)
            else:
                state = (padding, self._sink_length[row], self.table.counts[row], self._recent_length[row])
                alike.setdefault(state, []).append(row)
        if single:
            self._append(single, keys, values)
        for (padding, *_), rows in alike.items():
            part = slice(None) if len(rows) == batch else torch.tensor(rows, device=keys.device)
            theirs = mass[part][:, :, padding:] if mass is not None else None
            self._extend(rows, part, keys[part][:, :, padding:], values[part][:, :, padding:], theirs)

    def _only_appends(self, row: int) -> bool:
        """Whether one more token of a row neither is a sink nor makes a page."""
        held, full = self._recent_length[row] + 1, self._sink_length[row] == self.sink_room
        return full and held < self.policy.recent_window + PAGE and held <= self._recent[0].shape[2]

    def _append(self, rows: list[int], keys: Tensor, values: Tensor) -> None:
        """The last token of `keys` and `values` for each of some rows: what most decode steps are."""
        index = torch.tensor(rows, device=keys.device)
        at = torch.tensor([self._recent_length[row] for row in rows], device=keys.device)
        for into, new in zip(self._recent, (keys, values), strict=True):
            into[index, :, at] = new[index, :, -1].to(into.dtype)
        for row in rows:
            self._recent_length[row] += 1

    def _extend(self, rows: list[int], part: slice | Tensor, keys: Tensor, values: Tensor, mass: Tensor | None) -> None:
        """Rows that are in the same state."""
        first = rows[0]
        into_sinks = min(self._sinks[0].shape[2] - self._sink_length[first], keys.shape[2])
        if into_sinks > 0:
            at = self._sink_length[first]
            self._write(self._sinks, part, at, keys[:, :, :into_sinks], values[:, :, :into_sinks])
            for row in rows:
                self._sink_length[row] += into_sinks
            keys, values = keys[:, :, into_sinks:], values[:, :, into_sinks:]
            mass = mass[:, :, into_sinks:] if mass is not None else None
        self._extend_recent(rows, part, keys, values, mass)

    def _extend_recent(
        self, rows: list[int], part: slice | Tensor, keys: Tensor, values: Tensor, mass: Tensor | None
    ) -> None:
        held, room = self._recent_length[rows[0]], self._recent[0].shape[2]
        pages = max(0, held + keys.shape[2] - self.policy.recent_window) // PAGE
        if not pages and held + keys.shape[2] <= room:
            self._write(self._recent, part, held, keys, values)
            for row in rows:
                self._recent_length[row] += keys.shape[2]
            return
        joined = [
            torch.cat((stored[part][:, :, :held], new), 2)
            for stored, new in zip(self._recent, (keys, values), strict=True)
        ]
        rest = [each[:, :, pages * PAGE :] for each in joined]
        self._write(self._recent, part, 0, *rest)
        for row in rows:
            self._recent_length[row] = rest[0].shape[2]
        if pages:
            known = None
            if mass is not None:
                fresh = FRESH_MASS / (PAGE * (self.table.kept(rows[0]) + pages))  # of a token nobody has looked at
                known = torch.nn.functional.pad(mass, (held, 0), value=fresh)[:, :, : pages * PAGE]
            leaving = [each[:, :, : pages * PAGE] for each in joined]
            self._page_out(rows, part, leaving[0], leaving[1], known)

    @staticmethod
    def _write(stored: tuple[Tensor, Tensor], part: slice | Tensor, at: int, keys: Tensor, values: Tensor) -> None:
        for into, new in zip(stored, (keys, values), strict=True):
            into[part, :, at : at + new.shape[2]] = new.to(into.dtype)

    def _page_out(
        self, rows: list[int], part: slice | Tensor, keys: Tensor, values: Tensor, mass: Tensor | None
    ) -> None:
        """Tokens that leave the window, whole pages of them, with their `mass` (rows, H, n). The first that a row lets
        go give it its means."""
        count, more = self.table.counts[rows[0]], keys.shape[2] // PAGE
        if count == 0:
            for into, new in zip(self._means, centres(keys, values, mass), strict=True):
                into[part] = new.to(into.dtype)
        behind = self._behind(rows[0], more)
        for row in rows:
            self.table.forget_before(row, behind)
        unseen = min(more, max(0, behind - count))
        if unseen:
            self.table.add_forgotten(rows, unseen)
        if unseen < more:
            keys, values = keys[:, :, unseen * PAGE :], values[:, :, unseen * PAGE :]
            paged = mass.unflatten(2, (more, PAGE)).sum(-1)[:, :, unseen:] if mass is not None else None
            added = dict.fromkeys(rows, more - unseen)
            self.table.add_pages(rows, keys, values, paged, self._transform, self._terms(added))

    def _behind(self, row: int, more: int) -> int:
        """How many of a row's pages a sliding window will have left behind when `more` have been made: by a page's
        length, so that as many tokens can be taken back at any time."""
        if self.window is None:
            return 0
        after_sinks = (self.table.counts[row] + more) * PAGE + self._recent_length[row]
        return max(0, after_sinks - self.window - PAGE) // PAGE

    def drop_last(self, count: int) -> None:
        """Takes the last `count` tokens of every row back (all of it where a row is shorter). A page that is cut
        becomes recent tokens again: exact where its full-precision numbers are at hand, else as its codes say. Pages
        that a sliding window has left behind do not come back: the window may miss some where `count` is above 64."""
        if count < 0:
            raise ValueError(f"cannot take {count} tokens back")
        pages = list(self.table.counts)
        for row, length in enumerate(self.lengths):
            self._crop(row, max(0, length - count))
        if pages != self.table.counts:
            self.apply(self.policy)

    def _crop(self, row: int, length: int) -> None:
        sinks, pages = self._sink_length[row], self.table.counts[row]
        paged_end = sinks + pages * PAGE
        if length >= paged_end:
            self._recent_length[row] = length - paged_end
            return
        self._recent_length[row] = 0
        if length <= sinks:
            self._sink_length[row] = length
            self.table.truncate(row, 0)
            return
        whole, left = divmod(length - sinks, PAGE)
        if left:
            for into, page in zip(self._recent, self.table.page(row, whole, self._transform), strict=True):
                into[row, :, :left] = page[:, :left].to(into.dtype)
            self._recent_length[row] = left
        self.table.truncate(row, whole)

    # --- deciding ----------------------------------------------------------------------------------------------------

    def apply(self, policy: KVPolicy) -> None:
        """From now on another policy; what it asks of pages that are there happens at once. `sinks` stay."""
        if policy != self.policy:
            self.table.unsettle()
        self.policy = policy
        if policy.host_copy:
            self.table.keep_copies()
        else:
            self.table.drop_copies()
        room = policy.recent_window + _SPARE
        if room > self._recent[0].shape[2]:
            self._resize_recent(room)
        if self.batch:
            self.extend(*self._dense(self.batch, 0))
            self.table.plan(self._transform, self._terms())
        if room < self._recent[0].shape[2]:
            self._resize_recent(room)

    def _resize_recent(self, room: int) -> None:
        """Gives the recent tokens another room, in which they fit."""
        old, self._recent = self._recent, self._dense(self.batch, room)
        for row, length in enumerate(self._recent_length):
            for into, stored in zip(self._recent, old, strict=True):
                into[row, :, :length] = stored[row, :, :length]

    @property
    def _transform(self) -> Transform:
        return Transform(self._means, self.rotation)

    def _terms(self, added: Mapping[int, int] | None = None) -> Terms:
        """The policy, and what its budget leaves for each row's pages. `added`: pages by row, about to be made."""
        share = self.policy.budget if self.policy.budget is not None else 1.0
        whole = 2 * 2 * self.shape.kv_heads * self.shape.head_dim * PAGE  # bytes of all heads' page at 16 bits
        gone = self.table.forgotten  # no longer there at 16 bits either
        pages = [count - gone[row] + (added or {}).get(row, 0) for row, count in enumerate(self.table.counts)]
        allowed = [share * whole * count for count in pages]
        return Terms(self.policy, torch.tensor(allowed, dtype=torch.float64, device=self.shape.device))

    def observe(self, page_mass: Tensor, steps: Sequence[int] | None = None) -> None:
        """(B, H, P) shares of attention that one decode step laid on the pages, or the mean of `steps[b]` of row b."""
        self.table.observe(page_mass, self.policy.decay, steps)

    # --- reading -----------------------------------------------------------------------------------------------------

    def view(self, query: Tensor, scaling: float) -> PageView:
        """What a kernel needs for one query token per row, (B, H * G, D), which stands at each row's last token."""
        scaled = query.float() * scaling
        groups = scaled.unflatten(1, (self.shape.kv_heads, -1))
        bias = (groups * self._means[0].float()).sum(-1).flatten(1)
        visible = [max(0, length - self.window) if self.window else 0 for length in self.lengths]
        return PageView(
            query=scaled,
            rotated_query=scaled @ self.rotation,
            key_bias=bias,
            formats=self.table.formats,
            slots=self.table.slots,
            page_count=torch.tensor(self.table.counts, dtype=torch.int32, device=query.device),
            pools=self.table.pool_data(),
            sinks=self._tokens(self._sinks, self._sink_length),
            recent=self._tokens(self._recent, self._recent_length),
            first_visible=torch.tensor(visible, dtype=torch.int32, device=query.device),
        )

    def restored(self, rotated: Tensor, mass: Tensor) -> Tensor:
        """Values summed as quantised pages store them, (B, H * G, D), and their weight (B, H * G), turned back."""
        plain = (rotated @ self.rotation.T).unflatten(1, (self.shape.kv_heads, -1))
        weight = mass.unflatten(1, (self.shape.kv_heads, -1)).unsqueeze(-1)
        return (plain + weight * self._means[1].float()).flatten(1, 2)

    def materialise(self) -> tuple[Tensor, Tensor]:
        """Keys and values as the model would have them, (B, H, longest, D): rows end at the right, zero before them
        and where pages are gone."""
        lengths = self.lengths
        keys, values = self._dense(self.batch, max(lengths, default=0))
        stored = self.table.decoded(self._transform)
        for row, length in enumerate(lengths):
            start, sinks, recent = keys.shape[2] - length, self._sink_length[row], self._recent_length[row]
            middle = self.table.counts[row] * PAGE
            for into, first, paged, last in zip((keys, values), self._sinks, stored, self._recent, strict=True):
                into[row, :, start : start + sinks] = first[row, :, :sinks]
                into[row, :, start + sinks : start + sinks + middle] = paged[row, :, :middle].to(into.dtype)
                into[row, :, into.shape[2] - recent :] = last[row, :, :recent]
        return keys, values
