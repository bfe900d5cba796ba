"""Settings of `guard.escalation`: who is called for what, how, and who may answer. Secrets stand here by name only."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from sekisho.core.verdict import Category
from sekisho.store.escalations import CHANNELS, Behaviour, Channel

SmtpSecurity = Literal["starttls", "tls", "none"]
OPERATOR = "operator"

_CHANNEL_OF: dict[Category, Channel] = {
    "medical": "medical",
    "self_harm": "medical",
    "legal": "legal",
    "privacy": "legal",
    "fraud": "legal",
    "hr": "hr",
    "sexual": "hr",
    "security": "security",
    "injection": "security",
    "weapons": "security",
    "violence": "security",
    "other": "other",
    "none": "other",
}
_BEHAVIOUR_OF_MODE: dict[str, Behaviour] = {"production": "hold"}
_DEFAULT_PORTS: dict[SmtpSecurity, int] = {"starttls": 587, "tls": 465, "none": 25}
_ADDRESS = re.compile(r"[^@\s<>,;:\"\\()\[\]]+@[^@\s<>,;:\"\\()\[\]]+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ChannelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a channel's notices go. Slack's address is a secret: `slack_url_env` names an environment variable,
    `slack_url_file` a file. `email`: who is told besides the approvers. The webhook is signed with its secret.

    `slack_approver`, `webhook_approver`: whose single-use link goes with the notice; without one it has no link,
    for whoever can read a channel is not thereby somebody who may decide.
    """

    slack_url_env: str | None = None
    slack_url_file: str | None = None
    slack_approver: str | None = None
    email: tuple[str, ...] = ()
    webhook_url: str | None = None
    webhook_url_env: str | None = None
    webhook_secret_env: str | None = None
    webhook_secret_file: str | None = None
    webhook_approver: str | None = None


class ChannelsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The five channels."""

    medical: ChannelConfig = ChannelConfig()
    legal: ChannelConfig = ChannelConfig()
    hr: ChannelConfig = ChannelConfig()
    security: ChannelConfig = ChannelConfig()
    other: ChannelConfig = ChannelConfig()


class ApproverConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person with a duty: `channels` they may answer, `email` for their links, `key`: the name of their API key."""

    channels: tuple[Channel, ...]
    email: str | None = None
    key: str | None = None


class SmtpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The mail server. `security`: `starttls` and `tls` check the certificate and never fall back to clear text;
    `none` sends in the clear and never a password. `ca_file`: certificates to trust besides the system's."""

    host: str | None = None
    port: int | None = None
    security: SmtpSecurity = "starttls"
    sender: str | None = None
    username_env: str | None = None
    password_env: str | None = None
    password_file: str | None = None
    ca_file: str | None = None

    @property
    def effective_port(self) -> int:
        return self.port or _DEFAULT_PORTS[self.security]


class EscalationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`timeout_s`: how long a human has; then the answer is no. `ticket_timeout_s`: the same where the caller got a
    ticket and does not wait (None: `timeout_s`). `approved_for_s`: how long after a decision the same request gets it.
    `pending_per_key`: how many tickets of one key may wait, so that nobody floods the people who are called.
    `behaviour`, `categories`: overrides by category. `own_requests`: whether an approver may decide what their own
    key asked. `operator`: whether whoever runs `sekisho escalation` on this machine may decide as `operator`.
    `notice_text`: whether notices carry the question (personal data removed), or only what kind it is.
    `link_base_url`: the address in links (None: `gateway.public_url`; without either there are no links).
    `keep_days`: how long ended tickets stay in the database.
    """

    timeout_s: float = 300.0
    ticket_timeout_s: float | None = None
    approved_for_s: float = 900.0
    pending_per_key: int = 20
    behaviour: dict[str, Behaviour] = {}
    categories: dict[str, Channel] = {}
    channels: ChannelsConfig = ChannelsConfig()
    approvers: dict[str, ApproverConfig] = {}
    own_requests: bool = False
    operator: bool = True
    notice_text: bool = False
    link_base_url: str | None = None
    smtp: SmtpConfig = SmtpConfig()
    notice_timeout_s: float = 15.0
    keep_days: float = 30.0


class Fault(msgspec.Struct, frozen=True):
    """Something that does not fit together. `path` is below `guard.escalation`."""

    path: tuple[str | int, ...]
    message: str


def channel_of(config: EscalationConfig, category: Category) -> Channel:
    return config.categories.get(category) or _CHANNEL_OF[category]


def behaviour_of(config: EscalationConfig, category: Category, mode: str) -> Behaviour:
    """What an escalation does to the caller: by category, else by the guard's mode."""
    return config.behaviour.get(category) or _BEHAVIOUR_OF_MODE.get(mode, "ticket")


def lifetime_s(config: EscalationConfig, behaviour: Behaviour) -> float:
    if behaviour == "ticket" and config.ticket_timeout_s is not None:
        return config.ticket_timeout_s
    return config.timeout_s


def approver_of_key(config: EscalationConfig, key_name: str) -> str | None:
    """The approver whose API key this is."""
    return next((name for name, approver in config.approvers.items() if approver.key == key_name), None)


def channels_of_approver(config: EscalationConfig, approver: str) -> tuple[Channel, ...]:
    """What an approver may answer; nothing for a stranger."""
    if approver == OPERATOR:
        return CHANNELS if config.operator else ()
    known = config.approvers.get(approver)
    return () if known is None else known.channels


def may_answer(config: EscalationConfig, approver: str, channel: Channel, asking_key: str) -> bool:
    """Whether the approver has the channel's role, and is not the one who asked."""
    known = config.approvers.get(approver)
    own = known is not None and known.key == asking_key and not config.own_requests
    return channel in channels_of_approver(config, approver) and not own


def secret(environment: Mapping[str, str], variable: str | None, file: str | None) -> str | None:
    """The secret that the variable or the file holds, without blanks around it; None where neither is set.
    Raises OSError, UnicodeError for a file that cannot be read."""
    if variable is not None and (value := environment.get(variable, "").strip()):
        return value
    if file is not None:
        return Path(file).read_text(encoding="utf-8").strip() or None
    return None


def faults(config: EscalationConfig) -> list[Fault]:
    """What does not fit together, each with its place."""
    return [
        *_times(config),
        *_counts(config),
        *_names(config),
        *_approvers(config),
        *_smtp(config),
        *_addresses(config),
    ]


def anchored(config: EscalationConfig, absolute: Callable[[str | None], str | None]) -> EscalationConfig:
    """The same with every file's path handed through `absolute`."""

    def channel(one: ChannelConfig) -> ChannelConfig:
        return msgspec.structs.replace(
            one, slack_url_file=absolute(one.slack_url_file), webhook_secret_file=absolute(one.webhook_secret_file)
        )

    channels = ChannelsConfig(*(channel(getattr(config.channels, name)) for name in CHANNELS))
    smtp = msgspec.structs.replace(
        config.smtp, password_file=absolute(config.smtp.password_file), ca_file=absolute(config.smtp.ca_file)
    )
    return msgspec.structs.replace(config, channels=channels, smtp=smtp)


def safe_address(url: str) -> bool:
    """Whether a notice may go there: https, or http to this machine itself."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        return False
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK))


def _times(config: EscalationConfig) -> Iterator[Fault]:
    for name in ("timeout_s", "ticket_timeout_s", "approved_for_s", "notice_timeout_s", "keep_days"):
        value = getattr(config, name)
        if value is not None and not 0 < value <= 366 * 86_400:
            yield Fault((name,), "must be more than 0 and at most a year")


def _counts(config: EscalationConfig) -> Iterator[Fault]:
    if not 1 <= config.pending_per_key <= 100_000:
        yield Fault(("pending_per_key",), "must be 1 to 100,000")


def _names(config: EscalationConfig) -> Iterator[Fault]:
    for block in ("behaviour", "categories"):
        for category in getattr(config, block):
            if category not in _CHANNEL_OF:
                yield Fault((block, category), f"no such category; valid are {', '.join(_CHANNEL_OF)}")


def _approvers(config: EscalationConfig) -> Iterator[Fault]:
    keys: dict[str, str] = {}
    for name, approver in config.approvers.items():
        if name == OPERATOR or not name.isprintable() or not 1 <= len(name) <= 64:
            yield Fault(("approvers", name), f"a name has 1 to 64 printable characters and is not `{OPERATOR}`")
        if approver.email is not None and not _ADDRESS.fullmatch(approver.email):
            yield Fault(("approvers", name, "email"), "not an e-mail address")
        if approver.key is not None and keys.setdefault(approver.key, name) != name:
            yield Fault(("approvers", name, "key"), f"is the key of `{keys[approver.key]}`, too")
    for channel in CHANNELS:
        block: ChannelConfig = getattr(config.channels, channel)
        for field in ("slack_approver", "webhook_approver"):
            named = getattr(block, field)
            if named is not None and channel not in channels_of_approver(config, named):
                yield Fault(("channels", channel, field), f"`{named}` is no approver of {channel}")


def _smtp(config: EscalationConfig) -> Iterator[Fault]:
    smtp = config.smtp
    mailing = any(getattr(config.channels, channel).email for channel in CHANNELS)
    mailing = mailing or any(approver.email for approver in config.approvers.values())
    if mailing and smtp.host is None:
        yield Fault(("smtp", "host"), "is missing: somebody is to get e-mail")
    if smtp.host is not None and (smtp.sender is None or not _ADDRESS.fullmatch(smtp.sender)):
        yield Fault(("smtp", "sender"), "must be an e-mail address")
    if smtp.security == "none" and (smtp.username_env or smtp.password_env or smtp.password_file):
        yield Fault(("smtp", "security"), "`none` would send the password in the clear; choose `starttls` or `tls`")
    if smtp.port is not None and not 1 <= smtp.port <= 65_535:
        yield Fault(("smtp", "port"), "must lie between 1 and 65535")


def _addresses(config: EscalationConfig) -> Iterator[Fault]:
    if config.link_base_url is not None and not safe_address(config.link_base_url):
        yield Fault(("link_base_url",), "must begin with https:// (http:// only for this machine itself)")
    for channel in CHANNELS:
        block: ChannelConfig = getattr(config.channels, channel)
        for index, address in enumerate(block.email):
            if not _ADDRESS.fullmatch(address):
                yield Fault(("channels", channel, "email", index), "not an e-mail address")
        if block.webhook_url is not None and not safe_address(block.webhook_url):
            yield Fault(("channels", channel, "webhook_url"), "must begin with https://")
        has_webhook = block.webhook_url is not None or block.webhook_url_env is not None
        if has_webhook and block.webhook_secret_env is None and block.webhook_secret_file is None:
            yield Fault(("channels", channel, "webhook_secret_env"), "is missing: a webhook is always signed")
