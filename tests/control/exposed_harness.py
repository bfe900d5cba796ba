"""The agent's metrics with every family in them."""

from typing import Any

from samples_harness import batch, sample

from sekisho.control.base import DeviceState, EngineState, KvState
from sekisho.control.loops import LoopFigures
from sekisho.control.prometheus import Quality, Seen, text
from sekisho.control.totals import Totals
from sekisho.control.view import QualityView
from sekisho.control.window import Window
from sekisho.core.clock import ManualClock

KV = KvState(512, 2048, 4096, {"L0": 100, "L1": 200, "L2": 212, "L3": 900}, 12, 0.97)
ENGINES = (
    EngineState("m", "torch", "ready", None, 2, 1, 4, KV, 0.6),
    EngineState("n", "llama_cpp", "down", "the process ended", 0, 3, 4),
)
DEVICES = (
    DeviceState("cpu", "cpu", "a processor", True, 0.25),
    DeviceState("gpu0", "gpu", "a card", True, 0.9, 7 << 30, 8 << 30, 71.0, 90.0),
    DeviceState("npu0", "npu", "gone", False, reason="it is not there any more"),
)
LOOPS = (LoopFigures("fast", 1.0, 100, 2, 1, 0.25, 0.0025, None),)
QUALITY = (
    Quality("m", QualityView(10.0, 10.25, 0.25, last_run=1.75e9), 0.5),
    Quality("n", QualityView(), 0.3),
)
DECISIONS = {("middle", "applied"): 3, ("slow", "advised"): 1}


def exposed(**changes: Any) -> bytes:
    clock = ManualClock()
    window, totals = Window(60.0, clock), Totals(clock)
    clock.advance(60.0)
    told = batch(
        sample(1, mean_nll=1.5),
        sample(2, duration_ms=3000.0, first_token_ms=None),
        sample(3, status="engine_failed"),
        known_s=60.0,
    )
    window.take(told)
    totals.take(told)
    values: dict[str, Any] = {
        "figures": [window.figures(), window.figures("m"), window.figures("silent")],
        "totals": totals.counted(),
        "engines": ENGINES,
        "devices": DEVICES,
        "decisions": DECISIONS,
        "loops": LOOPS,
        "quality": QUALITY,
    }
    return text(Seen(**{**values, **changes}))
