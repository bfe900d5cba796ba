"""Texts in pieces through the filter of thinking."""

import json
from itertools import pairwise
from typing import Any

from sekisho.core.events import Batch, Event, Finished, FinishReason, Started, TextDelta, Usage
from sekisho.guard.thinking import ThinkingFilter, ThinkingOptions

FINAL_ONLY = ThinkingOptions(final_only=True)
UNKNOWN = ThinkingOptions(start="unknown")


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in pairwise(places)]


def run(events: list[Event], options: ThinkingOptions | None = None, **hooks: Any) -> tuple[Batch, ThinkingFilter]:
    filter_ = ThinkingFilter(options, **hooks)
    out: Batch = []
    for event in events:
        out += filter_.feed([event])
    return out + filter_.end(), filter_


def text_of(batch: Batch, choice: int = 0) -> str:
    return "".join(event.text for event in batch if isinstance(event, TextDelta) and event.choice == choice)


def ended(deltas: list[str], reason: FinishReason = "stop") -> list[Event]:
    return [Started(), *(TextDelta(text) for text in deltas), Usage(3, 5), Finished(reason)]


def chunk(delta: dict[str, Any], ascii_only: bool, finish: str | None = None) -> bytes:
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
    return b"data: " + json.dumps(body, ensure_ascii=ascii_only).encode() + b"\n\n"
