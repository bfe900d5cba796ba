"""Whether cards share a model: judged over samples, and sampled around loads that really happen.

The cards are a program `nvidia-smi` of the tests, whose answers follow the documented format.
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))  # a server as a person starts it

from e2e_harness import Sekisho

from sekisho.engines import builtin
from sekisho.evaluate.gpu_check import (
    GpuPhases,
    GpuVerdict,
    ShortBench,
    figures,
    judge,
    measure,
    measure_restart,
)
from sekisho.ops.gpu_sample import GpuReading, GpuSample

GIB = 1 << 30
TOTAL = 48 * GIB


def reading(*used_gib: float | None, busy: tuple[float | None, ...] = ()) -> GpuReading:
    uses = busy or (None,) * len(used_gib)
    return GpuReading(
        tuple(
            GpuSample(index, "NVIDIA A40", TOTAL, None if used is None else int(used * GIB), use)
            for index, (used, use) in enumerate(zip(used_gib, uses, strict=True))
        ),
        "nvidia-smi",
    )


def phases(
    before: tuple[float | None, ...], loaded: tuple[float | None, ...], under: GpuReading | None = None
) -> GpuPhases:
    return GpuPhases(reading(*before), reading(*loaded), under or reading(*loaded, busy=(0.6,) * len(loaded)))


def test_both_cards_grow() -> None:
    """A model that lies on both cards is good as it is, in both languages."""
    verdict = judge(phases((0.3, 0.3), (30.5, 29.8)), wanted=2)
    assert (verdict.spread, verdict.gain, verdict.good) == ("all", "not_measured", True)
    assert [card.carries for card in verdict.cards] == [True, True]
    assert all("0, 1" in words for words in verdict.words)


def test_a_card_with_nothing_but_a_context_does_not_count() -> None:
    """The 0.45 GiB that CUDA takes on every card it can see is no part of the model: compare before deciding."""
    verdict = judge(phases((0.3, 0.3), (40.0, 0.75)), wanted=2)
    assert (verdict.spread, verdict.good) == ("one_only", None)
    assert [card.carries for card in verdict.cards] == [True, False]
    assert "10" in verdict.next_step[0]


@pytest.mark.parametrize(
    ("one", "two", "gain", "good"),
    [
        (ShortBench(1, (20.0, 21.0, 22.0)), ShortBench(2, (30.0, 31.0, 32.0)), "gain", True),
        (ShortBench(1, (20.0, 21.0, 22.0)), ShortBench(2, (20.5, 21.5, 22.5)), "no_gain", False),
        (ShortBench(1, (20.0, 21.0, 22.0)), ShortBench(2, (10.0, 11.0, 12.0)), "slower", False),
        (ShortBench(1, failed="out of memory"), ShortBench(2, (12.0,)), "needed", True),
        (ShortBench(1), ShortBench(2, (12.0,)), "not_measured", None),
        (ShortBench(1, (12.0,)), ShortBench(2, failed="crashed"), "not_measured", None),
        (None, None, "not_measured", None),
    ],
)
def test_one_card_against_two(one: ShortBench | None, two: ShortBench | None, gain: str, good: bool | None) -> None:
    """The medians decide, unless one card cannot do it at all; what was not measured decides nothing."""
    verdict = judge(phases((0.3, 0.3), (40.0, 0.4)), wanted=2, one=one, two=two)
    assert (verdict.gain, verdict.good) == (gain, good)
    if gain == "needed":
        assert all("out of memory" in words for words in verdict.words)


def test_two_cards_that_share_and_gain_nothing() -> None:
    """Sharing alone is no reason to pay for a second card."""
    one, two = ShortBench(1, (20.0,) * 10), ShortBench(2, (20.0,) * 10)
    verdict = judge(phases((0.3, 0.3), (20.0, 20.0)), one=one, two=two)
    assert (verdict.spread, verdict.gain, verdict.ratio, verdict.good) == ("all", "no_gain", 1.0, False)
    assert "devices" in verdict.next_step[0]


def test_a_model_on_the_processor() -> None:
    """Cards whose memory did not change hold nothing."""
    verdict = judge(phases((0.3, 0.3), (0.3, 0.3)))
    assert (verdict.spread, verdict.good) == ("none", False)
    assert "gpu_layers" in verdict.next_step[0]


def test_a_model_too_small_to_tell() -> None:
    """A few hundred MiB may be weights or CUDA's own: nothing is said of them."""
    assert judge(phases((0.3, 0.3), (0.7, 0.7))).spread == "too_small"


def test_one_card_and_none() -> None:
    """One card is enough for itself; without a card there is nothing to judge."""
    assert (judge(phases((0.3,), (30.0,))).spread, judge(phases((), ())).spread) == ("one_card", "no_cards")
    assert (judge(phases((0.3,), (30.0,))).good, judge(phases((), ())).good) == (True, None)


def test_cards_that_do_not_tell() -> None:
    """A card without numbers, or one that came meanwhile, is no evidence."""
    assert judge(phases((0.3, None), (30.0, None))).spread == "not_told"
    assert judge(phases((0.3,), (30.0, 30.0))).spread == "not_told"


def test_some_of_four() -> None:
    """Three cards of four are named."""
    verdict = judge(phases((0.3,) * 4, (20.0, 0.4, 20.0, 20.0)))
    assert (verdict.spread, "0, 2, 3" in verdict.words[0]) == ("some", True)
    assert judge(phases((0.3,) * 4, (20.0, 0.4, 20.0, 20.0)), wanted=3).spread == "all"


def test_what_happens_under_requests_is_told() -> None:
    """A card that holds weights and computes nothing, and a card that is nearly full, are named."""
    verdict = judge(phases((0.3, 0.3), (30.0, 30.0), reading(46.5, 30.0, busy=(0.9, 0.0))))
    assert "card 1 did nothing" in verdict.words[0]
    assert "Card 0 was at 95 %" in verdict.words[0]
    assert "カード 1" in verdict.words[1]


@given(
    st.lists(st.tuples(*[st.none() | st.floats(0, 48)] * 3, st.none() | st.floats(0, 1)), max_size=4),
    st.none() | st.integers(1, 5),
    st.none() | st.lists(st.floats(0.1, 1e4), max_size=3),
    st.none() | st.lists(st.floats(0.1, 1e4), max_size=3),
)
def test_every_reading_has_a_verdict(
    cards: list[tuple[float | None, float | None, float | None, float | None]],
    wanted: int | None,
    one: list[float] | None,
    two: list[float] | None,
) -> None:
    """Whatever is measured, there are words in both languages, and `good` never without a card that carries."""
    before, loaded, under, busy = zip(*cards, strict=True) if cards else ((), (), (), ())
    given_ = GpuPhases(reading(*before), reading(*loaded), reading(*under, busy=busy))
    verdict: GpuVerdict = judge(
        given_,
        wanted=wanted,
        one=None if one is None else ShortBench(1, tuple(one)),
        two=None if two is None else ShortBench(2, tuple(two)),
    )
    assert all(verdict.words)
    assert "{" not in "".join(verdict.words)
    if verdict.good:
        assert any(card.carries for card in verdict.cards)


def test_figures_of_each_card() -> None:
    """Three figures a card; a number that is missing says why."""
    found = {figure.id: figure for figure in figures(phases((0.5, None), (30.0, None)), command="c")}
    assert len(found) == 6
    assert found["gpu.0.before_bytes"].value == GIB // 2
    assert found["gpu.0.loaded_bytes"].value == 30 * GIB
    assert found["gpu.1.under_load_bytes"].value is None
    assert found["gpu.1.under_load_bytes"].why_null
    (none,) = figures(phases((), ()))
    assert (none.value, "no graphics card" in none.why_null) == (None, True)


class Cards:
    """`nvidia-smi` on the path, telling what stands in a file: MiB in use and per cent busy of each card. What it has
    told of the first card stands in another file."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.told = folder / "told"
        self.program = folder / "bin" / "nvidia-smi"
        self.program.parent.mkdir()
        self.program.write_text(
            "#!/bin/sh\n"
            'case "$1" in --query-gpu=*) while read -r index used busy; do\n'
            'echo "$index, GPU-$index, 49140, $used, $busy, NVIDIA A40"\n'
            f'[ "$index" = 0 ] && echo "$used" >>{self.told}\n'
            f"done <{self.state}; exit 0 ;; esac\n"
        )
        self.program.chmod(0o755)

    def tell(self, *cards: tuple[int, int]) -> None:
        fresh = self.state.with_suffix(".new")
        fresh.write_text("".join(f"{index} {used} {busy}\n" for index, (used, busy) in enumerate(cards)))
        fresh.replace(self.state)

    async def seen(self, used: int) -> None:
        """Waits until a sample has begun that tells so much of the first card: those before it have ended."""
        async with asyncio.timeout(60):
            while str(used) not in self.told.read_text().split():  # noqa: ASYNC110 - a file, no event to wait for
                await asyncio.sleep(0.01)


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    made = Cards(tmp_path)
    monkeypatch.setenv("PATH", f"{made.program.parent}{os.pathsep}{os.environ['PATH']}")
    return made


async def test_the_peak_under_requests_is_kept(cards: Cards) -> None:
    """Before, after and the most during the requests, though it had fallen again when they were done."""
    cards.tell((300, 0), (300, 0))

    async def load() -> None:
        cards.tell((30_000, 0), (29_000, 0))

    async def requests() -> None:
        for used in ((31_000, 40), (33_000, 95), (30_500, 3)):
            cards.tell(used, (29_500, 60))
            await cards.seen(used[0])

    found = await measure(load, requests, every_s=0.01)
    verdict = judge(found, wanted=2)
    zero = found.under_load.get(0)
    assert zero is not None
    assert (zero.used_bytes, zero.busy) == (33_000 << 20, 0.95)
    assert verdict.spread == "all"
    assert {figure.id: figure.value for figure in figures(found)}["gpu.0.under_load_bytes"] == 33_000 << 20


async def test_a_driver_that_once_gives_no_answer_spoils_nothing() -> None:
    """What was read before counts, though the last reading under requests saw no card."""
    readings = iter((reading(0.3), reading(30.0), reading(31.0, busy=(0.4,)), GpuReading()))
    silent = asyncio.Event()

    def read() -> GpuReading:
        told = next(readings, GpuReading())
        if not told.gpus:
            loop.call_soon_threadsafe(silent.set)
        return told

    async def nothing() -> None:
        return

    loop = asyncio.get_running_loop()
    found = await measure(nothing, silent.wait, read=read, every_s=0.01)
    assert judge(found).spread == "one_card"
    assert found.under_load == reading(31.0, busy=(0.4,))


async def test_requests_that_fail_are_not_hidden(cards: Cards) -> None:
    """The sampler stops and the failure comes through."""
    cards.tell((300, 0))

    async def nothing() -> None:
        return

    async def fail() -> None:
        raise RuntimeError("the engine broke")

    with pytest.raises(RuntimeError, match="the engine broke"):
        await measure(nothing, fail, every_s=0.01)


async def test_no_card_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where no driver answers, the flow runs through and says so."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", str(tmp_path))

    async def nothing() -> None:
        return

    found = await measure(nothing, nothing)
    assert judge(found).spread == "no_cards"
    assert figures(found)[0].value is None


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or not builtin.path().is_file(), reason="no built-in model: run `make mini`")
async def test_around_the_restart_of_a_real_engine(cards: Cards, tmp_path: Path) -> None:
    """The card is full while the engine has its model loaded: before and after its restart are told apart."""
    sekisho = Sekisho(tmp_path / "home", "  - {name: one, path: builtin, slots: 1, threads: 1}\n")
    # This card is full while a process of that home has the model's file in its memory, as the system itself tells.
    cards.program.write_text(
        '#!/bin/sh\ncase "$1" in --query-gpu=*) used=300\n'
        f"grep -ls '{builtin.path().name}' /proc/[0-9]*/maps | while read -r maps; do\n"
        f"grep -lsa '{sekisho.home.path}' \"${{maps%maps}}environ\"; done | grep -q . && used=30000\n"
        'echo "0, GPU-0, 49140, $used, 7, NVIDIA A40" ;; esac\n'
    )
    try:
        await asyncio.to_thread(sekisho.up)

        async def requests() -> None:
            def ask() -> None:
                body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
                assert sekisho.client().post("/v1/chat/completions", json=body).status_code == 200

            await asyncio.to_thread(ask)

        found = await measure_restart(sekisho.home, "one", requests, every_s=0.02)
    finally:
        await asyncio.to_thread(sekisho.down)
    values = {figure.id: figure.value for figure in figures(found)}
    assert values == {
        "gpu.0.before_bytes": 300 << 20,
        "gpu.0.loaded_bytes": 30_000 << 20,
        "gpu.0.under_load_bytes": 30_000 << 20,
    }
    assert judge(found).spread == "one_card"
