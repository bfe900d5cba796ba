"""The tokenizer: byte-level BPE whose tokens never cross a change of script, so a keyword looks the same anywhere.

It runs with GPT-2's own splitting rule, which llama.cpp knows as `gpt-2`; training uses a finer one. As no merge is
learnt across the finer borders, a keyword has the same tokens in quotes, behind a particle or alone, and every
kanji, digit, space and mark stands for itself. That is what makes copying easy for so small a model.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mini.conversation import Conversation

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
FINE = Regex(r"[A-Z]?[a-z]+|[A-Z]+|\p{Hiragana}+|[\p{Katakana}ー]+|\p{Han}|\s|.")


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokenizer of exactly `vocabulary` entries, the three special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(FINE, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} tokens instead of {vocabulary}")
    return tokenizer


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def rendered(conversation: Conversation) -> str:
    """The conversation as the chat template writes it, without a generation prompt."""
    return "".join(f"{TURN_START}{m.role}\n{m.text}{TURN_END}\n" for m in conversation.messages)


@dataclass(frozen=True)
class Sample:
    """Token ids, which of them are learnt from, and where each message starts."""

    ids: np.ndarray
    learn: np.ndarray
    starts: tuple[int, ...]


def encode(tokenizer: Tokenizer, conversations: list[Conversation], rng: random.Random, others: float) -> list[Sample]:
    """Samples for training: loss on what the assistant says and its end mark, and on the share `others` of the rest."""
    pieces = [f"{m.role}\n{m.text}" for conversation in conversations for m in conversation.messages]
    encoded = iter(tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
    newline = tokenizer.encode("\n").ids
    opened = len(tokenizer.encode("assistant\n").ids)
    start, end = tokenizer.token_to_id(TURN_START), tokenizer.token_to_id(TURN_END)
    samples: list[Sample] = []
    for conversation in conversations:
        ids: list[int] = []
        learn: list[bool] = []
        starts: list[int] = []
        for message in conversation.messages:
            body = next(encoded).ids
            starts.append(len(ids))
            ids += [start, *body, end, *newline]
            if message.role == "assistant":
                learn += [False] * (1 + opened) + [True] * (len(body) - opened + 1) + [False] * len(newline)
            else:
                learn += [rng.random() < others for _ in range(len(body) + 2 + len(newline))]
        samples.append(Sample(np.array(ids, np.int64), np.array(learn), tuple(starts)))
    return samples
