"""What was found out about this machine reaches whoever steps to a KV type, and whoever asks the interface."""

from pathlib import Path

import jsonschema
import msgspec
import pytest
from agent_harness import make_agent, serving
from faults_harness import ENGINE, FULL, FallbackRun, Site, signals

from sekisho.control.assembly import EngineAddress, Place, _Assembled
from sekisho.control.balancer import Balancer
from sekisho.control.capabilities import Capabilities, Llama, Probe, Probed, Prober, Provider, fallback_table
from sekisho.control.config import ControlConfig
from sekisho.control.fallback_rules import Finding, Limits, ladder
from sekisho.control.policy import EngineSection, Policy
from sekisho.control.quality_ladder import steps
from sekisho.core.clock import ManualClock
from sekisho.engines.config import ModelConfig
from sekisho.ops.home import Home

RUNS, NOT = Probe(True), Probe(False, "no")


class Told(Prober):
    """Has found out what a test says, and says how often it was asked to try."""

    def __init__(self, found: Capabilities) -> None:
        super().__init__(run=lambda argv: None)
        self.found, self.tried = found, 0

    def key(self) -> str:
        return self.found.key

    def probe(self, now: float) -> Capabilities:
        self.tried += 1
        return msgspec.structs.replace(self.found, measured_at=now)


def capable(*types: str) -> Capabilities:
    """Llama.cpp that runs these of three types, and a card that has no eight bits."""
    llama = Llama("1", {kind: RUNS if kind in types else NOT for kind in ("f16", "q8_0", "q4_0")})
    card, processor = Provider(RUNS, NOT, RUNS, RUNS, ("gpu",)), Provider(RUNS, RUNS, NOT, RUNS, ("cpu",))
    providers = {"CUDAExecutionProvider": card, "CPUExecutionProvider": processor}
    return Capabilities(providers, "1", None, llama, 1.0, "key")


def test_what_is_not_known_limits_nothing_and_what_is_does(tmp_path: Path) -> None:
    """Before anybody has probed; afterwards; in the next agent, without probing; not after the machine has changed; and
    not where llama.cpp itself does not run."""
    file = tmp_path / "capabilities.json"
    prober = Told(capable("f16", "q4_0"))
    probed = Probed(prober, file)
    probed.read()
    assert (probed.kv_types, prober.tried) == (None, 0)
    answer = probed.answer(7.0)
    assert probed.kv_types == {"f16", "q4_0"}
    assert answer.fallback == fallback_table(capable("f16", "q4_0"))
    again = Probed(prober, file)
    again.read()
    assert (again.kv_types, prober.tried) == ({"f16", "q4_0"}, 1)
    moved = Probed(Told(msgspec.structs.replace(capable("f16"), key="another")), file)
    moved.read()
    assert moved.kv_types is None
    for broken in (capable("q8_0"), msgspec.structs.replace(capable(), llama=Llama(reason="not installed"))):
        probed = Probed(Told(broken), tmp_path / "broken.json")
        probed.answer(8.0, refresh=True)
        assert probed.kv_types is None


def test_a_file_that_cannot_be_read_is_told_and_known_is_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent starts all the same."""
    probed = Probed(Told(capable("f16")), tmp_path)
    probed.read()
    assert probed.kv_types is None
    assert "cannot be read" in caplog.text


async def test_the_interface_tells_the_table_as_its_document_says(tmp_path: Path) -> None:
    """`fallback` has devices, precisions and KV types in the order in which they are tried; the answer fits the
    schema."""
    agent, _ = make_agent(tmp_path)
    probed = Probed(Told(capable("f16", "q8_0")), tmp_path / "capabilities.json")

    async def probe(refresh: bool) -> object:
        return probed.answer(5.0, refresh=refresh)

    agent.probe = probe
    async with serving(agent) as live:
        told = await live.get("/v1/capabilities")
        document = await live.get("/openapi.json")
    assert told["fallback"] == {
        "devices": ["dml", "cpu"],
        "precisions": {"dml": ["int4", "fp16", "fp32"], "cpu": ["int4", "int8", "fp32"]},
        "kv_types": ["q8_0", "f16"],
    }
    answer = document["paths"]["/v1/capabilities"]["get"]["responses"]["200"]["content"]["application/json"]
    schema = {**answer["schema"], "components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(told)
    with pytest.raises(jsonschema.ValidationError, match="fallback"):
        jsonschema.Draft202012Validator(schema).validate({n: v for n, v in told.items() if n != "fallback"})


def test_the_balancer_steps_to_what_runs_from_the_moment_it_is_known() -> None:
    """Eight bits do not: four bits follow sixteen; where people want quality, nothing does."""
    known: list[frozenset[str]] = []
    for mode, expected in (("configured", ["q4_0"]), ("quality_optimized", [])):
        known.clear()
        balancer = Balancer(kv_types=lambda: known[-1] if known else None)
        site = Site(Policy(engine=EngineSection(slots=1)))
        site.apply({"kv": {"mode": mode}})
        assert balancer.step(signals(0, FULL), site.policy) is None
        known.append(frozenset({"f16", "q4_0"}))
        found = []
        for now_s in range(10, 900, 10):
            step = balancer.step(signals(now_s, FULL), site.policy)
            if step is not None:
                site.apply(step.changes)
                found.append(site.policy.kv.key_type)
        assert found == expected


def test_fallbacks_leave_out_what_comes_to_eight_bits_where_these_do_not_run() -> None:
    """Of memory and of quality; also once an agent with full memory has tried everything."""
    finding = Finding("memory", "memory", "device.used_share", 0.97, 0.95, True, False)
    quality = Finding("quality", "delta_ppl", "quality.delta_ppl", 0.9, 0.5, True, False)
    unknown, without = Limits(), Limits(kv_types=frozenset({"f16", "q4_0"}))

    def rules(what: Finding, limits: Limits) -> list[str]:
        return [rung.rule for rung in ladder(what, Policy(), signals(0, FULL), limits)]

    assert set(rules(finding, unknown)) - set(rules(finding, without)) == {"compress most"}
    assert set(rules(quality, unknown)) - set(rules(quality, without)) == {"eight bits"}
    run = FallbackRun()
    run.fallbacks._kv_types = lambda: frozenset({"f16", "q4_0"})
    run.look_for(1800, FULL)
    assert run.site.policy.kv.mode == "configured"
    assert run.site.policy.engine.slots == ENGINE.slots // 2  # type: ignore[operator]


def test_the_way_back_to_full_precision_passes_over_what_does_not_run() -> None:
    """INT4 to 16 bits; all steps where nothing is known."""
    assert [step.rung for step in steps("int4", Policy())] == ["int8", "fp16"]
    assert [step.rung for step in steps("int4", Policy(), {"f16", "q4_0"})] == ["fp16"]
    assert [step.rung for step in steps("int4", Policy(), {"f16", "q8_0"})] == ["int8", "fp16"]


@pytest.mark.parametrize(
    ("engine", "known"),
    [
        (ModelConfig(name="mini", path="builtin"), frozenset({"f16", "q4_0"})),
        (ModelConfig(name="m", engine="openai_http", url="http://127.0.0.1:9/v1"), None),
    ],
)
async def test_only_llama_cpp_of_this_machine_is_limited(
    tmp_path: Path, engine: ModelConfig, known: frozenset[str] | None
) -> None:
    """What runs in an agent's own llama.cpp says nothing about an engine elsewhere."""
    home = Home(tmp_path)
    home.create()
    assembled = _Assembled(Place(home, ControlConfig(port=0), (EngineAddress(engine, None),)), ManualClock())
    async with assembled:
        assert assembled._kv_types() is None
        assembled._probed._known = capable("f16", "q4_0")
        assert assembled._kv_types() == known
