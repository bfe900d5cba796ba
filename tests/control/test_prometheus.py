"""The agent's figures as Prometheus reads them."""

import re
import shutil
import subprocess

import pytest
from exposed_harness import exposed
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from samples_harness import batch, sample

from sekisho.control.base import EngineState
from sekisho.control.feed import Batch
from sekisho.control.prometheus import PREFIX, Seen, text
from sekisho.control.totals import SECONDS, Totals
from sekisho.core.clock import ManualClock


def values(body: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (each.name.removeprefix(PREFIX), tuple(sorted(each.labels.items()))): each.value
        for family in text_string_to_metric_families(body.decode())
        for each in family.samples
    }


def test_prometheus_own_parser_reads_it() -> None:
    """Every family has the prefix, a help text and a type; each number is what was measured."""
    families = list(text_string_to_metric_families(exposed().decode()))
    assert len(families) > 30
    for family in families:
        assert family.name.startswith(PREFIX)
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram"), family.name
    found = values(exposed())
    of_m = (("model_name", "m"),)
    assert found["num_requests_running", of_m] == 2
    assert found["kv_cache_usage_perc", of_m] == 0.25
    assert found["generation_tokens_total", of_m] == 60
    assert found["prompt_tokens_total", of_m] == 30
    assert found["window_generation_tokens_per_second", of_m] == 1.0
    assert found["window_error_ratio", of_m] == pytest.approx(1 / 3)
    assert found["window_request_latency_seconds", (*of_m, ("statistic", "mean"))] == 2.0
    assert found["online_nll_nats", of_m] == 1.5
    assert found["finished_requests_total", (*of_m, ("status", "engine_failed"))] == 1
    assert found["engine_ready", (("model_name", "n"),)] == 0
    assert found["decisions_total", (("loop", "middle"), ("outcome", "applied"))] == 3
    assert found["device_memory_used_bytes", (("device", "gpu0"), ("kind", "gpu"))] == 7 << 30
    assert found["device_present", (("device", "npu0"), ("kind", "npu"))] == 0
    assert found["loop_cpu_seconds_total", (("loop", "fast"),)] == 0.25
    assert found["quality_perplexity", (*of_m, ("precision", "full"))] == 10.0
    assert found["quality_perplexity", (*of_m, ("precision", "in_force"))] == 10.25
    assert found["quality_delta_perplexity", of_m] == 0.25
    assert found["quality_max_delta_perplexity", (("model_name", "n"),)] == 0.3
    assert found["quality_measured_timestamp_seconds", of_m] == 1.75e9


def test_what_was_not_measured_is_left_out() -> None:
    """No line, rather than 0 or NaN, for a model without requests, a cache or a temperature that nobody can read."""
    found = values(exposed())
    names = {name for name, labels in found if ("model_name", "silent") in labels}
    assert names == {"window_seconds", "window_requests"}
    assert ("kv_cache_usage_perc", (("model_name", "n"),)) not in found
    assert ("quality_delta_perplexity", (("model_name", "n"),)) not in found
    assert ("device_temperature_celsius", (("device", "cpu"), ("kind", "cpu"))) not in found
    assert b"NaN" not in exposed()
    assert b"None" not in exposed()


def test_nothing_at_all_is_a_valid_page_too() -> None:
    """An agent that has seen nothing exposes nothing."""
    assert text(Seen()) == b""


def test_histograms_count_each_request_once() -> None:
    """Buckets rise, the last one holds all, and each value lies in the first bucket that is not below it."""
    found = values(exposed())
    of_m = (("model_name", "m"),)
    buckets = [found["e2e_request_latency_seconds_bucket", tuple(sorted((("le", le), *of_m)))] for le in bounds()]
    assert buckets == [float(sum(value <= bound for value in (1.0, 3.0))) for bound in (*SECONDS, float("inf"))]
    assert found["e2e_request_latency_seconds_count", of_m] == 2
    assert found["e2e_request_latency_seconds_sum", of_m] == 4.0
    assert found["time_to_first_token_seconds_count", of_m] == 2


def bounds() -> list[str]:
    names = re.findall(r'e2e_request_latency_seconds_bucket\{le="([^"]+)"', exposed().decode())
    assert [float(name) for name in names] == [*SECONDS, float("inf")]
    return names


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_no_name_of_a_model_breaks_the_page(name: str) -> None:
    """Quotes, backslashes and line breaks in a name come back as they were."""
    engine = EngineState(name, "openai_http", "ready", running=1)
    body = text(Seen(engines=(engine,)))
    (family,) = [
        family
        for family in text_string_to_metric_families(body.decode())
        if family.name == PREFIX + "num_requests_running"
    ]
    assert family.samples[0].labels == {"model_name": name}


def test_promtool_finds_nothing_to_mend() -> None:
    """Prometheus' own linter: names, units, types and help texts are as its project wants them."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed here (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, "check", "metrics"], input=exposed(), capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# --- the counts behind it --------------------------------------------------------------------------------------------


def test_totals_leave_out_what_ended_before_the_agent_began() -> None:
    """An agent that starts again while the gateway goes on does not count the gateway's memory a second time."""
    clock = ManualClock()
    totals = Totals(clock)
    clock.advance(2.0)
    totals.take(Batch((sample(1), sample(2)), (30.0, 1.0)))
    (counted,) = totals.counted()
    assert counted.by_status == {"ok": 1}


def test_totals_tell_what_was_missed() -> None:
    """Samples that the gateway forgot are counted apart and in no other number."""
    totals = Totals(ManualClock())
    totals.take(batch(sample(500), missed=7))
    totals.take(batch(sample(501, model="a")))
    assert totals.missed == 7
    assert [(each.model, each.output_tokens) for each in totals.counted()] == [("a", 20), ("m", 20)]
