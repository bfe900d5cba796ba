"""Any other address; and what the actuators' questions over HTTP have in common."""

from collections.abc import AsyncIterator, Callable

import pytest
from actuator_harness import KEY, LLAMA_METRICS, UNLIKE, Llama, Other
from aiohttp import web
from hypothesis import given
from policy_strategies import policies

from sekisho.control.actuators import create
from sekisho.control.actuators.base import DEFAULTS, fields
from sekisho.control.actuators.engine_http import EngineHttp
from sekisho.control.actuators.metrics_text import accept_rate, samples, total
from sekisho.control.actuators.openai_http import changes
from sekisho.control.base import ActuatorFailed
from sekisho.control.policy import EngineSection, Policy
from sekisho.engines.config import ModelConfig

CONFIG = ModelConfig("m", engine="openai_http", slots=5)


@pytest.fixture
async def server() -> AsyncIterator[Other]:
    made = Other()
    await made.start()
    yield made
    await made.stop()


@given(policies)
def test_no_field_is_forgotten_whatever_the_policy(policy: Policy) -> None:
    """Each that differs from its default is answered: nothing is possible, and limits are the agent's own."""
    answered = changes(policy, CONFIG, "the engine of m")
    assert {name for name, value in fields(policy).items() if value != DEFAULTS[name]} <= {e.field for e in answered}
    for each in answered:
        assert each.effect == ("unchanged" if each.field.startswith("quality.") else "unsupported")


async def test_slots_are_told_as_the_gateways(server: Other) -> None:
    """What it sends at once, which is no setting of the engine."""
    actuator = create(CONFIG, server.url, KEY)
    (answer,) = await actuator.apply(Policy(engine=EngineSection(slots=9)))
    assert (answer.effect, answer.was, answer.value) == ("unsupported", 5, 9)
    assert "the gateway sends 5 requests at once" in (answer.reason or "")
    await actuator.close()


async def test_metrics_that_are_known_are_read_and_others_are_not_missed(server: Other) -> None:
    """Who runs and who waits, where the engine is one that tells."""
    actuator = create(CONFIG, server.url, KEY)
    silent = await actuator.state()
    assert (silent.state, silent.running) == ("ready", None)
    assert "no metrics" in (silent.reason or "")
    plain = server.answer
    tells: Callable[..., web.Response] = lambda method, path, body: (  # noqa: E731
        web.Response(text=LLAMA_METRICS) if path == "/metrics" else plain(method, path, body)
    )
    server.answer = tells  # type: ignore[method-assign]
    state = await actuator.state()
    assert (state.running, state.waiting) == (1, 2)
    await actuator.close()


@pytest.mark.parametrize("suffix", ["/v1", "/v1/", "", "/openai/v1"])
async def test_addresses_end_in_v1_or_in_what_stands_before(server: Other, suffix: str) -> None:
    """The list of models is asked for beside `/chat/completions`, wherever that is."""
    actuator = create(CONFIG, server.url.removesuffix("/v1") + suffix, KEY)
    await actuator.state()
    expected = f"{suffix.rstrip('/')}/models"
    assert expected in [path for _, path, _ in server.asked]
    await actuator.close()


async def test_an_engine_that_moves_is_asked_at_its_new_address(server: Other) -> None:
    """And connections to the old one are closed in the end."""
    other = Llama()
    await other.start()
    http = EngineHttp("m", "label", server.url, KEY)
    await http.ask("GET", "/v1/models")
    http.move(other.url)
    http.move(other.url)
    await http.ask("GET", "/health")
    assert ([path for _, path, _ in server.asked], [path for _, path, _ in other.asked]) == (
        ["/v1/models"],
        ["/health"],
    )
    await http.close()
    await other.stop()


async def test_an_endless_answer_is_cut(server: Other) -> None:
    """A few MiB are more than any state."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 2**20)

    server.trouble = endless
    http = EngineHttp("m", "label", server.url, KEY)
    with pytest.raises(ActuatorFailed, match="more than 8 MiB"):
        await http.ask("GET", "/metrics")
    await http.close()


def test_a_key_that_cannot_be_sent_is_not_told() -> None:
    """Only that it cannot."""
    with pytest.raises(ActuatorFailed) as caught:
        create(CONFIG, "http://127.0.0.1:1/v1", "geheim\n")
    assert "Authorization" in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_metrics_are_summed_over_labels_or_picked_by_one() -> None:
    """The first name that is there counts; text that is no metrics has none."""
    told = samples('a{x="1"} 2\na{x="2"} 3\nb 7\n')
    assert total(told, "none", "a", "b") == 5
    assert total(told, "a", label=("x", "2")) == 3
    assert total(told, "a", label=("x", "9")) is None
    assert samples("<html>") == {} or total(samples("<html>"), "a") is None


@pytest.mark.parametrize(("drafted", "accepted", "rate"), [(None, 1, None), (0, 0, None), (4, 1, 0.25)])
def test_a_rate_needs_drafted_tokens(drafted: float | None, accepted: float, rate: float | None) -> None:
    """Without any there is a reason instead."""
    found, reason = accept_rate(drafted, accepted)
    assert found == rate
    assert (reason is None) == (rate is not None)


async def test_the_fake_engine_has_no_settings_either() -> None:
    """Whoever tests with it is told so."""
    actuator = create(ModelConfig("m", engine="fake"), None, None)
    assert (await actuator.state()).state == "down"
    with pytest.raises(ActuatorFailed):
        await actuator.plan(UNLIKE)
    await actuator.close()
