"""What a cache does to a model's predictions: perplexity, divergence and agreement against full precision.

A stretch of text is a prompt, which everyone reads in full precision, and a tail, which is fed in blocks of a few
tokens: their attention reads the past as the cache under test keeps it. Only predictions of the tail count.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sekisho.kv.bench import prompt as prompts
from sekisho.kv.bench.contenders import Contender
from sekisho.kv.bench.entries import Entry, label
from sekisho.kv.bench.figures import Array, Figure, bootstrapped, bootstrapped_mean, mean, missing
from sekisho.kv.bench.held import held_bytes
from sekisho.kv.bench.prompt import Prompt
from sekisho.kv.bench.unavailable import Unavailable


class QualityRow(msgspec.Struct, frozen=True, kw_only=True):
    """`share`: bytes held at the end of the tail, of those at 16 bits; one observation for each stretch. Perplexity is
    over the tail. `delta_perplexity`: relative to full precision, 0.01 is 1 %. Divergences in nats."""

    entry: Entry
    knobs: dict[str, object]
    share: Figure
    bytes: Figure
    perplexity: Figure
    delta_perplexity: Figure
    mean_divergence: Figure
    p99_divergence: Figure
    agreement: Figure


class QualityPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`context` tokens, of which the last `tail` are fed in blocks of `block`; `stretches` of text."""

    context: int = 2048
    tail: int = 512
    block: int = 64
    stretches: int = 4


@dataclass
class Observations:
    """By block: negative log-likelihoods in full precision and of the contender, divergences, agreements."""

    reference: list[Array] = field(default_factory=list)
    tested: list[Array] = field(default_factory=list)
    divergence: list[Array] = field(default_factory=list)
    agreement: list[Array] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def add(self, expected: Tensor, found: Tensor, targets: Tensor) -> None:
        """(n, vocabulary) log-probabilities of one block and the n tokens that came."""
        picked = targets.unsqueeze(1)
        for into, numbers in (
            (self.reference, -expected.gather(1, picked).squeeze(1)),
            (self.tested, -found.gather(1, picked).squeeze(1)),
            (self.divergence, (expected.exp() * (expected - found)).sum(1).clamp(min=0)),
            (self.agreement, (expected.argmax(1) == found.argmax(1)).double()),
        ):
            into.append(numbers.double().cpu().numpy())


@dataclass(frozen=True)
class Stretch:
    """A prompt, the tail's tokens and full precision's log-probabilities after each of them, block by block."""

    prompt: Prompt
    tail: Tensor  # (1, n + 1): the last one is only predicted
    expected: list[Tensor]


def stretch(model: PreTrainedModel, tokens: Tensor, plan: QualityPlan) -> Stretch:
    """Reads (1, context + 1) tokens in full precision."""
    begin = plan.context - plan.tail
    prompt, cache = prompts.read(model, tokens[:, :begin])
    tail = tokens[:, begin:]
    expected = list(_fed(model, cache, tail, plan.block))
    return Stretch(prompts.followed(prompt, cache), tail, expected)


def _fed(model: PreTrainedModel, cache: Cache, tail: Tensor, block: int) -> Iterator[Tensor]:
    """Log-probabilities (n, vocabulary) after the tokens of each block."""
    for first in range(0, tail.shape[1] - 1, block):
        part = tail[:, first : min(first + block, tail.shape[1] - 1)]
        with torch.no_grad():
            logits = model(part, cache=cache).logits[0]
        yield torch.log_softmax(logits.float(), -1)


def observe(contender: Contender, model: PreTrainedModel, text: Stretch, block: int, into: Observations) -> None:
    """Gives a contender the prompt, feeds the tail, and notes what came. Raises Unavailable."""
    cache = contender.cache(model.config, prompts.storage_dtype(model))
    model.set_attn_implementation(contender.attention)
    prompts.hand_over(text.prompt, cache)
    for index, found in enumerate(_fed(model, cache, text.tail, block)):
        targets = text.tail[0, 1 + index * block : 1 + index * block + found.shape[0]]
        into.add(text.expected[index], found, targets)
    total = text.prompt.tokens + text.tail.shape[1] - 1
    into.shares.append(prompts.share_of(cache, text.prompt, total))
    into.bytes.append(held_bytes(cache))


def row(entry: Entry, contender: Contender, seen: Observations) -> QualityRow:
    """The figures of one contender."""
    pairs = [np.stack(each, 1) for each in zip(seen.reference, seen.tested, strict=True)]
    size = sum(len(each) for each in seen.tested)

    def delta(rows: Array) -> float:
        return float(np.exp(rows[:, 1].mean() - rows[:, 0].mean()) - 1)

    return QualityRow(
        entry=entry,
        knobs=dict(contender.knobs),
        share=bootstrapped_mean(seen.shares),
        bytes=bootstrapped_mean(seen.bytes),
        perplexity=bootstrapped(seen.tested, lambda each: float(np.exp(each.mean()))),
        delta_perplexity=msgspec.structs.replace(bootstrapped(pairs, delta), n=size),
        mean_divergence=bootstrapped(seen.divergence, mean),
        p99_divergence=bootstrapped(seen.divergence, lambda each: float(np.quantile(each, 0.99))),
        agreement=bootstrapped(seen.agreement, mean),
    )


def absent(entry: Entry, knobs: dict[str, object], reason: str) -> QualityRow:
    """A row without numbers."""
    none = missing(reason)
    return QualityRow(
        entry=entry,
        knobs=knobs,
        share=none,
        bytes=none,
        perplexity=none,
        delta_perplexity=none,
        mean_divergence=none,
        p99_divergence=none,
        agreement=none,
    )


def compare(
    model: PreTrainedModel,
    texts: Sequence[Tensor],
    entries: Sequence[tuple[Entry, Contender]],
    plan: QualityPlan,
    progress: Callable[[str], None],
) -> list[QualityRow]:
    """A row for each entry. Dials are set on the first stretch and stay where they are."""
    prompts.register()
    seen = {entry: Observations() for entry, _ in entries}
    settled: dict[Entry, Contender] = {}
    reasons: dict[Entry, str] = {}
    for number, tokens in enumerate(texts, start=1):
        text = stretch(model, tokens, plan)
        for entry, contender in entries:
            if entry in reasons:
                continue
            try:
                settled[entry] = settled.get(entry) or prompts.settled(contender, model, text.prompt, entry.target)
                observe(settled[entry], model, text, plan.block, seen[entry])
            except Unavailable as error:
                reasons[entry] = str(error)
            progress(f"stretch {number} of {len(texts)}: {label(entry)}")
    return [
        absent(entry, dict(contender.knobs), reasons[entry])
        if entry in reasons
        else row(entry, settled[entry], seen[entry])
        for entry, contender in entries
    ]


__all__ = ["Entry", "Observations", "QualityPlan", "QualityRow", "compare", "label", "observe", "row", "stretch"]
