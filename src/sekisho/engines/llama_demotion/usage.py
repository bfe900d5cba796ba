"""What an answer says of its prompt, put right: the keeper found in its slot what the reader had just read, and would
tell that as remembered. And what passes by in an answer that is of use here."""

import re
from typing import Any, Final

import msgspec

from sekisho.core.decoding import Undecodable, decoded

_MARKS: Final = (b'"usage":', b'"timings":')  # inside a text the quotes are escaped
_SAID: Final = re.compile(rb'"predicted_n":\s*(\d+)')
_NOT_REPEATED: Final = (b'"reasoning_content":', b'"tool_calls":')
_TAIL_BYTES: Final = 4096


class Reading(msgspec.Struct, frozen=True):
    """What the reader did for a prompt of `whole` tokens: `remembered` were in its own memory. `ms`: reading, storing
    anew and restoring."""

    whole: int
    remembered: int
    ms: float

    @property
    def read(self) -> int:
        return self.whole - self.remembered


def corrected(body: bytes, reading: Reading) -> bytes:
    """One JSON object of the keeper; the same bytes where it says nothing of the prompt."""
    if not any(mark in body for mark in _MARKS):
        return body
    try:
        told = decoded(body, dict[str, Any])
    except Undecodable:
        return body
    _correct_usage(told.get("usage"), reading)
    _correct_timings(told.get("timings"), reading)
    return msgspec.json.encode(told)


def _correct_usage(usage: Any, reading: Reading) -> None:
    details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        details["cached_tokens"] = min(details["cached_tokens"], reading.remembered)


def _correct_timings(timings: Any, reading: Reading) -> None:
    if not isinstance(timings, dict) or not isinstance(timings.get("cache_n"), int):
        return
    remembered = min(timings["cache_n"], reading.remembered)
    count, ms = reading.whole - remembered, float(timings.get("prompt_ms") or 0.0) + reading.ms
    timings |= {"cache_n": remembered, "prompt_n": count, "prompt_ms": ms}
    timings |= {"prompt_per_token_ms": ms / max(1, count), "prompt_per_second": 1000 * count / ms if ms else 0.0}


class StreamCorrection:
    """A stream of events, frame by frame; frames that say nothing of the prompt stay byte for byte."""

    def __init__(self, reading: Reading) -> None:
        self._reading, self._begun = reading, b""

    def feed(self, data: bytes) -> bytes:
        """The frames that are whole now."""
        *frames, self._begun = (self._begun + data).split(b"\n\n")
        return b"".join(self._frame(frame) + b"\n\n" for frame in frames)

    def finish(self) -> bytes:
        """What is left at the end of the stream."""
        rest, self._begun = self._begun, b""
        return rest

    def _frame(self, frame: bytes) -> bytes:
        name, colon, data = frame.partition(b"data: ")
        return name + colon + corrected(data, self._reading) if colon and not name else frame


class Heard:
    """How many tokens an answer had, as far as a next turn is going to repeat them."""

    def __init__(self) -> None:
        self._tail, self._repeated = b"", True

    def feed(self, data: bytes) -> None:
        heard = self._tail + data
        if self._repeated and any(mark in heard for mark in _NOT_REPEATED):
            self._repeated = False
        self._tail = heard[-_TAIL_BYTES:]

    @property
    def said(self) -> int:
        """0 for an answer with thoughts, which templates leave out, with tool calls, which they may write otherwise,
        and for one that was not heard to its end."""
        found = _SAID.findall(self._tail)
        return int(found[-1]) if found and self._repeated else 0
