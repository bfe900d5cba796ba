"""The desk's settings: what they mean without any, and what they refuse."""

from pathlib import Path
from typing import get_args

import msgspec
import pytest

from sekisho.core.verdict import Category
from sekisho.guard.desk_config import (
    ApproverConfig,
    ChannelConfig,
    ChannelsConfig,
    EscalationConfig,
    SmtpConfig,
    anchored,
    approver_of_key,
    behaviour_of,
    channel_of,
    channels_of_approver,
    faults,
    safe_address,
    secret,
)
from sekisho.store import CHANNELS


def paths(config: EscalationConfig) -> set[str]:
    return {".".join(map(str, fault.path)) for fault in faults(config)}


def test_the_defaults_are_sound() -> None:
    """Nothing set: 300 s, no fault, every category has one of the five channels."""
    config = EscalationConfig()
    assert config.timeout_s == 300
    assert faults(config) == []
    assert {channel_of(config, category) for category in get_args(Category)} == set(CHANNELS)


@pytest.mark.parametrize(
    ("mode", "expected"), [("basic", "ticket"), ("production", "hold"), ("emergency", "ticket"), ("off", "ticket")]
)
def test_the_mode_decides_what_an_escalation_does_unless_the_category_does(mode: str, expected: str) -> None:
    """Production holds, the others give a ticket; an override by category wins."""
    assert behaviour_of(EscalationConfig(), "medical", mode) == expected
    config = EscalationConfig(behaviour={"medical": "hold", "legal": "ticket"})
    assert (behaviour_of(config, "medical", mode), behaviour_of(config, "legal", mode)) == ("hold", "ticket")


def test_a_category_goes_where_it_is_told() -> None:
    """A crisis goes to medical, other people's data to legal, attacks to security; a setting overrides."""
    config = EscalationConfig()
    assert [channel_of(config, c) for c in ("self_harm", "privacy", "injection", "weapons")] == [
        "medical",
        "legal",
        "security",
        "security",
    ]
    assert channel_of(EscalationConfig(categories={"fraud": "security"}), "fraud") == "security"


def test_roles_are_the_channels_of_an_approver() -> None:
    """A stranger may nothing, the operator everything unless it is switched off, a key finds its person."""
    config = EscalationConfig(approvers={"doctor": ApproverConfig(channels=("medical",), key="k")})
    assert channels_of_approver(config, "doctor") == ("medical",)
    assert channels_of_approver(config, "nobody") == ()
    assert channels_of_approver(config, "operator") == CHANNELS
    assert channels_of_approver(msgspec.structs.replace(config, operator=False), "operator") == ()
    assert (approver_of_key(config, "k"), approver_of_key(config, "other")) == ("doctor", None)


def test_what_does_not_fit_is_named_with_its_place() -> None:
    """Every fault points at the line that makes it."""
    config = EscalationConfig(
        timeout_s=0,
        keep_days=float("nan"),
        behaviour={"medicine": "hold"},
        categories={"x": "legal"},
        link_base_url="http://llm.example.com",
        approvers={
            "operator": ApproverConfig(channels=()),
            "a": ApproverConfig(channels=("legal",), email="no address", key="same"),
            "b": ApproverConfig(channels=("legal",), key="same"),
        },
        channels=ChannelsConfig(
            medical=ChannelConfig(email=("x@y", "a b@c"), webhook_url="http://example.com", slack_approver="a"),
            hr=ChannelConfig(webhook_url_env="HOOK", webhook_approver="nobody"),
        ),
        smtp=SmtpConfig(security="none", password_env="P", port=70_000),
    )
    assert paths(config) == {
        "timeout_s",
        "keep_days",
        "behaviour.medicine",
        "categories.x",
        "link_base_url",
        "approvers.operator",
        "approvers.a.email",
        "approvers.b.key",
        "channels.medical.slack_approver",
        "channels.medical.email.1",
        "channels.medical.webhook_url",
        "channels.medical.webhook_secret_env",
        "channels.hr.webhook_approver",
        "channels.hr.webhook_secret_env",
        "smtp.host",
        "smtp.security",
        "smtp.port",
    }
    assert paths(EscalationConfig(smtp=SmtpConfig(host="h", sender="a@b\nBcc: c@d"))) == {"smtp.sender"}


def test_secrets_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """The variable first, then the file; blanks around do not count, and an empty one is none."""
    file = tmp_path / "s"
    file.write_text(" from file\n")
    assert secret({"V": " from variable\n"}, "V", str(file)) == "from variable"
    assert secret({"V": "  "}, "V", str(file)) == "from file"
    assert secret({}, None, None) is None
    file.write_text("\n")
    assert secret({}, "V", str(file)) is None


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://hooks.example.com/x", True),
        ("http://127.0.0.1:9/x", True),
        ("http://localhost/x", True),
        ("http://[::1]:80/", True),
        ("http://example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://localhost@example.com", False),
        ("ftp://example.com", False),
        ("https://", False),
        ("https://[bad", False),
        ("file:///etc/passwd", False),
    ],
)
def test_notices_go_over_tls_or_stay_on_this_machine(url: str, safe: bool) -> None:
    """Clear text leaves only towards loopback."""
    assert safe_address(url) == safe


def test_every_files_path_can_be_anchored() -> None:
    """Relative files are read from where the settings lie; nothing else changes."""
    config = EscalationConfig(
        channels=ChannelsConfig(legal=ChannelConfig(slack_url_file="s", webhook_secret_file="w", email=("a@b",))),
        smtp=SmtpConfig(password_file="p", ca_file="c"),
    )
    moved = anchored(config, lambda path: None if path is None else f"/home/{path}")
    assert moved.channels.legal == ChannelConfig(
        slack_url_file="/home/s", webhook_secret_file="/home/w", email=("a@b",)
    )
    assert (moved.smtp.password_file, moved.smtp.ca_file) == ("/home/p", "/home/c")
    assert moved.channels.hr == config.channels.hr


def test_the_block_is_read_strictly() -> None:
    """An unknown key, channel or behaviour is an error, not a silence."""
    for bad in (
        {"timeout": 1},
        {"channels": {"sales": {}}},
        {"behaviour": {"hr": "wait"}},
        {"smtp": {"password": "x"}},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(bad, EscalationConfig, strict=True)
