"""Training on the CPU: bfloat16 matrix products over float32 weights, resumable after any interruption."""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from mini import corpus, tokens
from mini.model import Llama, Shape

POOL = 2048
OTHERS_SHARE = 0.05  # of the user's tokens, learnt only while copying: later they would drown the answers


@dataclass(frozen=True)
class Plan:
    """How long and how hard to train. Sizes are in tokens, padding included.

    The first `copy_share` of the run sees nothing but copying in short conversations: the attention heads that
    copy appear early there, and late or never when everything is taught at once.
    """

    seed: int = 20260
    tokens: int = 11_000_000
    copy_share: float = 0.165
    batch: int = 2048
    peak_rate: float = 1.5e-3
    warm_up: int = 100
    decay: float = 0.1
    longest_filler: int = 3500
    gap_share: float = 0.3


@dataclass(frozen=True)
class Batch:
    """Tokens and positions (rows, length), and the flat places whose next token is learnt."""

    tokens: Tensor
    positions: Tensor
    places: Tensor
    targets: Tensor


def spread(rng: random.Random, sample: tokens.Sample, limit: int) -> np.ndarray:
    """Positions with a gap before one or two messages, so far distances are learnt from short samples."""
    positions = np.arange(len(sample.ids))
    room = limit - len(sample.ids)
    for start in rng.sample(sample.starts[1:], min(rng.randint(1, 2), len(sample.starts) - 1)):
        gap = int(math.exp(rng.uniform(0, math.log(max(2, room)))))
        positions[start:] += min(gap, room)
        room -= min(gap, room)
    return positions


def collate(rng: random.Random, samples: list[tokens.Sample], gap_share: float, limit: int) -> Batch:
    """One padded batch; rows longer than `limit` are cut at the front, where only filler stands."""
    length = min(limit, max(len(sample.ids) for sample in samples))
    length = -(-length // 16) * 16
    ids = np.zeros((len(samples), length), np.int64)
    positions = np.zeros((len(samples), length), np.int64)
    learn = np.zeros((len(samples), length), bool)
    for row, sample in enumerate(samples):
        kept = min(length, len(sample.ids))
        ids[row, :kept] = sample.ids[-kept:]
        learn[row, :kept] = sample.learn[-kept:]
        spreading = kept == len(sample.ids) < limit - 32 and rng.random() < gap_share
        positions[row] = np.arange(length)
        if spreading:
            positions[row, :kept] = spread(rng, sample, limit)
            positions[row, kept:] = 0
    learn[:, 0] = False
    rows, columns = np.nonzero(learn)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        torch.from_numpy(rows * length + columns - 1),
        torch.from_numpy(ids[rows, columns]),
    )


def pool(tokenizer: Tokenizer, plan: Plan, number: int, limit: int, copying: bool) -> list[Batch]:
    """The batches of one pool of conversations, of like lengths together, in random order."""
    rng = random.Random(f"{plan.seed}/{number}")
    numbers = range(number * POOL, (number + 1) * POOL)
    if copying:
        conversations = [corpus.first_steps(plan.seed, place) for place in numbers]
    else:
        conversations = [corpus.conversation(plan.seed, place, plan.longest_filler) for place in numbers]
    gap_share = 0.0 if copying else plan.gap_share
    encoded = tokens.encode(tokenizer, conversations, rng, OTHERS_SHARE if copying else 0.0)
    samples = sorted(encoded, key=lambda sample: len(sample.ids))
    batches: list[Batch] = []
    taken: list[tokens.Sample] = []
    for sample in samples:
        if len(taken) > 1 and min(limit, len(sample.ids)) * (len(taken) + 1) > plan.batch:
            batches.append(collate(rng, taken, gap_share, limit))
            taken = []
        taken.append(sample)
    rng.shuffle(batches)
    return batches


def rate(plan: Plan, step: int, seen: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    warm = min(1.0, (step + 1) / plan.warm_up)
    share = min(1.0, seen / plan.tokens)
    return plan.peak_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass
class Progress:
    """Where training stands: enough, with the weights, to go on as if nothing had happened."""

    pool: int = 0
    batch: int = 0
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    copying: bool = True


def history(state: Path) -> dict[str, object]:
    """What a checkpoint says of its run: the plan, and how far it came."""
    saved = torch.load(state, weights_only=True)
    progress = saved["progress"]
    return {
        **saved["plan"],
        "tokens_seen": progress["seen"],
        "steps": progress["step"],
        "minutes": round(progress["seconds"] / 60, 1),
        "command": "make mini",
    }


class Trainer:
    """Owns the weights, the optimiser and the progress; `run` blocks until the token budget is spent."""

    def __init__(self, tokenizer: Tokenizer, shape: Shape, plan: Plan, state: Path) -> None:
        torch.manual_seed(plan.seed)
        self.tokenizer, self.shape, self.plan, self.state = tokenizer, shape, plan, state
        self.progress = Progress()
        self.model = Llama(shape)
        matrices = [weight for weight in self.model.parameters() if weight.ndim == 2]
        vectors = [weight for weight in self.model.parameters() if weight.ndim == 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": plan.decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.95),
            fused=True,
        )
        self.hidden = torch.compile(self.model.hidden, dynamic=True)
        if state.exists():
            self._resume()

    def start_from(self, state: Path) -> None:
        """Takes the weights of another run's checkpoint, and nothing else of it. Without effect when resuming."""
        if self.progress.step == 0:
            self.progress.copying = False
            self.model.load_state_dict(torch.load(state, weights_only=True)["weights"])

    def _resume(self) -> None:
        saved = torch.load(self.state, weights_only=True)
        if saved["plan"] != asdict(self.plan) or saved["shape"] != asdict(self.shape):
            raise SystemExit(f"{self.state} was made with another plan; remove it to start over")
        self.progress = Progress(**saved["progress"])
        self.model.load_state_dict(saved["weights"])
        self.optimiser.load_state_dict(saved["optimiser"])

    def save(self) -> None:
        """Write the checkpoint beside its place and move it there, so a torn write is never read."""
        torch.save(
            {
                "plan": asdict(self.plan),
                "shape": asdict(self.shape),
                "progress": asdict(self.progress),
                "weights": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
            self.state.with_suffix(".part"),
        )
        self.state.with_suffix(".part").replace(self.state)

    def step(self, batch: Batch) -> tuple[float, float]:
        """One update; the mean loss per learnt token and the share of them guessed right."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.hidden(batch.tokens, batch.positions).reshape(-1, self.shape.width)
            logits = self.model.logits(hidden[batch.places]).float()
        loss = F.cross_entropy(logits, batch.targets)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.plan, self.progress.step, self.progress.seen)
        self.optimiser.step()
        return loss.item(), (logits.argmax(-1) == batch.targets).float().mean().item()

    def run(self) -> None:
        """Train to the end of the plan, saving once a minute and printing the loss."""
        began = time.monotonic() - self.progress.seconds
        saved = printed = time.monotonic()
        marks: list[tuple[float, float]] = []
        while self.progress.seen < self.plan.tokens:
            batches = pool(self.tokenizer, self.plan, self.progress.pool, self.shape.positions, self.progress.copying)
            for batch in batches[self.progress.batch :]:
                marks.append(self.step(batch))
                self.progress.batch += 1
                self.progress.step += 1
                self.progress.seen += batch.tokens.numel()
                self.progress.seconds = now = time.monotonic() - began
                if time.monotonic() - printed > 20:
                    printed = time.monotonic()
                    loss, right = np.mean(marks, axis=0)
                    share = self.progress.seen / self.plan.tokens
                    print(
                        f"train {share:6.1%}  step {self.progress.step}  loss {loss:.4f}  right {right:.1%}  "
                        f"{self.progress.seen / now:.0f} tok/s  {now:.0f} s",
                        flush=True,
                    )
                    marks.clear()
                if time.monotonic() - saved > 60:
                    self.save()
                    saved = time.monotonic()
                if self.progress.seen >= self.plan.tokens:
                    break
            else:
                self.progress.pool += 1
                self.progress.batch = 0
                self.progress.copying = self.progress.seen < self.plan.copy_share * self.plan.tokens
        self.save()

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by their Hugging Face names, float32."""
        return {name: weight.detach().numpy() for name, weight in self.model.named_parameters()}
