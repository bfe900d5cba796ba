"""Events per second through the codecs, one core, no server: `python bench/codec.py [--seconds 0.5]`.

Time is this process's own CPU time, and each figure the best of five runs: other work on the machine disturbs little.
"""

import argparse
import json
import time
from collections.abc import Callable

from sekisho.core.events import Finished, Started, TextDelta, Usage
from sekisho.core.turn import Message, Text, Turn
from sekisho.wire import chat, chat_client, completions
from sekisho.wire.sse import SseDecoder

RUNS = 5
BATCH = 20

TURN = Turn(id="chatcmpl-0123456789abcdef01234567", protocol="chat", model="bench", stream=True, include_usage=True,
            messages=(Message("user", (Text("Why is the sky blue?"),)),))  # fmt: skip
RAW = Turn(id="cmpl-0123456789abcdef01234567", protocol="completions", model="bench", stream=True, prompts=("a",))
CHUNK = {
    "id": "chatcmpl-XkQ7a9",
    "object": "chat.completion.chunk",
    "created": 1_790_000_000,
    "model": "bench",
    "system_fingerprint": "b1-abcdef",
    "choices": [{"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}],
}
FRAME = b"data: " + json.dumps(CHUNK, separators=(",", ":")).encode() + b"\n\n"
REQUEST = json.dumps(
    {
        "model": "bench",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
        "temperature": 0.7,
        "max_tokens": 256,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
).encode()


def per_second(work: Callable[[], int], seconds: float) -> float:
    """`work` does one portion and says how many events it had."""
    best = 0.0
    for _ in range(RUNS):
        done = 0
        start = time.process_time()
        while (spent := time.process_time() - start) < seconds / RUNS:
            done += sum(work() for _ in range(50))
        best = max(best, done / spent)
    return best


def encoding(encoder: chat.ChatEncoder | completions.CompletionEncoder, events: int) -> Callable[[], int]:
    batch = [TextDelta(" token") for _ in range(events)]

    def work() -> int:
        encoder.feed(batch)
        return events

    return work


def decoding(events: int) -> Callable[[], int]:
    decoder = chat_client.ChatStreamDecoder(TURN)
    body = FRAME * events

    def work() -> int:
        decoder.feed(body)
        return events

    return work


def framing(events: int) -> Callable[[], int]:
    decoder = SseDecoder()
    body = FRAME * events

    def work() -> int:
        decoder.feed(body)
        return events

    return work


def through(events: int) -> Callable[[], int]:
    """An engine's bytes to a client's bytes: what the gateway does for each read."""
    decoder = chat_client.ChatStreamDecoder(TURN)
    encoder = chat.encoder(TURN, 1)
    body = FRAME * events

    def work() -> int:
        encoder.feed(decoder.feed(body))
        return events

    return work


def whole_request() -> int:
    """One request that does not stream: decode, encode for the engine, decode the answer, encode the answer."""
    turn = chat.decode(REQUEST, "chatcmpl-1")
    chat_client.encode_request(turn, model="m", stream=False)
    encoder = chat.encoder(turn, 1)
    encoder.feed([Started("m"), TextDelta("Rayleigh scattering."), Usage(20, 5), Finished("stop")])
    encoder.end()
    return 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each figure")
    seconds = parser.parse_args().seconds
    rows: list[tuple[str, Callable[[], int]]] = [
        ("SSE frames read, 1 a read", framing(1)),
        (f"SSE frames read, {BATCH} a read", framing(BATCH)),
        ("engine chunks to events, 1 a read", decoding(1)),
        (f"engine chunks to events, {BATCH} a read", decoding(BATCH)),
        ("events to chat chunks, 1 a batch", encoding(chat.encoder(TURN, 1), 1)),
        (f"events to chat chunks, {BATCH} a batch", encoding(chat.encoder(TURN, 1), BATCH)),
        (f"events to completion chunks, {BATCH} a batch", encoding(completions.encoder(RAW, 1), BATCH)),
        ("engine bytes to client bytes, 1 a read", through(1)),
        (f"engine bytes to client bytes, {BATCH} a read", through(BATCH)),
        ("requests decoded", lambda: len(chat.decode(REQUEST, "chatcmpl-1").messages) - 1),
        ("requests, all four steps", whole_request),
    ]
    for name, work in rows:
        rate = per_second(work, seconds)
        print(f"{name:<44} {rate:>12,.0f} /s   {1e6 / rate:8.2f} µs")


if __name__ == "__main__":
    main()
