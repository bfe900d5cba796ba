"""What goes over the feed, said once for both sides: `gateway.control_feed` sends it, `control.feed` reads it."""

from typing import Final

import msgspec

from sekisho.control.base import EngineState, Sample

PATH: Final = "/internal/control/feed"


class FeedAnswer(msgspec.Struct, frozen=True):
    """`start` names the gateway's process, `lived_s` is its age. `samples` are the oldest after the number asked for,
    in order; `ages_s`: how long ago each ended, by a clock that cannot jump. `last`: the newest number that there is;
    where it is beyond the last sample, there are more."""

    start: str
    lived_s: float
    last: int
    samples: tuple[Sample, ...]
    ages_s: tuple[float, ...]
    models: tuple[EngineState, ...]
