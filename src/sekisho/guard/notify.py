"""Sends notices: Slack's incoming webhook, mail, a signed webhook. No redirect is followed and no address is logged."""

import asyncio
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import TYPE_CHECKING

import msgspec

from sekisho.guard import notices
from sekisho.guard.desk_config import ChannelConfig, EscalationConfig, SmtpConfig, safe_address, secret
from sekisho.guard.notices import NoticeFailed, NoticeText, Redact
from sekisho.store.escalations import Notice, Ticket

if TYPE_CHECKING:
    import ssl

    import aiohttp
    import aiosmtplib

SIGNATURE_HEADER = "X-Sekisho-Signature"
ID_HEADER = "X-Sekisho-Id"
_SIGNATURE = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")
_AGAIN = (408, 425, 429)
_LONGEST_WAIT_S = 3_600.0
_FAREWELL_S = 2.0


class OutboundNotifier:
    """A `Notifier` that really sends. Connects at the first notice; belongs to one event loop.

    Secrets are read anew for each attempt, so that a mended variable or file needs no restart.
    """

    def __init__(self, config: EscalationConfig, redact: Redact, environment: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._redact = redact
        self._environment = os.environ if environment is None else environment
        self._session: aiohttp.ClientSession | None = None

    def plan(self, ticket: Ticket, now: float) -> list[Notice]:
        return notices.plan(self._config, ticket, now)

    async def send(self, notice: Notice, ticket: Ticket, link: str | None, now: float) -> None:
        text = notices.compose(ticket, link, self._config.notice_text, self._redact)
        try:
            async with asyncio.timeout(self._config.notice_timeout_s):
                await self._send(notice, ticket, text, now)
        except TimeoutError as error:
            raise NoticeFailed(f"no answer within {self._config.notice_timeout_s:g} s") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(self, notice: Notice, ticket: Ticket, text: NoticeText, now: float) -> None:
        channel: ChannelConfig = getattr(self._config.channels, notice.channel)
        if notice.kind == "email":
            await self._mail(notice.target, text, now)
        elif notice.kind == "slack":
            url = self._secret(channel.slack_url_env, channel.slack_url_file, "Slack's address")
            await self._post(url, msgspec.json.encode(notices.slack_message(text)), {})
        else:
            url = channel.webhook_url or self._secret(channel.webhook_url_env, None, "the webhook's address")
            key = self._secret(channel.webhook_secret_env, channel.webhook_secret_file, "the webhook's secret")
            body = msgspec.json.encode(notices.webhook_message(notice, ticket, text))
            headers = {ID_HEADER: notice.id, SIGNATURE_HEADER: sign(key, notice.id, body, int(now))}
            await self._post(url, body, headers)

    def _secret(self, variable: str | None, file: str | None, what: str) -> str:
        try:
            found = secret(self._environment, variable, file)
        except (OSError, UnicodeError) as error:
            raise NoticeFailed(f"{what} cannot be read: {type(error).__name__}") from error
        if found is None:
            raise NoticeFailed(f"{what} is not set")
        return found

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        import aiohttp  # 0.2 s that a server without notices does without

        if not safe_address(url):
            raise NoticeFailed("the address must begin with https://", again=False)
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        sent = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "sekisho"} | headers
        try:
            async with self._session.post(url, data=body, headers=sent, allow_redirects=False) as answer:
                status, retry_after = answer.status, answer.headers.get("Retry-After", "")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NoticeFailed(type(error).__name__) from error  # its words may hold the address
        if not 200 <= status < 300:
            again = status >= 500 or status in _AGAIN
            raise NoticeFailed(f"HTTP {status}", again=again, after_s=_seconds(retry_after))

    async def _mail(self, recipient: str, text: NoticeText, now: float) -> None:
        import aiosmtplib

        smtp = self._config.smtp
        client = aiosmtplib.SMTP(
            hostname=smtp.host,
            port=smtp.effective_port,
            use_tls=smtp.security == "tls",
            start_tls=smtp.security == "starttls",  # True: without it nothing is sent
            tls_context=_trust(smtp),
            timeout=self._config.notice_timeout_s,
            local_hostname="[127.0.0.1]",  # a mail says nothing about the machine that it is from
        )
        message = mail(smtp.sender or "", recipient, text, now)
        try:
            await client.connect()
            if smtp.username_env is not None:
                username = self._secret(smtp.username_env, None, "the mail server's user name")
                password = self._secret(smtp.password_env, smtp.password_file, "the mail server's password")
                await client.login(username, password)
            await client.send_message(message)
            await _farewell(client)
        except aiosmtplib.SMTPException as error:
            code = _code(error)
            again = code is None or not 500 <= code < 600
            raise NoticeFailed(f"{type(error).__name__}{'' if code is None else f' {code}'}", again=again) from error
        except (OSError, ValueError) as error:
            raise NoticeFailed(type(error).__name__) from error
        finally:
            client.close()


def mail(sender: str, recipient: str, text: NoticeText, now: float) -> EmailMessage:
    """The notice as a mail, plain and with markup; marked so that no automatic reply comes back."""
    import datetime

    message = EmailMessage()
    message["From"] = sender
    message["To"] = recipient
    message["Subject"] = text.subject
    message["Date"] = format_datetime(datetime.datetime.fromtimestamp(now, datetime.UTC))
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2] or "localhost")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(notices.plain_message(text))
    message.add_alternative(notices.html_message(text), subtype="html")
    return message


def sign(key: str, delivery_id: str, body: bytes, timestamp_s: int) -> str:
    """The value of `X-Sekisho-Signature`: HMAC-SHA256 over time, id and body, joined by dots."""
    signed = b"%d.%b." % (timestamp_s, delivery_id.encode()) + body
    return f"t={timestamp_s},v1={hmac.new(key.encode(), signed, hashlib.sha256).hexdigest()}"


def verify(key: str, signature: str, delivery_id: str, body: bytes, now: float, tolerance_s: float = 300.0) -> bool:
    """For receivers: whether a delivery is ours and not older (or newer) than `tolerance_s`. Compare before parsing,
    and remember `X-Sekisho-Id` for as long: the same one again is a repetition."""
    parts = _SIGNATURE.fullmatch(signature)
    if parts is None or abs(now - int(parts[1])) > tolerance_s:
        return False
    return hmac.compare_digest(sign(key, delivery_id, body, int(parts[1])), signature)


def _trust(smtp: SmtpConfig) -> "ssl.SSLContext | None":
    if smtp.security == "none":
        return None
    import ssl

    try:
        context = ssl.create_default_context()
        if smtp.ca_file is not None:
            context.load_verify_locations(smtp.ca_file)
    except OSError as error:  # SSLError is one
        raise NoticeFailed(f"the file of trusted certificates cannot be read: {type(error).__name__}") from error
    return context


async def _farewell(client: "aiosmtplib.SMTP") -> None:
    """The mail is accepted: whatever happens to the QUIT does not send it again."""
    import aiosmtplib

    try:
        async with asyncio.timeout(_FAREWELL_S):
            await client.quit()
    except (aiosmtplib.SMTPException, OSError):  # TimeoutError is one
        pass


def _code(error: Exception) -> int | None:
    """The SMTP reply code, where there was a reply."""
    code = getattr(error, "code", None)
    if code is None:
        refused = getattr(error, "recipients", None) or []
        codes = [getattr(one, "code", 0) for one in refused]
        code = max(codes, default=None)
    return code if isinstance(code, int) and code > 0 else None


def _seconds(text: str) -> float | None:
    return min(float(text), _LONGEST_WAIT_S) if re.fullmatch(r"[0-9]{1,6}", text) else None
