"""Policies measured on real workers with the built-in model."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from sekisho.control import trial_room
from sekisho.control.comparison import OutOfBudget
from sekisho.control.load import LoadPlan
from sekisho.control.measured import MeasurementFailed
from sekisho.control.perplexity.baselines import Baselines
from sekisho.control.perplexity.measure import Job
from sekisho.control.perplexity.texts import Text, built_in
from sekisho.control.policy import KvSection, Policy
from sekisho.control.trial_engine import TrialEngine, TrialPlan, stoppable, until
from sekisho.control.trial_quality import Quality
from sekisho.control.trial_worker import started
from sekisho.core.clock import SystemClock
from sekisho.engines import worker_process
from sekisho.engines.config import ModelConfig
from sekisho.ops.gpu_sample import GpuReading, GpuSample

OWN = ModelConfig("m", path="builtin", context=512, slots=2, threads=1)
PLAN = TrialPlan(prompt_tokens=96, answer_tokens=24)
TOKEN_BYTES = 4608  # of the built-in model's KV cache at 16 bits
CLOCK = SystemClock()
EIGHT = Policy(kv=KvSection(key_type="q8_0", value_type="q8_0"))


def engine(quality: Quality | None = None, own: ModelConfig = OWN, **more: object) -> TrialEngine:
    return TrialEngine(own, Policy(), PLAN, quality, CLOCK, **more)  # type: ignore[arg-type]


def _workers() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if _is_worker(each)]


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # another one that has ended, perhaps long ago
        return "llama_worker" in " ".join(process.cmdline())
    return False


Workers = Callable[[], list[psutil.Process]]


@pytest.fixture(autouse=True)
def kept_ports(monkeypatch: pytest.MonkeyPatch, unused_tcp_port_factory: Callable[[], int]) -> None:
    """Nobody takes a worker's port between its choice and its start."""
    monkeypatch.setattr(worker_process, "free_port", unused_tcp_port_factory)


@pytest.fixture
def workers() -> Workers:
    """Those that the test has started: other tests may keep one for the whole run."""
    before = set(_workers())
    return lambda: [each for each in _workers() if each not in before]


async def test_a_measurement_has_all_figures_and_leaves_nobody_behind(tmp_path: Path, workers: Workers) -> None:
    """Speeds, first token, memory, the exact bytes of its KV cache, and what its types cost; the loss is measured once,
    and what loses too much is not loaded any more."""
    quality = Quality(Job(Text("some", built_in().body[:1200])), Baselines(tmp_path / "baselines.json"), CLOCK)
    found = await engine(quality).measure(EIGHT, 1.0)
    assert workers() == []
    assert None not in msgspec.structs.astuple(found)
    assert (found.contexts, found.notes) == (2, ())
    assert found.kv_bytes == 2 * 512 * TOKEN_BYTES * 8.5 / 16
    (tmp_path / "baselines.json").unlink()
    assert await quality.loss(msgspec.structs.replace(OWN, kv_type_k="q8_0", kv_type_v="q8_0", slots=9)) != 0
    assert not (tmp_path / "baselines.json").exists()
    assert quality.known(OWN) == 0.0
    refused = await engine(quality, max_loss=-1e9).measure(EIGHT, 1.0)
    assert (refused.delta_ppl, refused.decode_tokens_per_s) == (found.delta_ppl, None)


async def test_a_policy_that_the_engine_cannot_take_says_why() -> None:
    """Unless the base asks for the same in vain, or somebody was told already."""
    asked = Policy(kv=KvSection(budget=0.3))
    with pytest.raises(MeasurementFailed, match=r"kv\.budget: llama\.cpp has one type"):
        await engine().measure(asked, 1.0)
    assert TrialEngine(OWN, asked, PLAN, None, CLOCK).settings(asked) == OWN
    assert engine(spared={"kv.budget"}).settings(asked) == OWN
    with pytest.raises(MeasurementFailed, match="no room for prompts of 96"):
        await engine(own=msgspec.structs.replace(OWN, context=100)).measure(Policy(), 1.0)
    with pytest.raises(MeasurementFailed, match="kv of m: budget must be above 0"):
        engine(own=ModelConfig("m", engine="torch", path="x", kv={"budget": 7})).settings(Policy())
    with pytest.raises(MeasurementFailed, match="only workers of llama_cpp, torch"):
        engine(own=ModelConfig("m", engine="openai_http", url="http://x/v1")).settings(Policy())


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (ModelConfig("m", path="/nowhere/m.gguf"), r"exit code 78\): model file /nowhere/m.gguf: no such file"),
        (msgspec.structs.replace(OWN, slots=300, context=256), "could not start .*n_seq_max must be <= 256"),
    ],
)
async def test_a_worker_that_does_not_start_says_why(own: ModelConfig, said: str, workers: Workers) -> None:
    """In its own words, with llama.cpp's where it points to them."""
    with pytest.raises(MeasurementFailed, match=said):
        await engine(own=own).measure(Policy(), 1.0)
    assert workers() == []


async def test_stopping_ends_the_worker_at_once(workers: Workers) -> None:
    """In the midst of a measurement; after that nothing is begun."""
    stop = asyncio.Event()
    measure = stoppable(engine(own=msgspec.structs.replace(OWN, slots=8, context=2048)).measure, stop)
    running = asyncio.ensure_future(measure(Policy(), 1000.0))
    while not workers():  # noqa: ASYNC110  # no other process tells of its start
        await asyncio.sleep(0.01)
    stop.set()
    with pytest.raises(OutOfBudget):
        await running
    assert workers() == []
    with pytest.raises(OutOfBudget):
        await measure(Policy(), 1.0)
    with pytest.raises(OutOfBudget):
        await until(stop, asyncio.sleep(3600))
    assert await until(asyncio.Event(), asyncio.sleep(0, "done")) == "done"


async def test_a_worker_dies_with_its_parent() -> None:
    """Though it has a session of its own, so that Ctrl+C reaches its parent alone."""
    code = (
        "import asyncio, os, signal\n"
        "from sekisho.control.trial_worker import started\n"
        "from sekisho.core.clock import SystemClock\n"
        "from sekisho.engines.config import ModelConfig\n"
        "async def main():\n"
        "    async with started(ModelConfig('m', path='builtin', context=256, slots=1), SystemClock()) as worker:\n"
        "        print(worker.process, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        worker = psutil.Process(int(done.stdout))
        with contextlib.suppress(psutil.TimeoutExpired):
            worker.wait(60)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


async def test_a_worker_that_is_not_ready_in_time_is_ended(workers: Workers) -> None:
    with pytest.raises(MeasurementFailed, match="not ready within 0 s"):
        async with started(OWN, CLOCK, start_s=0.0):
            pass
    assert workers() == []


def test_more_effort_is_longer_answers_and_more_prompts() -> None:
    """As far as the context goes."""
    whole = msgspec.structs.replace(OWN, context=2048, slots=3)
    assert TrialPlan().load(whole, 1.0) == LoadPlan(
        "m", 3, 512, 32, timeout_s=TrialPlan().load_s, extra={"ignore_eos": True}
    )
    long = TrialPlan(prompt_tokens=96, answer_tokens=100).load(OWN, 4.0)
    assert (long.answer_tokens, long.repeats) == (512 - 96 - 32, 4)


def test_room_is_that_of_the_largest_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, KV cache and half a GiB to spare; a card that has more counts where layers may go there."""
    monkeypatch.setattr("sekisho.ops.swap_room.free_bytes", lambda: 2**32)
    card = GpuReading((GpuSample(0, "card", 2**50, 0),))
    small = trial_room.look([OWN], lambda: GpuReading())
    large = trial_room.look([OWN, msgspec.structs.replace(OWN, slots=40)], lambda: GpuReading())
    assert (large.need_bytes or 0) - (small.need_bytes or 0) == 38 * 512 * TOKEN_BYTES
    assert small.enough
    assert trial_room.look([OWN], lambda: card).free_bytes == 2**50
    assert trial_room.look([msgspec.structs.replace(OWN, gpu_layers=0)], lambda: card).free_bytes == 2**32
    assert not trial_room.look([msgspec.structs.replace(OWN, slots=10**9)], lambda: GpuReading()).enough
    assert trial_room.look([ModelConfig("m", path="/nowhere.gguf")], lambda: GpuReading()).enough
