"""How long a decode step takes: in one layer of a shape, and in a whole model.

Contenders take turns, round by round, so that whatever else the machine does meets all of them alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sekisho.kv.bench import prompt as prompts
from sekisho.kv.bench.bare import BareLayer, bare_layer, step
from sekisho.kv.bench.contenders import Contender
from sekisho.kv.bench.entries import Entry
from sekisho.kv.bench.figures import Array, Figure, bootstrapped, missing
from sekisho.kv.bench.models import Loaded, shape
from sekisho.kv.bench.prompt import hand_over, settled_for, share_of
from sekisho.kv.bench.unavailable import Unavailable

GROUPED: Final = "sdpa-grouped"
REPEATED: Final = "sdpa-repeated"


class SpeedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`shapes` and `tokens`: for one layer alone, with `batch` sequences. `model_tokens`: prompt lengths for whole
    models, one sequence. `rounds` of `steps` decode steps; the first round warms up and does not count."""

    shapes: tuple[str, ...] = ("1b", "7b", "13b", "20b")
    tokens: tuple[int, ...] = (4096,)
    batch: int = 1
    model_tokens: tuple[int, ...] = (1024,)
    rounds: int = 12
    steps: int = 4


class SpeedRow(msgspec.Struct, frozen=True, kw_only=True):
    """`subject`: a shape or a model. `step_ms`: the median of the rounds' mean decode step, over `layers_measured` of
    `layers` layers and, for a model, all around them. `relative`: the reference's median time over this one, so above 1
    is faster; `reference` names it."""

    entry: Entry
    knobs: dict[str, object]
    subject: str
    tokens: int
    batch: int = 1
    layers_measured: int
    layers: int
    share: Figure
    step_ms: Figure
    relative: Figure
    reference: str


@dataclass
class Runner:
    """Something that takes turns. `turn` does `steps` decode steps."""

    entry: Entry
    knobs: dict[str, object]
    share: Figure
    turn: Callable[[], None]


def layers_alone(
    plan: SpeedPlan,
    entries: Sequence[tuple[Entry, Contender]],
    dtype: torch.dtype,
    device: str,
    progress: Callable[[str], None],
) -> list[SpeedRow]:
    """One layer's update and attention. The reference is torch's attention over keys and values that lie ready, in the
    faster of two ways: torch groups the heads, or finds them repeated."""
    rows = []
    for name in plan.shapes:
        for tokens in plan.tokens:
            bare = bare_layer(shape(name), tokens, dtype, device, plan.batch)
            runners: list[Runner] = [_ready(bare, plan.steps, grouped) for grouped in (True, False)]
            reasons = []
            for entry, contender in entries:
                try:
                    runners.append(_alone(bare, entry, contender, plan.steps))
                except Unavailable as error:
                    reasons.append((entry, contender, str(error)))
            times = _in_turns(runners, plan.rounds, plan.steps, device)
            reference = min((GROUPED, REPEATED), key=lambda each: float(np.median(times[Entry(each)])))
            about: dict[str, object] = {"subject": name, "tokens": tokens, "batch": plan.batch}
            about |= {"layers_measured": 1, "layers": shape(name).layers}
            rows += _rows(runners, times, reference, about) + [_absent(*each, reference, about) for each in reasons]
            progress(f"decode steps of one layer of {name} at {tokens} tokens")
    return rows


def whole_model(
    loaded: Loaded,
    text: Tensor,
    plan: SpeedPlan,
    entries: Sequence[tuple[Entry, Contender]],
    progress: Callable[[str], None],
) -> list[SpeedRow]:
    """Decode steps of a model after a prompt of (1, n) token ids, cut to each length. The reference is `full`."""
    prompts.register()
    rows, layers = [], int(loaded.model.config.get_text_config(decoder=True).num_hidden_layers)
    for tokens in plan.model_tokens:
        prompt, _ = prompts.read(loaded.model, text[:, :tokens].to(loaded.model.device))
        runners, reasons = [], []
        for entry, contender in entries:
            try:
                runners.append(_whole(loaded, prompt, entry, contender, plan.steps))
            except Unavailable as error:
                reasons.append((entry, contender, str(error)))
        times = _in_turns(runners, plan.rounds, plan.steps, str(loaded.model.device))
        about = {"subject": loaded.name, "tokens": tokens, "layers_measured": layers, "layers": layers}
        rows += _rows(runners, times, "full", about) + [_absent(*each, "full", about) for each in reasons]
        progress(f"decode steps of {loaded.name} after {tokens} tokens")
    return rows


def _ready(bare: BareLayer, steps: int, grouped: bool) -> Runner:
    """Torch's attention alone, over dense keys and values; nothing is stored."""
    seen = bare.prompt.seen[0]
    times = seen.query.shape[1] // seen.keys.shape[1]
    keys, values = seen.keys, seen.values
    if not grouped:
        keys, values = (each.repeat_interleave(times, 1) for each in (keys, values))
    token = bare.token(torch.Generator().manual_seed(1))

    def turn() -> None:
        for _ in range(steps):
            scaled_dot_product_attention(
                token.query, keys, values, scale=seen.call.scaling, enable_gqa=grouped and times > 1
            )

    held = sum(each.untyped_storage().nbytes() for each in (keys, values))
    share = held / (2 * 2 * seen.keys.numel())
    return Runner(Entry(GROUPED if grouped else REPEATED), {}, Figure(value=share, n=1, blocks=1), turn)


def _alone(bare: BareLayer, entry: Entry, contender: Contender, steps: int) -> Runner:
    chosen = settled_for(contender, bare.cache, bare.prompt, entry.target)
    cache = bare.cache(chosen)
    hand_over(bare.prompt, cache)
    share = share_of(cache, bare.prompt, bare.prompt.tokens)
    generator = torch.Generator().manual_seed(1)

    def turn() -> None:
        bare.config._attn_implementation = chosen.attention
        for _ in range(steps):
            step(chosen, cache, bare.token(generator))

    return Runner(entry, dict(chosen.knobs), Figure(value=share, n=1, blocks=1), turn)


def _whole(loaded: Loaded, prompt: prompts.Prompt, entry: Entry, contender: Contender, steps: int) -> Runner:
    model = loaded.model
    chosen = prompts.settled(contender, model, prompt, entry.target)
    cache = chosen.cache(model.config, prompts.storage_dtype(model))
    model.set_attn_implementation(chosen.attention)
    hand_over(prompt, cache)
    share = share_of(cache, prompt, prompt.tokens)
    following = [prompt.logits.argmax(-1, keepdim=True)]

    def turn() -> None:
        model.set_attn_implementation(chosen.attention)
        for _ in range(steps):
            following[0] = model(following[0], cache=cache).logits[:, -1].argmax(-1, keepdim=True)

    return Runner(entry, dict(chosen.knobs), Figure(value=share, n=1, blocks=1), turn)


def _in_turns(runners: Sequence[Runner], rounds: int, steps: int, device: str) -> dict[Entry, Array]:
    """Milliseconds a step, by round."""
    times: dict[Entry, list[float]] = {each.entry: [] for each in runners}
    with torch.no_grad():
        for number in range(rounds + 1):
            for runner in runners:
                begin = time.perf_counter()
                runner.turn()
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                if number:
                    times[runner.entry].append((time.perf_counter() - begin) * 1000 / steps)
    return {entry: np.array(each) for entry, each in times.items()}


def _rows(
    runners: Sequence[Runner], times: dict[Entry, Array], reference: str, about: dict[str, object]
) -> list[SpeedRow]:
    rows = []
    base = next((each for entry, each in times.items() if entry == Entry(reference)), None)
    for runner in runners:
        mine = times[runner.entry]
        relative = missing(f"{reference} was not measured")
        if base is not None:
            pairs = [np.array([pair]) for pair in zip(base, mine, strict=True)]
            relative = msgspec.structs.replace(bootstrapped(pairs, _ratio), n=len(mine))
        rows.append(
            msgspec.convert(
                {
                    **about,
                    "entry": runner.entry,
                    "knobs": runner.knobs,
                    "share": runner.share,
                    "step_ms": bootstrapped([np.array([each]) for each in mine], lambda each: float(np.median(each))),
                    "relative": relative,
                    "reference": reference,
                },
                SpeedRow,
            )
        )
    return rows


def _ratio(pairs: Array) -> float:
    return float(np.median(pairs[:, 0]) / np.median(pairs[:, 1]))


def _absent(entry: Entry, contender: Contender, reason: str, reference: str, about: dict[str, object]) -> SpeedRow:
    none = missing(reason)
    found = {"entry": entry, "knobs": dict(contender.knobs), "share": none, "step_ms": none, "relative": none}
    return msgspec.convert({**about, **found, "reference": reference}, SpeedRow)
