"""The agent's side of the gateway's feed: batches of finished requests and the models' state, whatever becomes of the
gateway. The gateway's side is `gateway.control_feed`.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from sekisho.control.backoff import Backoff
from sekisho.control.base import EngineState, Sample
from sekisho.control.feed_answer import PATH, FeedAnswer
from sekisho.core.decoding import Undecodable, decoded

WAIT_S: Final = 20.0
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
_ANSWER_S: Final = 10.0
_WHY: Final = {
    401: "the gateway does not know this key: it has another SEKISHO_WORKER_KEY",
    403: "the gateway lets nobody in from this address (gateway.allow_networks)",
    404: "the gateway has no feed: it was started without SEKISHO_WORKER_KEY, or is an older one",
}

Pause = Callable[[float], Awaitable[None]]


class Batch(msgspec.Struct, frozen=True):
    """What one answer told. With a `reason` the gateway could not be asked, and the rest is empty.

    `ages_s`: how long before this answer each sample ended, by the gateway's monotonic clock. `missed`: samples that
    were gone from the gateway's memory before they were fetched, right before the first one. `restarted`: another
    gateway than before. `known_s`, in the first answer of all: for how long back the samples are complete.
    """

    samples: tuple[Sample, ...] = ()
    ages_s: tuple[float, ...] = ()
    models: tuple[EngineState, ...] = ()
    missed: int = 0
    restarted: bool = False
    known_s: float | None = None
    reason: str | None = None


class Place(msgspec.Struct, frozen=True):
    """How far one has read: in the feed of which gateway, up to which number. None: nothing yet."""

    start: str | None = None
    after: int = 0


class FeedTrouble(Exception):
    """The gateway could not be asked. The text says why."""


def read(place: Place, answer: FeedAnswer) -> tuple[Place, Batch]:
    """What is new in an answer, and how far it brings. No sample is told twice, whichever were sent."""
    restarted = place.start is not None and answer.start != place.start
    after = place.after if answer.start == place.start else 0
    new = [pair for pair in zip(answer.samples, answer.ages_s, strict=False) if pair[0].number > after]
    samples, ages_s = tuple(sample for sample, _ in new), tuple(age_s for _, age_s in new)
    gone = samples[0].number - after - 1 if samples else 0
    known_s = None
    if place.start is None:
        known_s = ages_s[0] if gone else answer.lived_s
        gone = 0  # they ended before anybody asked
    here = Place(answer.start, samples[-1].number if samples else after)
    return here, Batch(samples, ages_s, answer.models, gone, restarted, known_s)


class Feed:
    """`batches` goes on for ever; `reason` says why nothing comes just now. Pauses after trouble as `backoff`."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        wait_s: float = WAIT_S,
        pause: Pause = asyncio.sleep,
        chance: random.Random | None = None,
    ) -> None:
        """`url`: the gateway's address, without a path. Raises ValueError where it is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http address: {url!r}")
        self._url = f"{parts.scheme}://{parts.netloc}{PATH}"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None
        self._wait_s = wait_s
        self._pause = pause
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S, 2.0, chance or random.Random())
        self._place = Place()
        self.reason: str | None = "the gateway has not been asked yet"

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Every answer, and every failed try as a batch with its `reason`. Raises nothing but cancellation."""
        while True:
            try:
                batch = await self._next()
            except FeedTrouble as trouble:
                self.reason = str(trouble)
                yield Batch(reason=self.reason)
                await self._pause(self._backoff.next_s())
            else:
                self.reason = None
                self._backoff.reset()
                yield batch

    async def close(self) -> None:
        """May be called twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _next(self) -> Batch:
        """One answer. After trouble the gateway is asked without waiting, so that its coming back is seen at once."""
        wait_s = self._wait_s if self.reason is None else 0.0
        query: dict[str, str] = {"after": str(self._place.after), "wait_s": f"{wait_s:g}"}
        if self._place.start is not None:
            query["start"] = self._place.start
        status, body = await self._get(query, wait_s + _ANSWER_S)
        if status != 200:
            raise FeedTrouble(_WHY.get(status, f"the gateway answers with status {status}"))
        try:
            answer = decoded(body, FeedAnswer)
        except Undecodable as error:
            raise FeedTrouble(f"the gateway's answer is of another shape: {error}") from error
        self._place, batch = read(self._place, answer)
        return batch

    async def _get(self, query: dict[str, str], timeout_s: float) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            # The key goes to the gateway and nowhere that an answer might point to.
            async with self._session.get(self._url, params=query, timeout=timeout, allow_redirects=False) as response:
                return response.status, await response.read()
        except TimeoutError as error:
            raise FeedTrouble(f"the gateway's answer took more than {timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise FeedTrouble(f"the gateway does not answer: {error or type(error).__name__}") from error
