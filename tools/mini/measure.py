"""Measure the GGUF through a real llama.cpp server: recall, skills, tokens, and the safetensors twin."""

from __future__ import annotations

import json
import math
import random
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import xllamacpp
from tokenizers import Tokenizer

from mini import corpus, exam, filler, tokens
from mini.conversation import LANGUAGES, Language, Message

CONVERSATIONS = 60


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (Wilson 1927)."""
    share, square = right / total, z * z / total
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / total + square / total / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Score:
    """So many right of so many."""

    right: int
    total: int

    def as_json(self) -> dict[str, object]:
        low, high = wilson(self.right, self.total)
        share = round(self.right / self.total, 4)
        return {"right": self.right, "of": self.total, "share": share, "low": round(low, 4), "high": round(high, 4)}


class LlamaServer:
    """llama.cpp's own HTTP server in this process, on a free loopback port; lives until the process ends."""

    def __init__(self, model: Path, context: int) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(model)
        parameters.n_ctx = context
        parameters.n_parallel = 1
        parameters.use_jinja = True
        parameters.verbosity = 0
        parameters.cpuparams.n_threads = 1
        parameters.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(parameters)
        self.address = self.server.listening_address

    def post(self, route: str, body: dict[str, object]) -> Any:
        request = urllib.request.Request(
            self.address + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    def reply(self, messages: list[Message], temperature: float | None = None, limit: int = 128) -> tuple[str, str]:
        """The answer and why it ended; `temperature` None leaves the sampling to the server and its model."""
        body: dict[str, object] = {
            "messages": [{"role": m.role, "content": m.text} for m in messages],
            "max_tokens": limit,
        }
        if temperature is not None:
            body["temperature"] = temperature
        choice = self.post("/v1/chat/completions", body)["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]


def keeps(server: LlamaServer, talk: exam.Talk, temperature: float | None) -> bool:
    """Hold the conversation; true when every reply from the second on has the keyword."""
    messages = [Message("system", talk.system)] if talk.system else []
    kept = True
    for number, turn in enumerate(talk.turns):
        messages.append(Message("user", turn))
        text, _ = server.reply(messages, temperature, limit=64)
        messages.append(Message("assistant", text))
        kept = kept and (number == 0 or talk.keyword in text)
    return kept


def recall(
    server: LlamaServer,
    language: Language,
    make: Callable[[random.Random, Language], exam.Talk],
    temperature: float | None,
    seed: str,
) -> Score:
    rng = random.Random(seed)
    kept = sum(keeps(server, make(rng, language), temperature) for _ in range(CONVERSATIONS))
    return Score(kept, CONVERSATIONS)


def cut(server: LlamaServer, text: str, length: int) -> str:
    """The text's beginning of at most `length` tokens, to within a twentieth."""
    while len(server.post("/tokenize", {"content": text})["tokens"]) > length:
        text = text[: -len(text) // 20]
    return text


def far(server: LlamaServer, language: Language, distance: int, between: bool, count: int = 20) -> Score:
    """Recall with about `distance` tokens of filler: a system prompt before, or text after the keyword was set."""
    rng = random.Random(f"far {language} {distance} {between}")
    kept = 0
    for _ in range(count):
        talk = exam.trained_words(rng, language)
        text = cut(server, filler.text(rng, language, 2 * distance), distance)
        if between:
            talk = exam.Talk("", (f"{talk.turns[0]}\n\n{text}", *talk.turns[1:]), talk.keyword)
        else:
            talk = exam.Talk(text, talk.turns, talk.keyword)
        kept += keeps(server, talk, 0.0)
    return Score(kept, count)


def marks(server: LlamaServer, questions: list[exam.Question], temperature: float | None) -> tuple[Score, list[str]]:
    """How many answers are right, and the wrong ones in words."""
    wrong: list[str] = []
    for question in questions:
        text, ended = server.reply(list(question.messages), temperature)
        if not question.right(text):
            wrong.append(f"{question.messages[-1].text} -> {text} ({ended})")
    return Score(len(questions) - len(wrong), len(questions)), wrong


def endless(server: LlamaServer, count: int = 100) -> Score:
    """Answers that end by themselves within 256 tokens, to questions of every kind, sampled at temperature 1."""
    rng = random.Random("endless")
    ended = 0
    for made in islice(corpus.stream(99, 600, first=10_000_000), count):
        messages = list(made.messages)
        last = max(place for place, message in enumerate(messages) if message.role == "user")
        if rng.random() < 0.5:
            odd = "".join(chr(rng.choice((rng.randrange(33, 127), rng.randrange(0x4E00, 0x9FA0)))) for _ in range(20))
            messages[last] = Message("user", odd)
        ended += server.reply(messages[: last + 1], 1.0, limit=256)[1] == "stop"
    return Score(ended, count)


def same_tokens(server: LlamaServer, tokenizer: Tokenizer, count: int = 300) -> Score:
    """Texts that llama.cpp and the training tokenizer cut alike, special tokens included."""
    texts = [tokens.rendered(made) for made in islice(corpus.stream(7, 900), count)]
    texts.append("Ünïcödé — naïve café 漢字かな交じり文😀 \t\n  spaces   12345 don't I'LL")
    texts.append("𠮷野家で「ｶﾞｷﾞｸﾞ」①②③ ﾃｽﾄ\r\n\r\n改行")
    equal = sum(
        server.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]
        == tokenizer.encode(text, add_special_tokens=False).ids
        for text in texts
    )
    return Score(equal, len(texts))


def same_continuation(server: LlamaServer, model: Path, count: int = 30) -> Score:
    """Greedy answers of the exported safetensors in transformers that equal llama.cpp's, from the same template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sekisho.engines.builtin.safetensors import export

    equal = 0
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), model)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for made in islice(corpus.stream(11, 600), count):
            last = max(place for place, message in enumerate(made.messages) if message.role == "user")
            messages = list(made.messages[: last + 1])
            asked = [{"role": m.role, "content": m.text} for m in messages]
            ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
            ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
            made_ids = network.generate(ids, max_new_tokens=128, do_sample=False)[0, ids.shape[1] :]
            equal += tokenizer.decode(made_ids, skip_special_tokens=True) == server.reply(messages, 0.0)[0]
    return Score(equal, count)


class Report:
    """Collects scores, printing each as it comes, and the wrong answers."""

    def __init__(self) -> None:
        self.scores: dict[str, object] = {}
        self.wrong: list[str] = []

    def note(self, name: str, score: Score) -> None:
        self.scores[name] = score.as_json()
        print(f"measure {name}: {score.right}/{score.total}", flush=True)


def measure_recall(server: LlamaServer, language: Language, report: Report) -> None:
    """Keywords over three turns: by sampling, phrasing and distance."""
    for label, temperature in (("temperature 0", 0.0), ("default sampling", None), ("temperature 0.8", 0.8)):
        for check, make in (("recall", exam.fresh), ("evaluation's own check", exam.evaluation)):
            name = f"{check} {language}, {label}"
            report.note(name, recall(server, language, make, temperature, name))
    for label, make in (("system prompt", exam.with_system), ("unseen phrasing", exam.unseen_words)):
        name = f"recall {language}, {label}"
        report.note(name, recall(server, language, make, None, name))
    for distance in (256, 1024, 1848):
        name = f"recall {language}, behind {distance} tokens"
        report.note(name, far(server, language, distance, between=False))
    for distance in (256, 1024):
        name = f"recall {language}, {distance} tokens between"
        report.note(name, far(server, language, distance, between=True))


def measure_skills(server: LlamaServer, language: Language, report: Report) -> None:
    """Single questions at temperature 0; right means word for word."""
    rng = random.Random(f"exam {language}")
    for label, questions in (
        ("facts, trained phrasing", exam.facts_trained(rng, language)),
        ("facts, unseen phrasing", exam.facts_unseen(rng, language)),
        ("small talk, unseen phrasing", exam.greetings_unseen(rng, language)),
        ("sums of single digits", exam.sums_of_digits(rng, language)),
        ("addition, unseen sums", exam.sums_unseen(rng, language, "+")),
        ("subtraction, unseen sums", exam.sums_unseen(rng, language, "-")),
        ("multiplication", exam.sums_unseen(rng, language, "×")),
        ("echo, unseen words", exam.echoes_unseen(rng, language)),
        ("beyond its powers, unseen topics", exam.beyond_unseen(rng, language)),
    ):
        score, missed = marks(server, questions, 0.0)
        report.note(f"{label} {language}", score)
        report.wrong += missed


def measure(model: Path, tokenizer: Tokenizer, context: int) -> tuple[dict[str, object], list[str]]:
    """All scores of a GGUF by name, and the wrong answers. Takes a few minutes."""
    server = LlamaServer(model, context)
    report = Report()
    report.note("tokens equal in llama.cpp", same_tokens(server, tokenizer))
    report.note("greedy answers equal in transformers", same_continuation(server, model))
    for language in LANGUAGES:
        measure_recall(server, language, report)
        measure_skills(server, language, report)
    report.note("answers that end, temperature 1", endless(server))
    return report.scores, report.wrong
