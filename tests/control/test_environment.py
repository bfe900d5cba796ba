import traceback
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.control.environment import FLAGS, VARIABLES, EnvironmentSettings, from_environment, from_flags
from sekisho.control.policy import Policy
from sekisho.control.policy_changes import PolicyProblem, kv_types, merged

TOKEN = "2a4c7d8e-1111-4222-8333-944455556666"


def test_the_documented_environment() -> None:
    """The variables of the guide, as it sets them."""
    told = from_environment(
        {
            "INFEROS_ENABLED": "true",
            "INFEROS_AGENT_URL": "http://127.0.0.1:7031",
            "INFEROS_AGENT_TOKEN": TOKEN,
            "INFEROS_AGENT_PORT": "7031",
            "INFEROS_RANDOM_PORT": "false",
            "INFEROS_LOG_LEVEL": "DEBUG",
            "GAIA_OPTIMIZATION_MODE": "inferos",
            "GAIA_KV_QUANTIZATION": "enabled",
            "PATH": "/bin",
        }
    )
    assert (told.enabled, told.url, told.port, told.random_port) == (True, "http://127.0.0.1:7031", 7031, False)
    assert (told.log_level, told.changes, told.notes) == ("DEBUG", {"kv": {"mode": "dynamic"}}, ())
    assert told.token is not None
    assert told.token.reveal() == TOKEN
    assert TOKEN not in repr(told)


@pytest.mark.parametrize("values", [{}, dict.fromkeys(VARIABLES, ""), dict.fromkeys(VARIABLES, "  ")])
def test_nothing_said_is_nothing_changed(values: dict[str, str]) -> None:
    """A variable that is empty, as service managers pass those that are not set, counts as not set."""
    assert from_environment(values) == EnvironmentSettings()
    assert from_flags(dict.fromkeys(FLAGS)) == EnvironmentSettings()


WRONG = [
    ("INFEROS_ENABLED", "maybe", "true or false"),
    ("INFEROS_RANDOM_PORT", "2", "true or false"),
    ("INFEROS_AGENT_PORT", "0", "INFEROS_RANDOM_PORT"),
    ("INFEROS_AGENT_PORT", "65536", "65535"),
    ("INFEROS_AGENT_PORT", "-1", "65535"),
    ("INFEROS_AGENT_PORT", "٧٠٣١", "65535"),
    ("INFEROS_AGENT_PORT", "http", "65535"),
    ("INFEROS_LOG_LEVEL", "LOUD", "DEBUG, INFO"),
    ("INFEROS_AGENT_TOKEN", "two words that are long", "without spaces"),
    ("INFEROS_AGENT_TOKEN", "line\r\nbreak-0123456789", "ASCII"),
    ("INFEROS_AGENT_TOKEN", "秘密秘密秘密秘密秘密秘密", "ASCII"),
    ("INFEROS_AGENT_URL", "http://192.168.0.7:7031", "this machine"),
    ("INFEROS_AGENT_URL", "http://0.0.0.0:7031", "this machine"),
    ("INFEROS_AGENT_URL", "http://localhost.example.com:7031", "this machine"),
    ("INFEROS_AGENT_URL", "https://127.0.0.1:7031", "http"),
    ("INFEROS_AGENT_URL", "127.0.0.1:7031", "http"),
    ("INFEROS_AGENT_URL", "http://127.0.0.1:99999", "http"),
    ("INFEROS_AGENT_URL", "http://[::1", "http"),
    ("INFEROS_AGENT_URL", "http://127.0.0.1:7031/v2", "http"),
    ("INFEROS_AGENT_URL", "http://kei:hunter2@127.0.0.1:7031", "no user"),
    ("GAIA_OPTIMIZATION_MODE", "turbo", "inferos, none"),
    ("GAIA_KV_QUANTIZATION", "true", "enabled, disabled"),
]


@pytest.mark.parametrize(("name", "value", "told"), WRONG)
def test_a_wrong_value_is_told_with_its_variable(name: str, value: str, told: str) -> None:
    """The error has the variable's name and says what it may be; a token or a password stands nowhere in it."""
    with pytest.raises(PolicyProblem) as refused:
        from_environment({name: value})
    assert refused.value.field == name
    assert told in refused.value.message
    if "TOKEN" in name or "hunter2" in value:
        written = "".join(traceback.format_exception(refused.value))
        assert value not in written
        assert "hunter2" not in written


@pytest.mark.parametrize(
    ("url", "kept", "port"),
    [
        ("http://127.0.0.1:7031/v1/", "http://127.0.0.1:7031", 7031),
        ("http://localhost:8000/", "http://localhost:8000", 8000),
        ("http://[::1]:7031", "http://[::1]:7031", 7031),
        ("http://127.1.2.3", "http://127.1.2.3", 80),
    ],
)
def test_the_address_says_where_the_agent_listens(url: str, kept: str, port: int) -> None:
    """Its port counts where no other is set; the path of the interface is no part of it."""
    told = from_environment({"INFEROS_AGENT_URL": url})
    assert (told.url, told.port, told.notes) == (kept, port, ())


def test_an_address_and_a_port_that_differ_are_refused() -> None:
    """One of them would be without effect, and nobody would know which."""
    values = {"INFEROS_AGENT_URL": "http://127.0.0.1:7031", "INFEROS_AGENT_PORT": "7032"}
    with pytest.raises(PolicyProblem) as refused:
        from_environment(values)
    assert refused.value.field == "INFEROS_AGENT_PORT"
    told = from_environment({**values, "INFEROS_RANDOM_PORT": "TRUE"})
    assert (told.random_port, told.port, len(told.notes)) == (True, None, 1)


def test_switched_off_beats_the_optimisation_mode() -> None:
    """And is told, since somebody has said both."""
    told = from_environment({"INFEROS_ENABLED": "0", "GAIA_OPTIMIZATION_MODE": "inferos"})
    assert told.enabled is False
    assert "INFEROS_ENABLED" in told.notes[0]
    assert from_environment({"GAIA_OPTIMIZATION_MODE": "InferOS"}).enabled is True


def test_what_is_likely_a_slip_is_a_note() -> None:
    """An unknown variable of ours and a token that can be guessed; GAIA's own variables are GAIA's business."""
    told = from_environment({"INFEROS_AGENT_PROT": "7031", "INFEROS_AGENT_TOKEN": "secret", "GAIA_HOME": "/opt"})
    assert "INFEROS_AGENT_PROT" in told.notes[0]
    assert "guessed" in told.notes[1]
    assert not any("secret" in each for each in told.notes)
    assert len(told.notes) == 2


def test_quantisation_switched_off_is_off() -> None:
    """Types that were named before go as well; switched on beside the baseline it is on."""
    before = merged(Policy(), {"kv": {"key_type": "q4_0"}})
    off = from_environment({"GAIA_KV_QUANTIZATION": "disabled"}).changes
    assert kv_types(merged(before, off)) == ("f16", "f16")
    both = from_environment({"GAIA_OPTIMIZATION_MODE": "none", "GAIA_KV_QUANTIZATION": "enabled"}).changes
    after = merged(before, both)
    assert (after.kv.mode, after.io.enable_iobinding) == ("dynamic", False)


def test_the_documented_flags() -> None:
    """The table of the guide, each flag with its own example."""
    told = from_flags(
        {
            "--optimization": "inferos",
            "--mode": "hybrid",
            "--kv-quantization": "enabled",
            "--batch-size": "4",
            "--max-tokens": "1024",
            "--quality-threshold": "0.5",
            "--memory-limit": "16GB",
            "--debug": True,
        }
    )
    policy = merged(Policy(), told.changes)
    assert (told.enabled, told.log_level) == (True, "DEBUG")
    assert (policy.kv.mode, policy.kv.budget, policy.scheduler.mode) == ("dynamic", 0.23, "hybrid")
    assert (policy.engine.slots, policy.quality.max_delta_ppl) == (4, 0.5)
    assert "max_tokens" in told.notes[0]
    assert "16 GB" in told.notes[1]
    assert "kv_limit_mib" in told.notes[1]


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        (
            {"--mode": "gpu_only"},
            {"scheduler": {"mode": "gpu_only", "prefill_device": "dml", "decode_device": "dml"}},
        ),
        ({"--batch-size": 8, "--debug": False}, {"engine": {"slots": 8}}),
        ({"--quality-threshold": 0}, {"quality": {"max_delta_ppl": 0.0}}),
        ({"--kv-quantization": "DISABLED"}, {"kv": {"mode": "disabled"}}),
        ({"--max-tokens": 5, "--memory-limit": 2**30}, {}),
    ],
)
def test_flags_are_changes(flags: dict[str, Any], changes: dict[str, Any]) -> None:
    """As text from a command line or as values; what is not given changes nothing."""
    assert from_flags(flags).changes == changes


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("--optimization", "max", "inferos, none"),
        ("--mode", "cpu", "npu_only"),
        ("--kv-quantization", True, "enabled, disabled"),
        ("--batch-size", "0", "at least 1"),
        ("--batch-size", "4.5", "whole number"),
        ("--batch-size", 5000, "1024"),
        ("--batch-size", True, "whole number"),
        ("--max-tokens", "many", "whole number"),
        ("--quality-threshold", "nan", "between 0 and 2"),
        ("--quality-threshold", "-0.1", "between 0 and 2"),
        ("--quality-threshold", "low", "number"),
        ("--memory-limit", "16 gigs", "GiB"),
        ("--memory-limit", "-1", "GiB"),
        ("--turbo", "on", "--batch-size"),
    ],
)
def test_a_wrong_flag_is_told_by_name(name: str, value: Any, told: str) -> None:
    """With what it may be; an unknown one with the flags that there are."""
    with pytest.raises(PolicyProblem) as refused:
        from_flags({name: value})
    assert refused.value.field == name
    assert told in refused.value.message


@given(st.dictionaries(st.sampled_from(VARIABLES), st.text(max_size=30)))
def test_any_environment_is_settings_or_a_problem_with_a_variable(values: dict[str, str]) -> None:
    """Nothing else comes of whatever stands there, and what comes of it a policy takes."""
    try:
        told = from_environment(values)
    except PolicyProblem as problem:
        named = problem.field
        told = EnvironmentSettings()
    else:
        named = VARIABLES[0]
    assert named in VARIABLES
    merged(Policy(), told.changes)
    msgspec.json.encode((told.enabled, told.url, told.port, told.changes, told.notes))
