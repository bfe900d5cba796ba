"""Notices as values: who is told of a ticket, and in which words. Pure; `notify` sends them.

A notice names the kind of case, its severity, the reason and the ticket, never the caller. The question goes along
only where `notice_text` says so. Every text has been through the redactor.
"""

import datetime
import re
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, Protocol

import msgspec

from sekisho.core import ids
from sekisho.guard.desk_config import ChannelConfig, EscalationConfig, may_answer
from sekisho.store.escalations import Notice, NoticeKind, Ticket

Redact = Callable[[str], str]

_SLACK_HEADER_CHARS = 150
_SLACK_TEXT_CHARS = 1_900  # of 2,000: a field has its label, too
_HALF_ESCAPE = re.compile(r"&[a-z]{0,3}$")


class NoticeFailed(Exception):
    """A notice did not arrive. `message` holds no address and no text of the notice. `again`: whether another attempt
    may help. `after_s`: how long the other side asked to be left alone."""

    def __init__(self, message: str, *, again: bool = True, after_s: float | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.after_s = after_s


class Notifier(Protocol):
    """Plans and sends notices. `plan` is pure. `send` waits for the other side, within a time of its own; it may be
    called twice for one notice, which then arrives twice, with the same id."""

    def plan(self, ticket: Ticket, now: float) -> list[Notice]: ...

    async def send(self, notice: Notice, ticket: Ticket, link: str | None, now: float) -> None:
        """Raises NoticeFailed."""
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...


class NoticeText(msgspec.Struct, frozen=True):
    """A notice in words. `facts` are (label, value); `question` is None where it must not leave."""

    subject: str
    facts: tuple[tuple[str, str], ...]
    rationale: str
    question: str | None
    urgent: str | None
    link: str | None
    link_label: str
    link_hint: str
    command_hint: str


_WORDS = {
    "ja": {
        "subject": "【要確認】{channel}: 人の判断を待つ要求があります",
        "ticket": "番号",
        "category": "分類",
        "severity": "重大度",
        "deadline": "期限",
        "model": "モデル",
        "link": "内容を見て判断する",
        "hint": "このリンクはあなた専用です。一度だけ使えます。転送しないでください。",
        "command": "サーバー上では: sekisho escalation show {id}",
        "urgent": "命の危険があるときは、先に救急(119)へ連絡してください。",
        "medical": "医療",
        "legal": "法務・コンプライアンス",
        "hr": "人事・ハラスメント",
        "security": "セキュリティ",
        "other": "その他",
    },
    "en": {
        "subject": "[Action needed] {channel}: a request waits for a human",
        "ticket": "Ticket",
        "category": "Category",
        "severity": "Severity",
        "deadline": "Answer by",
        "model": "Model",
        "link": "Look at it and decide",
        "hint": "This link is yours alone and works once. Do not forward it.",
        "command": "On the server: sekisho escalation show {id}",
        "urgent": "If somebody's life is in danger, call the emergency services first.",
        "medical": "Medical",
        "legal": "Legal and compliance",
        "hr": "HR and harassment",
        "security": "Security",
        "other": "Other",
    },
}


def plan(config: EscalationConfig, ticket: Ticket, now: float) -> list[Notice]:
    """One notice for each way in which the ticket's channel is told. An approver of the channel with an address gets
    a mail of their own, with their own link; other recipients get one without."""
    channel: ChannelConfig = getattr(config.channels, ticket.channel)
    ways: list[tuple[NoticeKind, str, str | None]] = []
    if channel.slack_url_env or channel.slack_url_file:
        ways.append(("slack", "", channel.slack_approver))
    if channel.webhook_url or channel.webhook_url_env:
        ways.append(("webhook", "", channel.webhook_approver))
    if config.smtp.host is not None:
        ways += _mails(config, ticket)
    return [
        Notice(
            id=ids.new("note"),
            ticket_id=ticket.id,
            channel=ticket.channel,
            kind=kind,
            target=target,
            approver=approver if approver and may_answer(config, approver, ticket.channel, ticket.key_name) else None,
            created_at=now,
            next_attempt_at=now,
        )
        for kind, target, approver in ways
    ]


def _mails(config: EscalationConfig, ticket: Ticket) -> Iterator[tuple[NoticeKind, str, str | None]]:
    written: set[str] = set()
    for name, approver in config.approvers.items():
        if approver.email is not None and ticket.channel in approver.channels:
            written.add(approver.email.lower())
            yield "email", approver.email, name
    channel: ChannelConfig = getattr(config.channels, ticket.channel)
    for address in channel.email:
        if address.lower() not in written:
            written.add(address.lower())
            yield "email", address, None


def compose(ticket: Ticket, link: str | None, with_question: bool, redact: Redact) -> NoticeText:
    words = _WORDS["ja" if ticket.language == "ja" else "en"]
    until = datetime.datetime.fromtimestamp(ticket.expires_at, datetime.UTC)
    life_in_danger = ticket.channel == "medical" and ticket.severity in ("high", "critical")
    return NoticeText(
        subject=words["subject"].format(channel=words[ticket.channel]),
        facts=(
            (words["ticket"], ticket.id),
            (words["category"], ticket.category),
            (words["severity"], ticket.severity),
            (words["deadline"], until.strftime("%Y-%m-%d %H:%M:%S UTC")),
        ),
        rationale=redact(ticket.rationale),
        question=redact(ticket.question) if with_question else None,
        urgent=words["urgent"] if life_in_danger else None,
        link=link,
        link_label=words["link"],
        link_hint=words["hint"],
        command_hint=words["command"].format(id=ticket.id),
    )


def slack_message(text: NoticeText) -> dict[str, Any]:
    """An incoming webhook's message in Block Kit, with `text` for notifications and readers without blocks. Slack
    fetches no link of it (`unfurl_links`)."""
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": text.subject[:_SLACK_HEADER_CHARS]}},
        {"type": "section", "fields": [_mrkdwn(f"*{_slack(k)}*\n{_slack(v)}") for k, v in text.facts]},
    ]
    paragraphs = [part for part in (text.urgent, text.rationale, text.question) if part]
    blocks += [{"type": "section", "text": _mrkdwn(_slack(part))} for part in paragraphs]
    if text.link is not None:
        blocks.append({"type": "section", "text": _mrkdwn(f"<{_slack(text.link)}|{_slack(text.link_label)}>")})
    hints = [text.command_hint] if text.link is None else [text.link_hint, text.command_hint]
    blocks.append({"type": "context", "elements": [_mrkdwn(_slack(hint)) for hint in hints]})
    fallback = " / ".join([text.subject, *(value for _, value in text.facts)])
    return {"text": _slack(fallback), "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def plain_message(text: NoticeText) -> str:
    """A mail's body without markup."""
    lines = [text.urgent, ""] if text.urgent else []
    lines += [f"{label}: {value}" for label, value in text.facts]
    lines += ["", text.rationale]
    if text.question is not None:
        lines += ["", *(f"> {line}" for line in text.question.splitlines())]
    if text.link is not None:
        lines += ["", f"{text.link_label}:", text.link, text.link_hint]
    return "\n".join([*lines, "", text.command_hint, ""])


def html_message(text: NoticeText) -> str:
    """A mail's body with markup, and without anything that a mail program would fetch."""
    parts = ['<!doctype html><html><head><meta charset="utf-8"></head><body>']
    if text.urgent:
        parts.append(f"<p><strong>{escape(text.urgent)}</strong></p>")
    rows = "".join(f"<tr><td>{escape(label)}</td><td>{escape(value)}</td></tr>" for label, value in text.facts)
    parts.append(f"<table>{rows}</table><p>{escape(text.rationale)}</p>")
    if text.question is not None:
        parts.append(f'<blockquote style="white-space:pre-wrap">{escape(text.question)}</blockquote>')
    if text.link is not None:
        link = escape(text.link, quote=True)
        parts.append(f'<p><a href="{link}">{escape(text.link_label)}</a><br>{escape(text.link_hint)}</p>')
    parts.append(f"<p><small>{escape(text.command_hint)}</small></p></body></html>")
    return "".join(parts)


def webhook_message(notice: Notice, ticket: Ticket, text: NoticeText) -> dict[str, Any]:
    """The generic webhook's JSON. `id` is the same at each attempt: a receiver that has seen it is done."""
    told: dict[str, Any] = {
        "id": ticket.id,
        "channel": ticket.channel,
        "category": ticket.category,
        "severity": ticket.severity,
        "language": ticket.language,
        "rationale": text.rationale,
        "created_at": ticket.created_at,
        "expires_at": ticket.expires_at,
    }
    if text.question is not None:
        told["question"] = text.question
    return {"version": 1, "type": "escalation.opened", "id": notice.id, "ticket": told, "link": text.link}


def _mrkdwn(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text}


def _slack(text: str) -> str:
    """Slack's three characters escaped: `<!channel>` and foreign links are letters, not commands."""
    escaped = text[:_SLACK_TEXT_CHARS].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if len(escaped) <= _SLACK_TEXT_CHARS and len(text) <= _SLACK_TEXT_CHARS:
        return escaped
    return _HALF_ESCAPE.sub("", escaped[: _SLACK_TEXT_CHARS - 1]) + "…"
