"""What every actuator promises, asked of all of them: before small servers that speak a vendor's interface, and before
workers of ours with real models."""

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from actuator_harness import (
    KEY,
    UNLIKE,
    EngineServer,
    Lemonade,
    Llama,
    NotedSwapper,
    Other,
    Torch,
    Vllm,
    WorkerSwapper,
    write_genai_folder,
)
from aiohttp import web

from sekisho.control.actuators import ACTUATORS, create
from sekisho.control.actuators.base import DEFAULTS, fields
from sekisho.control.base import EFFECTS, Actuator, ActuatorFailed, Applied, outcome
from sekisho.control.policy import EngineSection, KvSection, Policy, SchedulerSection
from sekisho.engines.config import ModelConfig

SERVERS: dict[str, Callable[[], EngineServer]] = {
    "llama_cpp": Llama,
    "torch": Torch,
    "vllm": Vllm,
    "lemonade": Lemonade,
    "openai_http": Other,
}
KINDS = ("llama_cpp", "llama_cpp_alone", "torch", "vllm", "lemonade", "onnx_genai", "openai_http", "llama_cpp_real")
REAL_TORCH = pytest.param("torch_real", marks=[pytest.mark.kv, pytest.mark.timeout(300)])
WILLING = Policy(
    KvSection(mode="latency_optimized", recent_window=32, budget=0.3),
    engine=EngineSection(slots=3, context=512, threads=1, speculation="off"),
)


class Subject:
    """An actuator, and what is behind it. `seen` is everything that a plan must leave as it is."""

    def __init__(self, actuator: Actuator, label: str, server: EngineServer | None, seen: Callable[[], Any]) -> None:
        self.actuator, self.label, self.server, self.seen = actuator, label, server, seen


async def over_http(kind: str) -> tuple[Subject, EngineServer]:
    name = kind.removesuffix("_alone")
    server = SERVERS[name]()
    await server.start()
    engine = name if name in ("llama_cpp", "torch") else "openai_http"
    served = {"vllm": "org/served", "lemonade": "Qwen3-0.6B-GGUF"}.get(name)
    config = ModelConfig("m", engine=engine, path="builtin", context=1024, slots=2, upstream_model=served)  # type: ignore[arg-type]
    began = server.began if isinstance(server, Torch) else lambda config: None
    swapper = NotedSwapper(config, server.url, began) if kind == engine else None
    placed = None if swapper is None else swapper.placed
    actuator = create(config, server.url, KEY, swapper, placed, name)
    seen = lambda: (server.wrote(), swapper and list(swapper.asked))  # noqa: E731
    return Subject(actuator, actuator.label, server, seen), server  # type: ignore[attr-defined]


def real(engine: Literal["llama_cpp", "torch"], folder: Path) -> Iterator[WorkerSwapper]:
    config = ModelConfig("m", engine=engine, path="builtin", context=1024, slots=2, threads=1)
    swapper = WorkerSwapper(config, folder)
    swapper.start(config)
    yield swapper
    swapper.stop()


@pytest.fixture(scope="module")
def llama_cpp_real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerSwapper]:
    yield from real("llama_cpp", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def torch_real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerSwapper]:
    yield from real("torch", tmp_path_factory.mktemp("torch"))


@pytest.fixture(params=[*KINDS, REAL_TORCH])
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    kind = request.param
    if kind == "onnx_genai":
        folder = write_genai_folder(tmp_path / "folder")
        actuator = create(ModelConfig("m", path=str(folder)), None, None, kind=kind)
        yield Subject(actuator, "ONNX Runtime GenAI", None, lambda: [each.read_bytes() for each in folder.iterdir()])
        await actuator.close()
    elif kind.endswith("_real"):
        swapper: WorkerSwapper = request.getfixturevalue(kind)
        actuator = create(swapper.config, swapper.url, KEY, swapper, swapper.placed)
        yield Subject(actuator, actuator.label, None, swapper.placed)  # type: ignore[attr-defined]
        await actuator.close()
    else:
        made, server = await over_http(kind)
        yield made
        await made.actuator.close()
        await server.stop()


@pytest.fixture(params=SERVERS)
async def distant(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    made, server = await over_http(request.param)
    yield made
    await made.actuator.close()
    await server.stop()


def by_field(applied: tuple[Applied, ...]) -> dict[str, Applied]:
    found = {each.field: each for each in applied}
    assert len(found) == len(applied)
    return found


def test_the_policy_of_these_tests_is_unlike_the_default_everywhere() -> None:
    """Or a field could be forgotten by all."""
    assert [name for name, value in fields(UNLIKE).items() if value == DEFAULTS[name]] == []


async def test_every_field_is_answered_and_what_is_impossible_names_the_engine(subject: Subject) -> None:
    """Each field that differs from the default is in the plan, mapped or with the reason why it cannot be."""
    planned = by_field(await subject.actuator.plan(UNLIKE))
    assert set(planned) == set(fields(UNLIKE))
    for each in planned.values():
        assert each.model == "m"
        assert each.effect in EFFECTS
        assert each.done == (each.effect == "unchanged")
        if each.effect in ("unsupported", "restart"):
            assert each.reason is not None
            assert subject.label in each.reason or "loads it anew" in each.reason, each


async def test_a_default_policy_leads_back_to_the_models_own_settings(subject: Subject) -> None:
    """Whoever has changed nothing is told of nothing. After a change the default takes back what was done here."""
    assert outcome(await subject.actuator.plan(Policy())) == "nothing"
    await subject.actuator.apply(WILLING)
    back = await subject.actuator.apply(Policy())
    assert all(each.done for each in back)
    assert outcome(await subject.actuator.plan(Policy())) == "nothing"


async def test_a_plan_touches_nothing(subject: Subject) -> None:
    """Neither the engine nor its files, however often it is made; and it is the same each time."""
    before = subject.seen()
    first = await subject.actuator.plan(UNLIKE)
    assert await subject.actuator.plan(UNLIKE) == first
    assert subject.seen() == before


async def test_what_is_applied_is_what_was_planned_and_holds(subject: Subject) -> None:
    """Effects are those of the plan; what can be done at once is done, and the next plan finds it in force."""
    planned = by_field(await subject.actuator.plan(WILLING))
    applied = by_field(await subject.actuator.apply(WILLING))
    assert [(each.field, each.effect) for each in applied.values()] == [
        (each.field, each.effect) for each in planned.values()
    ]
    for each in applied.values():
        assert each.done == (each.effect in ("unchanged", "now", "swap")), each
    for name, each in by_field(await subject.actuator.plan(WILLING)).items():
        if applied[name].done:
            assert each.effect == "unchanged", each
            assert each.done


async def test_a_state_says_what_it_does_not_know(subject: Subject) -> None:
    """A ready engine; whatever is None has a reason; it can be written down as JSON."""
    state = await subject.actuator.state()
    assert (state.model, state.engine, state.state) == ("m", subject.actuator.engine, "ready")
    if None in (state.running, state.slots, state.kv, state.accept_rate):
        assert state.reason
    assert msgspec.json.encode(state)


async def test_closing_twice_is_allowed(subject: Subject) -> None:
    """As the protocol promises."""
    await subject.actuator.state()
    await subject.actuator.close()
    await subject.actuator.close()


async def test_an_engine_that_is_gone_is_told(distant: Subject) -> None:
    """Its state is down with the reason, and a plan fails with the engine's name and something to do; so does a change,
    but for llama.cpp's, which starts another worker."""
    assert distant.server is not None
    await distant.server.stop()
    state = await distant.actuator.state()
    assert state.state == "down"
    assert state.reason
    asking = [distant.actuator.plan] + [distant.actuator.apply] * (distant.actuator.engine != "llama_cpp")
    for ask in asking:
        with pytest.raises(ActuatorFailed) as caught:
            await ask(WILLING)
        assert str(caught.value).startswith(f"m ({distant.label}): ")
        assert "; " in str(caught.value)


async def test_an_engine_that_hangs_holds_nobody_up(distant: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and never answers: the state comes by its deadline and says so."""

    async def hang(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    assert distant.server is not None
    distant.server.trouble = hang
    monkeypatch.setattr(sys.modules[type(distant.actuator).state.__module__], "STATE_DEADLINE_S", 0.2)
    state = await distant.actuator.state()
    assert state.state == "down"
    assert "within 0.2 s" in (state.reason or "")


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"{", b"[[]]", b'{"error": {"message": 7}}', b"null", b"NaN{x} y\n"]
)
@pytest.mark.parametrize("status", [200, 404, 500])
async def test_nonsense_is_never_more_than_a_reason(distant: Subject, body: bytes, status: int) -> None:
    """Whatever an engine says, its state comes, and a plan works or fails as promised."""

    async def babble(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status)

    assert distant.server is not None
    distant.server.trouble = babble
    state = await distant.actuator.state()
    assert state.reason
    with contextlib.suppress(ActuatorFailed):
        await distant.actuator.plan(UNLIKE)


def bent(value: Any, chance: random.Random) -> Any:
    """The same with some parts lost and some of another kind."""
    if chance.random() < 0.08:
        return chance.choice((None, True, 3, -1, 1.5, "x", "", [], {}, [1], {"a": 1}, [{}], "3"))
    if isinstance(value, dict):
        return {name: bent(part, chance) for name, part in value.items() if chance.random() > 0.03}
    return [bent(part, chance) for part in value] if isinstance(value, list) else value


async def test_answers_of_another_shape_are_no_crash(distant: Subject) -> None:
    """Whichever part of what an engine tells is missing or of another kind: a state, and a failure as promised."""
    assert distant.server is not None
    plain, chance = distant.server.answer, random.Random(5)

    def answer(method: str, path: str, body: Any) -> web.Response:
        told = plain(method, path, body)
        if told.content_type != "application/json":
            return told
        return web.json_response(bent(json.loads(told.body or b""), chance), status=told.status)  # type: ignore[arg-type]

    distant.server.answer = answer  # type: ignore[method-assign]
    for _ in range(60):
        assert (await distant.actuator.state()).model == "m"
        for ask in (distant.actuator.plan, distant.actuator.apply):
            with contextlib.suppress(ActuatorFailed):
                await ask(UNLIKE)


async def test_keys_are_in_no_message(distant: Subject, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the engine says it back."""

    async def tell_tale(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": f"bad: {request.headers['Authorization']}"}}, status=500)

    assert distant.server is not None
    distant.server.trouble = tell_tale
    said = [(await distant.actuator.state()).reason or ""]
    with pytest.raises(ActuatorFailed) as caught:
        await distant.actuator.plan(WILLING)
    said += [str(caught.value), caplog.text]
    assert KEY not in "".join(said)


async def test_a_wrong_key_is_told_as_that(distant: Subject) -> None:
    """With what to correct."""
    assert distant.server is not None
    actuator = create(ModelConfig("m", path="builtin"), distant.server.url, "wrong", kind=distant.actuator.engine)
    state = await actuator.state()
    assert state.state == "down"
    assert "refused the key" in (state.reason or "")
    await actuator.close()


def test_an_unknown_kind_names_those_that_there_are() -> None:
    """As every registry of ours."""
    with pytest.raises(ValueError, match="there are fake, lemonade, llama_cpp, onnx_genai, openai_http, torch, vllm"):
        create(ModelConfig("m", options={"actuator": "nothing"}), None, None)
    assert set(ACTUATORS) == {"fake", "lemonade", "llama_cpp", "onnx_genai", "openai_http", "torch", "vllm"}


@pytest.mark.parametrize("url", ["ftp://x/v1", "nothing", "http://"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    """Before the first question."""
    with pytest.raises(ActuatorFailed, match="not an http address"):
        create(ModelConfig("m", engine="openai_http"), url, None)


async def test_an_engine_without_an_address_is_down() -> None:
    """A worker that does not run yet, or the engine for tests."""
    actuator = create(ModelConfig("m", engine="fake"), None, None)
    state = await actuator.state()
    assert (state.state, "no address" in (state.reason or "")) == ("down", True)
    with pytest.raises(ActuatorFailed, match="no address"):
        await actuator.plan(Policy(scheduler=SchedulerSection(mode="gpu_only")))
    await actuator.close()
