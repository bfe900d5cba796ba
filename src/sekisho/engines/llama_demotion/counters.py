"""What demotion did, as lines for Prometheus; and trouble, told once for each cause."""

import sys
from collections.abc import Callable

Say = Callable[[str], None]
_METRICS = (
    ("prompts_total", "counter", "Prompts that were read at 16 bits and stored with fewer."),
    ("tokens_total", "counter", "Tokens that were read at 16 bits for them."),
    ("read_seconds_total", "counter", "Seconds that reading took."),
    ("store_seconds_total", "counter", "Seconds that saving, storing anew and restoring took."),
    ("failed_total", "counter", "Prompts for which that failed, and which were read with fewer bits."),
    ("reader_tokens", "gauge", "Tokens that the reader holds at 16 bits."),
)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


class Counters:
    def __init__(self, say: Say = say) -> None:
        self.prompts = self.tokens = self.failed = self.reader_tokens = 0
        self.read_s = self.store_s = 0.0
        self._say, self._told = say, set[str]()

    def stored(self, tokens: int, read_s: float, store_s: float) -> None:
        self.prompts += 1
        self.tokens += tokens
        self.read_s += read_s
        self.store_s += store_s

    def trouble(self, cause: str, detail: str) -> None:
        self.failed += 1
        if cause not in self._told:
            self._told.add(cause)
            self._say(f"warning: a prompt is read with fewer bits: {cause}: {detail}")

    def lines(self) -> bytes:
        values = (self.prompts, self.tokens, self.read_s, self.store_s, self.failed, self.reader_tokens)
        text = []
        for (name, kind, meaning), value in zip(_METRICS, values, strict=True):
            full = f"sekisho_demotion_{name}"
            text += [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}", f"{full} {value}"]
        return ("\n".join(text) + "\n").encode()
