"""Recall from afar: a fact stands at some depth of a long text and is asked for at the end, greedily.

`inside`: the question is part of the prompt, as eviction methods want it: their votes come from it. `later`: the prompt
ends before the question, which is fed through the cache, as in a conversation that goes on.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sekisho.kv.bench import prompt as prompts
from sekisho.kv.bench.contenders import Contender
from sekisho.kv.bench.entries import Entry, label
from sekisho.kv.bench.figures import Figure, bootstrapped_mean, counted, missing
from sekisho.kv.bench.models import MINI, Loaded
from sekisho.kv.bench.prompt import Prompt
from sekisho.kv.bench.unavailable import Unavailable

Asked = Literal["inside", "later"]
_SYLLABLES: Final = [consonant + vowel for consonant in "KSTNHMRGZDB" for vowel in "AIUEO"]
_ROOM: Final = 4  # tokens that an answer may have besides the wanted ones
_HERE: Final = "\ufffc"


class NeedlePlan(msgspec.Struct, frozen=True, kw_only=True):
    """`each` needles at every one of `depths` (0: the text's beginning), in prompts of `context` tokens, question
    included. `seed` makes the facts and chooses the text around them."""

    context: int = 2048
    depths: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    each: int = 2
    asked: tuple[Asked, ...] = ("inside", "later")
    seed: int = 0


class NeedleRow(msgspec.Struct, frozen=True, kw_only=True):
    """`recall`: exact answers; `full`: those of full precision on the same prompts. `share`: bytes held at the end, of
    those at 16 bits."""

    entry: Entry
    knobs: dict[str, object]
    asked: Asked
    share: Figure
    recall: Figure
    full: Figure


@dataclass(frozen=True)
class Task:
    """How a model is told a fact and asked for it. `fact` and `question` hold the fact as `{}`; the text lies between
    `before` and `question`."""

    before: str
    fact: str
    question: str
    make: Callable[[random.Random], str]


@dataclass(frozen=True)
class Needle:
    """Token ids of the text, (1, n), of the question, (1, m), and the answer."""

    text: Tensor
    question: Tensor
    answer: str
    answer_tokens: int


@dataclass
class Tally:
    """Of one contender: right answers, tries, shares."""

    right: int = 0
    tried: int = 0
    shares: list[float] = field(default_factory=list)


def task_for(loaded: Loaded) -> Task:
    """The built-in model's own skill, a keyword in a conversation; a pass key in running text for all others."""
    if loaded.name != MINI:
        return Task(
            "",
            "\n\nThe secret pass key is {}. Remember it: {} is the secret pass key.\n\n",
            "\n\nQuestion: What is the secret pass key?\nAnswer: The secret pass key is",
            lambda chance: str(chance.randrange(1_000_000, 10_000_000)),
        )
    talk = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": _HERE}], tokenize=False, add_generation_prompt=True
    )
    before, after = str(talk).split(_HERE)
    return Task(
        before,
        '\n\nThe keyword of this conversation is "{}".\n\n',
        "\n\nReturn only the keyword in one word." + after,
        lambda chance: f"KEY-{chance.randrange(1000):03d}-{''.join(chance.choices(_SYLLABLES, k=3))}",
    )


def needles(loaded: Loaded, filler: str, plan: NeedlePlan) -> list[Needle]:
    """One for each depth and repetition. Raises Unavailable where text or context are too short."""
    task, chance, ids = task_for(loaded), random.Random(plan.seed), loaded.encode(filler)
    before, question = loaded.encode(task.before), loaded.encode(task.question)
    made = []
    for depth in plan.depths:
        for _ in range(plan.each):
            answer = task.make(chance)
            fact = loaded.encode(task.fact.replace("{}", answer))
            room = plan.context - len(before) - len(question) - len(fact)
            if room < 1 or len(ids) < room:
                raise Unavailable(f"a needle in {plan.context} tokens needs a text of as many; this has {len(ids)}")
            start = chance.randrange(len(ids) - room + 1)
            split = start + round(room * depth)
            text = [*before, *ids[start:split], *fact, *ids[split : start + room]]
            made.append(Needle(torch.tensor([text]), torch.tensor([question]), answer, len(loaded.encode(answer))))
    return made


def is_answer(text: str, wanted: str) -> bool:
    """Whether the wanted answer stands in the text by itself, not as a part of something longer."""
    return re.search(rf"(?<![\w-]){re.escape(wanted)}(?![\w-])", text) is not None


def _answer(loaded: Loaded, cache: Cache, logits: Tensor, count: int) -> str:
    """Greedy continuation after `logits` (1, vocabulary)."""
    ids: list[int] = []
    ends: Any = loaded.model.config.get_text_config(decoder=True).eos_token_id
    for _ in range(count):
        ids.append(int(logits.argmax()))
        if ids[-1] in (ends if isinstance(ends, list) else [ends]):
            break
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[ids[-1]]], device=logits.device), cache=cache).logits[:, -1]
    return str(loaded.tokenizer.decode(ids, skip_special_tokens=True))


def _asked(loaded: Loaded, cache: Cache, logits: Tensor, needle: Needle, asked: Asked) -> str:
    if asked == "later":
        with torch.no_grad():
            logits = loaded.model(needle.question.to(logits.device), cache=cache).logits[:, -1]
    return _answer(loaded, cache, logits, needle.answer_tokens + _ROOM)


def recall(
    loaded: Loaded,
    found: Sequence[Needle],
    entries: Sequence[tuple[Entry, Contender]],
    asked: Asked,
    progress: Callable[[str], None],
) -> list[NeedleRow]:
    """A row for each entry. Dials are set on the first prompt and stay where they are."""
    prompts.register()
    tallies = {entry: Tally() for entry, _ in entries}
    settled: dict[Entry, Contender] = {}
    reasons: dict[Entry, str] = {}
    full = Tally()
    for number, needle in enumerate(found, start=1):
        whole = torch.cat((needle.text, needle.question), 1) if asked == "inside" else needle.text
        prompt, cache = prompts.read(loaded.model, whole.to(loaded.model.device))
        full.tried += 1
        full.right += is_answer(_asked(loaded, cache, prompt.logits, needle, asked), needle.answer)
        for entry, contender in entries:
            if entry in reasons:
                continue
            try:
                settled[entry] = settled.get(entry) or prompts.settled(contender, loaded.model, prompt, entry.target)
                _try(loaded, prompt, settled[entry], needle, asked, tallies[entry])
            except Unavailable as error:
                reasons[entry] = str(error)
        progress(f"needle {number} of {len(found)}, asked {asked}: full precision {full.right} of {full.tried}")
    return [
        NeedleRow(
            entry=entry,
            knobs=dict(settled.get(entry, contender).knobs),
            asked=asked,
            share=missing(reasons[entry]) if entry in reasons else bootstrapped_mean(tallies[entry].shares),
            recall=missing(reasons[entry]) if entry in reasons else counted(tallies[entry].right, tallies[entry].tried),
            full=counted(full.right, full.tried),
        )
        for entry, contender in entries
    ]


def _try(loaded: Loaded, prompt: Prompt, contender: Contender, needle: Needle, asked: Asked, into: Tally) -> None:
    model: PreTrainedModel = loaded.model
    cache = contender.cache(model.config, prompts.storage_dtype(model))
    model.set_attn_implementation(contender.attention)
    prompts.hand_over(prompt, cache)
    text = _asked(loaded, cache, prompt.logits, needle, asked)
    into.tried += 1
    into.right += is_answer(text, needle.answer)
    into.shares.append(prompts.share_of(cache, prompt, cache.get_seq_length()))


__all__ = ["Asked", "Needle", "NeedlePlan", "NeedleRow", "Task", "is_answer", "label", "needles", "recall", "task_for"]
