"""Reads a prompt at 16 bits and puts it into a slot of the keeper. Whatever goes wrong is counted and told, and the
prompt is then read by the keeper: no request fails for it."""

import asyncio
import itertools
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.http_client import HttpClient, HttpTrouble
from sekisho.engines.llama_demotion.counters import Counters
from sekisho.engines.llama_demotion.slots import Slot, Tokens, as_tokens, common_prefix, worth_demoting
from sekisho.engines.llama_demotion.transfer import Storing, store_anew
from sekisho.engines.llama_demotion.usage import Reading
from sekisho.engines.slot_file import SlotFileProblem

_READING_S: Final = 86_400.0  # as long as the client waits; it is the one that gives up
_STORING_S: Final = 600.0
_SHOWN: Final = 200
_NOTHING: Final = as_tokens(())
T = TypeVar("T")


class _Refused(Exception):
    """The reader or the keeper did not do what it was asked for."""


class _Timings(msgspec.Struct, frozen=True):
    cache_n: int = 0


class _Said(msgspec.Struct, frozen=True):
    timings: _Timings = _Timings()


class _Moved(msgspec.Struct, frozen=True):
    """What became of a slot: saved with so many bytes, or restored."""

    n_saved: int = 0
    n_written: int = 0
    n_restored: int = 0


class Reader:
    """One prompt at a time, in the order in which they came. `context`: tokens that a slot has room for."""

    def __init__(
        self,
        reader: HttpClient,
        keeper: HttpClient,
        folder: Path,
        storing: Storing,
        context: int,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._reader, self._keeper = reader, keeper
        self._folder, self._storing, self._context = folder, storing, context
        self._clock, self._counters = clock, counters
        self._turn = asyncio.Lock()
        self._holds = _NOTHING
        self._names = itertools.count()
        self._unsuited = False

    async def read(self, prompt: Tokens, slot: Slot) -> Reading | None:
        """Brings the prompt into `slot`; None where that is not worth it or went wrong. Cancelled, it stops the
        reader's work at once, but a transfer that has begun is ended first, so that no file is left."""
        if not self._is_worth_it(prompt, slot):
            return None
        async with self._turn:
            if not self._is_worth_it(prompt, slot):  # it may have read another prompt meanwhile
                return None
            try:
                return await self._read(prompt, slot)
            except _Refused as error:
                self._counters.trouble(*error.args)
            except (HttpTrouble, Undecodable) as error:
                self._counters.trouble("the servers cannot be asked", f"{type(error).__name__} {error}")
            except OSError as error:
                self._counters.trouble("the slot file cannot be handled", error.strerror or str(error))
            except SlotFileProblem as error:
                self._unsuited = True  # and will not be for the next prompt
                self._counters.trouble("no prompt is read at 16 bits any more", f"the reader's slot file {error}")
            return None

    async def close(self) -> None:
        await self._reader.close()

    def _is_worth_it(self, prompt: Tokens, slot: Slot) -> bool:
        if self._unsuited or len(prompt) >= self._context:
            return False
        whole = len(prompt) - common_prefix(self._holds, prompt)
        return worth_demoting(len(prompt) - slot.held(prompt), whole)

    async def _read(self, prompt: Tokens, slot: Slot) -> Reading:
        begun_s = self._clock.monotonic()
        self._know(self._holds[: common_prefix(self._holds, prompt)])  # until it has read it to its end
        question = {"prompt": prompt.tolist(), "n_predict": 1, "cache_prompt": True, "id_slot": 0, "temperature": 0.0}
        said = await _asked(self._reader, "/completion", question, _READING_S, "the reader refused a prompt")
        remembered = decoded(said, _Said).timings.cache_n
        self._know(prompt)
        read_s = self._clock.monotonic() - begun_s
        await _to_its_end(self._transfer(prompt, slot))
        store_s = self._clock.monotonic() - begun_s - read_s
        self._counters.stored(len(prompt) - remembered, read_s, store_s)
        return Reading(len(prompt), remembered, 1000 * (read_s + store_s))

    def _know(self, tokens: Tokens) -> None:
        self._holds, self._counters.reader_tokens = tokens, len(tokens)

    async def _transfer(self, prompt: Tokens, slot: Slot) -> None:
        number = next(self._names)
        saved, stored = (self._folder / f"{number}.{name}" for name in ("saved", "stored"))
        unsaved, unrestored = "the reader did not save its slot", "the keeper did not restore a slot"
        try:
            said = await _asked(self._reader, "/slots/0?action=save", {"filename": saved.name}, _STORING_S, unsaved)
            moved, size = decoded(said, _Moved), saved.stat().st_size
            if moved.n_saved != len(prompt) or size != moved.n_written:  # a full disk
                raise _Refused(unsaved, f"{moved.n_saved} of {len(prompt)} tokens, {size} of {moved.n_written} bytes")
            await asyncio.to_thread(store_anew, saved, stored, self._storing)
            slot.hold(_NOTHING)
            path = f"/slots/{slot.number}?action=restore"
            said = await _asked(self._keeper, path, {"filename": stored.name}, _STORING_S, unrestored)
            if (restored := decoded(said, _Moved).n_restored) != len(prompt):
                raise _Refused(unrestored, f"{restored} of {len(prompt)} tokens")
            slot.hold(prompt)
        finally:
            for file in (saved, stored):
                file.unlink(missing_ok=True)


async def _asked(client: HttpClient, path: str, body: dict[str, Any], timeout_s: float, refusal: str) -> bytes:
    """The answer's body. Raises _Refused for another status than 200, and HttpTrouble."""
    response = await client.send("POST", path, msgspec.json.encode(body), timeout_s)
    try:
        said = await response.read()
    finally:
        response.let_go()
    if response.status != 200:
        raise _Refused(refusal, f"{response.status} {said[:_SHOWN].decode(errors='replace')}")
    return said


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Whoever waits may be cancelled; the work goes on to its end first."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()  # nobody is left to be told
        raise
