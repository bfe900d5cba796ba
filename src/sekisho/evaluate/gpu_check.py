"""Do several graphics cards share the work? Memory per card before and after loading and under requests, one card
against two, and a verdict in words.

`judge` is pure. `measure` samples around a load that the caller does; `measure_restart` loads by starting an engine of
a running server anew.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec

from sekisho.evaluate.figures import Figure
from sekisho.ops.engine_door import restart_engine
from sekisho.ops.gpu_sample import GpuReading, GpuSample, read_gpus
from sekisho.ops.home import Home

SAMPLE_S = 0.25
CONTEXT_BYTES = 512 << 20
"""What CUDA and its libraries take on a card that holds no weights at all: 300 to 500 MiB are usual."""
FULL_SHARE = 0.95
BUSY_SHARE = 0.05
GAIN = 1.05
"""Two cards that are not 5 % faster than one are no gain."""

Read = Callable[[], GpuReading]
Words = tuple[str, str]
Spread = Literal["no_cards", "not_told", "none", "too_small", "one_card", "one_only", "some", "all"]
Gain = Literal["gain", "no_gain", "slower", "needed", "not_measured"]


class GpuPhases(msgspec.Struct, frozen=True):
    """`under_load`: the most that each card held and did while requests ran."""

    before: GpuReading
    loaded: GpuReading
    under_load: GpuReading


class ShortBench(msgspec.Struct, frozen=True):
    """Tokens per second of each request, with that many cards, one request at a time (the seed: ten of 256 tokens).
    `failed`: why the model did not run there at all, as when it does not fit one card."""

    cards: int
    tok_s: tuple[float, ...] = ()
    failed: str = ""


class Card(msgspec.Struct, frozen=True):
    """`grew_bytes` by loading. `carries`: that is more than a card without weights takes."""

    index: int
    name: str
    grew_bytes: int | None
    carries: bool | None
    busy: float | None
    full: bool


class GpuVerdict(msgspec.Struct, frozen=True):
    """`spread`: over how many cards the model lies. `gain`: what the second card is good for; `ratio` is two cards'
    median tok/s by one's. `words` and `next_step` are (English, Japanese). `good` None: not decided yet."""

    spread: Spread
    gain: Gain
    ratio: float | None
    good: bool | None
    cards: tuple[Card, ...]
    words: Words
    next_step: Words


async def measure(
    load: Callable[[], Awaitable[object]],
    requests: Callable[[], Awaitable[object]],
    *,
    read: Read = read_gpus,
    every_s: float = SAMPLE_S,
) -> GpuPhases:
    """Samples, awaits `load`, samples, and samples on while `requests` run. What these raise goes through."""
    before = await asyncio.to_thread(read)
    await load()
    loaded = await asyncio.to_thread(read)
    seen = await _while(requests(), read, every_s)
    return GpuPhases(before, loaded, _extreme([loaded, *seen], max))


async def measure_restart(
    home: Home,
    model: str,
    requests: Callable[[], Awaitable[object]],
    *,
    read: Read = read_gpus,
    every_s: float = SAMPLE_S,
) -> GpuPhases:
    """The same for an engine of a running server, whose load is its restart: the least that each card held meanwhile
    is what it holds without the model. Raises as `engine_door.restart_engine` does."""
    seen = await _while(restart_engine(home, model), read, every_s)
    loaded = await asyncio.to_thread(read)
    under = await _while(requests(), read, every_s)
    return GpuPhases(_extreme([*seen, loaded], min), loaded, _extreme([loaded, *under], max))


async def _while(work: Awaitable[object], read: Read, every_s: float) -> list[GpuReading]:
    """Samples from now until `work` is done; at least once."""
    task = asyncio.ensure_future(work)
    readings = []
    try:
        while True:
            readings.append(await asyncio.to_thread(read))
            done, _ = await asyncio.wait({task}, timeout=every_s)
            if done:
                await task
                return readings
    finally:
        task.cancel()


def _extreme(readings: Sequence[GpuReading], pick: Callable[[Sequence[float]], float]) -> GpuReading:
    """Card by card the most or least memory, and always the most use. A driver may be too busy to answer at times."""
    last = next((reading for reading in reversed(readings) if reading.gpus), GpuReading())
    found = []
    for card in last.gpus:
        same = [gpu for reading in readings if (gpu := reading.get(card.index)) is not None]
        used = [gpu.used_bytes for gpu in same if gpu.used_bytes is not None]
        busy = [gpu.busy for gpu in same if gpu.busy is not None]
        found.append(
            msgspec.structs.replace(
                card, used_bytes=int(pick(used)) if used else None, busy=max(busy) if busy else None
            )
        )
    return GpuReading(tuple(found), last.source)


def judge(
    phases: GpuPhases, *, wanted: int | None = None, one: ShortBench | None = None, two: ShortBench | None = None
) -> GpuVerdict:
    """`wanted`: over how many cards the model should lie; None: over all. Counted and not matched by index, because
    CUDA numbers cards by speed and nvidia-smi by slot unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`."""
    cards = tuple(_card(gpu, phases) for gpu in phases.under_load.gpus)
    spread = _spread(cards, wanted)
    gain, ratio = _gain(one, two)
    good = _good(spread, gain)
    values = {
        "carrying": ", ".join(str(card.index) for card in cards if card.carries),
        "wanted": len(cards) if wanted is None else wanted,
        "ratio": 0.0 if ratio is None else ratio,
        "why": one.failed if one is not None else "",
    }
    spread_words, gain_words = _SPREAD[spread], _GAIN[gain]
    words = [(spread_words[i] + (" " if gain_words[i] else "") + gain_words[i]).format(**values) for i in (0, 1)]
    idle = [card.index for card in cards if card.carries and card.busy is not None and card.busy < BUSY_SHARE]
    full = [card.index for card in cards if card.full]
    for indexes, (english, japanese) in ((idle, _IDLE), (full, _FULL)):
        if indexes:
            named = ", ".join(map(str, indexes))
            words = [words[0] + " " + english.format(cards=named), words[1] + japanese.format(cards=named)]
    step = _NEXT[_next(spread, gain)]
    return GpuVerdict(spread, gain, ratio, good, cards, (words[0], words[1]), step)


def _card(gpu: GpuSample, phases: GpuPhases) -> Card:
    before, loaded = phases.before.get(gpu.index), phases.loaded.get(gpu.index)
    grew = None
    if before is not None and loaded is not None and before.used_bytes is not None and loaded.used_bytes is not None:
        grew = loaded.used_bytes - before.used_bytes
    carries = None if grew is None else grew > CONTEXT_BYTES
    return Card(gpu.index, gpu.name, grew, carries, gpu.busy, (gpu.used_share or 0.0) >= FULL_SHARE)


def _spread(cards: Sequence[Card], wanted: int | None) -> Spread:
    grown = [card.grew_bytes for card in cards if card.grew_bytes is not None]
    if not cards:
        return "no_cards"
    if len(grown) < len(cards):
        return "not_told"
    carrying = sum(bool(card.carries) for card in cards)
    should = min(wanted or len(cards), len(cards))
    if carrying == 0:
        return "too_small" if max(grown) > CONTEXT_BYTES // 16 else "none"
    if len(cards) == 1:
        return "one_card"
    if carrying >= should:
        return "all"
    return "one_only" if carrying == 1 else "some"


def _gain(one: ShortBench | None, two: ShortBench | None) -> tuple[Gain, float | None]:
    if two is None or not two.tok_s:
        return "not_measured", None
    if one is not None and one.failed:
        return "needed", None
    if one is None or not one.tok_s:
        return "not_measured", None
    ratio = statistics.median(two.tok_s) / statistics.median(one.tok_s)
    return ("gain" if ratio >= GAIN else "slower" if ratio <= 1 / GAIN else "no_gain"), ratio


def _good(spread: Spread, gain: Gain) -> bool | None:
    if spread in ("no_cards", "not_told", "too_small"):
        return None
    if spread == "none":
        return False
    if spread == "one_card":
        return True
    if gain == "not_measured":
        return True if spread == "all" else None
    return gain in ("gain", "needed")


def _next(spread: Spread, gain: Gain) -> str:
    if spread in ("no_cards", "not_told", "none", "too_small"):
        return spread
    if spread in ("one_only", "some") and gain == "not_measured":
        return "compare"
    return "fewer" if spread != "one_card" and gain in ("no_gain", "slower") else "keep"


def figures(phases: GpuPhases, *, command: str = "", file: str = "") -> list[Figure]:
    """`gpu.<index>.before_bytes`, `.loaded_bytes` and `.under_load_bytes`; one without a value where there is no
    card."""
    if not phases.under_load.gpus:
        why = "no graphics card was seen: models run on the processor"
        return [Figure(id="gpu.0.loaded_bytes", value=None, unit="bytes", why_null=why, command=command)]
    found = []
    for gpu in phases.under_load.gpus:
        for name in ("before", "loaded", "under_load"):
            sample = getattr(phases, name).get(gpu.index)
            used = sample.used_bytes if sample is not None else None
            why = "" if used is not None else "the driver does not tell this card's memory"
            found.append(
                Figure(
                    id=f"gpu.{gpu.index}.{name}_bytes",
                    value=used,
                    unit="bytes",
                    why_null=why,
                    command=command,
                    file=file,
                    note=gpu.name,
                )
            )
    return found


_SPREAD: dict[Spread, Words] = {
    "no_cards": ("There is no graphics card.", "グラフィックスカードがありません。"),
    "not_told": (
        "The driver does not tell every card's memory, so nothing can be said.",
        "ドライバーが全カードのメモリー量を返さないため、判定できません。",
    ),
    "none": (
        "Loading the model changed no card's memory: it runs on the processor.",
        "モデルをロードしても、どのカードのメモリーも増えていません。CPU で動いています。",
    ),
    "too_small": (
        "The model takes less than a card needs for itself: where it lies cannot be told.",
        "モデルがカード自身の消費量より小さいため、どこに載ったか判定できません。",
    ),
    "one_card": ("The model lies on the one card there is.", "唯一のカードにモデルが載っています。"),
    "one_only": (
        "Only card {carrying} holds the model; {wanted} were to share it.",
        "モデルが載っているのはカード {carrying} だけです（{wanted} 枚に分散するはずでした）。",
    ),
    "some": (
        "Cards {carrying} hold the model; {wanted} were to share it.",
        "モデルが載っているのはカード {carrying} です（{wanted} 枚に分散するはずでした）。",
    ),
    "all": ("Cards {carrying} share the model.", "モデルはカード {carrying} に分散しています。"),
}
_GAIN: dict[Gain, Words] = {
    "gain": (
        "Two cards write {ratio:.2f} times as fast as one.",
        "2 枚での生成速度は 1 枚の {ratio:.2f} 倍です。",
    ),
    "no_gain": (
        "Two cards are no gain over one ({ratio:.2f} times as fast).",
        "2 枚にしても速くなりません（1 枚の {ratio:.2f} 倍）。",
    ),
    "slower": (
        "Two cards are slower than one ({ratio:.2f} times as fast).",
        "2 枚のほうが 1 枚より遅くなります（{ratio:.2f} 倍）。",
    ),
    "needed": ("One card alone does not do: {why}.", "1 枚では動きません: {why}"),
    "not_measured": ("", ""),
}
_IDLE: Words = (
    "Under requests, card {cards} did nothing.",
    "リクエスト処理中、カード {cards} は動いていませんでした。",
)
_FULL: Words = (
    "Card {cards} was at 95 % of its memory or more under requests.",
    "リクエスト処理中、カード {cards} のメモリー使用率が 95 % 以上でした。",
)
_NEXT: dict[str, Words] = {
    "no_cards": ("", ""),
    "not_told": ("Look at the engine's log, which names its devices.", "エンジンのログでデバイスを確認してください。"),
    "none": (
        "Check gpu_layers and devices of the model, and that the engine was built for this card.",
        "モデルの gpu_layers と devices、エンジンがこのカード向けのビルドかを確認してください。",
    ),
    "too_small": ("Repeat with the model that will serve.", "本番で使うモデルで測り直してください。"),
    "compare": (
        "Compare one card with two by a short benchmark: one at a time, 256 tokens, 10 requests.",
        "短縮ベンチ（並列 1、256 トークン、10 本）で 1 枚と 2 枚を比較してください。",
    ),
    "fewer": (
        'Give the model one card (devices: "0") and use the other for something else.',
        'モデルは 1 枚で動かし（devices: "0"）、もう 1 枚は他の用途に回してください。',
    ),
    "keep": ("Keep it as it is.", "このままで問題ありません。"),
}
