"""Notices by mail over real connections: a mail server with real TLS."""

import asyncio
import datetime
import email
import email.policy
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from aiosmtpd.smtp import Envelope as Mail
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from desk_harness import CASE, START, after_attempt, office, until
from notify_harness import LINK, TICKET, Receiver, failure, notice, notifier

from sekisho.guard import desk
from sekisho.guard.desk_config import ApproverConfig, ChannelConfig, ChannelsConfig, EscalationConfig, SmtpConfig


def certificate(folder: Path, address: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """A self-made certificate for an address: the server's side, and the file that a client trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = folder / "mail.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = folder / "mail.key"
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public


class Mailbox:
    """An aiosmtpd handler that keeps mails; `refusals` are answered first."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.over_tls: list[bool] = []
        self.logins: list[tuple[bytes, bytes]] = []
        self.refusals: list[str] = []
        self.hangs = False

    async def handle_DATA(self, server: Any, session: Any, envelope: Mail) -> str:
        if self.refusals:
            return self.refusals.pop(0)
        self.mails.append(envelope)
        self.over_tls.append(session.ssl is not None)
        if self.hangs:
            await asyncio.Event().wait()
        return "250 kept"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"right", handled=False)

    def only(self) -> EmailMessage:
        (kept,) = self.mails
        assert isinstance(kept.content, bytes)
        message = email.message_from_bytes(kept.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        return message


@asynccontextmanager
async def mail_server(box: Mailbox, first_byte_tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[int]:
    """A real aiosmtpd in this loop; its port."""
    open_sessions: list[SMTP] = []

    def session() -> SMTP:
        open_sessions.append(SMTP(box, hostname="mail", **options))
        return open_sessions[-1]

    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", 0, ssl=first_byte_tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for one in open_sessions:
            if one.transport is not None:
                one.transport.abort()
        await asyncio.sleep(0.05)  # the sessions end


def mail_config(port: int, **smtp: Any) -> EscalationConfig:
    settings = {"host": "127.0.0.1", "port": port, "sender": "sekisho@example.com"} | smtp
    return EscalationConfig(smtp=SmtpConfig(**settings), notice_timeout_s=60)


async def test_a_mail_arrives_over_starttls_in_japanese(tmp_path: Path) -> None:
    """Login and mail go over TLS with a checked certificate; subject and body are readable Japanese in both forms,
    with the link and without the question; nothing answers it automatically."""
    box = Mailbox()
    context, trusted = certificate(tmp_path)
    async with mail_server(
        box, tls_context=context, require_starttls=True, auth_required=True, authenticator=box.authenticate
    ) as port:
        config = mail_config(port, username_env="USER_NAME", password_env="PASSWORD", ca_file=str(trusted))
        async with notifier(config, USER_NAME="sekisho", PASSWORD="right") as sender:
            await sender.send(notice("email", "doctor@example.com"), TICKET, LINK, START)
    assert (box.over_tls, box.logins) == ([True], [(b"sekisho", b"right")])
    assert box.mails[0].rcpt_tos == ["doctor@example.com"]
    message = box.only()
    assert message["Subject"] == "【要確認】医療: 人の判断を待つ要求があります"
    assert (message["To"], message["From"]) == ("doctor@example.com", "sekisho@example.com")
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Date"].datetime.timestamp() == START
    assert b"\xe5" not in bytes(box.mails[0].content or b"").partition(b"\r\n\r\n")[0]
    for kind in ("plain", "html"):
        part = message.get_body((kind,))
        assert part is not None
        text = part.get_content()
        assert LINK in text
        assert "個別の投薬量の質問です" in text
        assert "119" in text
        for private in ("何錠", "山田", "secret-key-name"):
            assert private not in text
        assert ("<!channel>" in text) == (kind == "plain")


async def test_a_mail_arrives_over_tls_from_the_first_byte(tmp_path: Path) -> None:
    """`security: tls`, in English where the request was."""
    box = Mailbox()
    context, trusted = certificate(tmp_path)
    english = msgspec.structs.replace(TICKET, language="en")
    async with (
        mail_server(box, context) as port,
        notifier(mail_config(port, security="tls", ca_file=str(trusted))) as sender,
    ):
        await sender.send(notice("email", "nurse@example.com"), english, None, START)
    assert box.only()["Subject"] == "[Action needed] Medical: a request waits for a human"
    assert LINK not in str(box.only())


async def test_a_mail_never_falls_back_to_clear_text(tmp_path: Path) -> None:
    """A server without STARTTLS gets nothing, nor does one whose certificate nobody vouches for or which is another
    host's; all may be mended, so it is tried again."""
    box = Mailbox()
    async with mail_server(box) as port, notifier(mail_config(port)) as sender:
        assert (await failure(sender.send(notice("email", "a@example.com"), TICKET, LINK, START))).again
    context, _ = certificate(tmp_path)
    async with mail_server(box, tls_context=context) as port, notifier(mail_config(port)) as sender:
        await failure(sender.send(notice("email", "a@example.com"), TICKET, LINK, START))
    context, trusted = certificate(tmp_path, "127.0.0.2")
    async with mail_server(box, tls_context=context) as port:
        async with notifier(mail_config(port, ca_file=str(trusted))) as sender:
            await failure(sender.send(notice("email", "a@example.com"), TICKET, LINK, START))
        async with notifier(mail_config(port, ca_file=str(tmp_path / "none"))) as sender:
            await failure(sender.send(notice("email", "a@example.com"), TICKET, LINK, START))
    assert box.mails == []


async def test_which_refusals_of_a_mail_server_are_worth_another_attempt(tmp_path: Path) -> None:
    """4xx is tried again, 5xx is not, a wrong password is not; neither address nor password is in the message."""
    box = Mailbox()
    box.refusals = ["451 doctor@example.com is busy", "554 doctor@example.com unwanted"]
    context, trusted = certificate(tmp_path)
    async with mail_server(box, tls_context=context, authenticator=box.authenticate) as port:
        config = mail_config(port, username_env="U", password_env="P", ca_file=str(trusted))
        async with notifier(config, U="sekisho", P="right") as sender:
            busy = await failure(sender.send(notice("email", "doctor@example.com"), TICKET, LINK, START))
            unwanted = await failure(sender.send(notice("email", "doctor@example.com"), TICKET, LINK, START))
        async with notifier(config, U="sekisho", P="wr0ng") as sender:
            wrong = await failure(sender.send(notice("email", "doctor@example.com"), TICKET, LINK, START))
    assert [(failed.again, str(failed).split()[-1]) for failed in (busy, unwanted, wrong)] == [
        (True, "451"),
        (False, "554"),
        (False, "535"),
    ]
    for failed in (busy, unwanted, wrong):
        assert "@" not in str(failed)
        assert "wr0ng" not in str(failed)


async def test_a_mail_server_that_is_silent_or_absent_is_given_up() -> None:
    """Nobody there, and somebody who never greets: both fail within the time and are tried again."""
    async with notifier(mail_config(1)) as sender:
        assert (await failure(sender.send(notice("email", "a@example.com"), TICKET, LINK, START))).again
    came, gone = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        try:
            await reader.read()
        finally:
            writer.close()
            gone.set()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = msgspec.structs.replace(mail_config(port), notice_timeout_s=0.3)
    async with notifier(config) as sender:
        while not came.is_set():  # the time may be over before anybody has come
            assert (await failure(sender.send(notice("email", "a@example.com"), TICKET, LINK, START))).again
    await gone.wait()
    server.close()
    await server.wait_closed()


async def test_an_attempt_that_is_broken_off_says_no_farewell(tmp_path: Path) -> None:
    """A server that hangs after the mail's text holds up neither the attempt's end nor the process' end."""
    box = Mailbox()
    box.hangs = True
    context, trusted = certificate(tmp_path)
    async with mail_server(box, tls_context=context) as port:
        config = msgspec.structs.replace(mail_config(port, ca_file=str(trusted)), notice_timeout_s=600.0)
        async with notifier(config) as sender:
            sending = asyncio.create_task(sender.send(notice("email", "a@example.com"), TICKET, LINK, START))
            await until(lambda: box.mails)
            sending.cancel()
            async with asyncio.timeout(60):
                with pytest.raises(asyncio.CancelledError):
                    await sending


# All of it


async def test_a_case_is_answered_by_a_link_from_a_real_mail(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticket, notices to Slack (down at first) and by mail over STARTTLS, the link out of the mail, the decision: the
    caller goes on. Slack comes right at a later attempt."""
    monkeypatch.setattr(desk, "_TIDY_S", 0.05)
    box = Mailbox()
    receiver.answers = [(500, {}), (503, {})]
    context, trusted = certificate(tmp_path)
    async with mail_server(box, tls_context=context) as port:
        config = EscalationConfig(
            channels=ChannelsConfig(medical=ChannelConfig(slack_url_env="SLACK")),
            approvers={"doctor": ApproverConfig(channels=("medical",), email="doctor@example.com")},
            smtp=SmtpConfig(host="127.0.0.1", port=port, sender="sekisho@example.com", ca_file=str(trusted)),
            link_base_url="https://llm.example.com",
        )
        async with office(tmp_path / "s.db", config) as o, notifier(config, SLACK=receiver.url) as sender:
            o.notifier.send = sender.send  # type: ignore[method-assign]
            ticket = await o.desk.open(CASE)
            waiting = asyncio.create_task(o.desk.wait(ticket.id))
            await until(lambda: len(box.mails) == 1 and len(receiver.requests) == 1)
            body = box.only().get_body(("plain",))
            assert body is not None
            link = next(line for line in body.get_content().splitlines() if "/escalation/" in line)
            address, _, token = link.partition("#")
            assert address == f"https://llm.example.com/escalation/{ticket.id}"
            for attempt in (1, 2):
                failed = await after_attempt(o, ticket.id, attempt, "slack")
                o.clock.advance(failed.next_attempt_at - o.clock.now())
            await until(lambda: len(receiver.requests) == 3)
            await o.desk.redeem(token, "approve", ticket_id=ticket.id)
            assert (await waiting).goes_on
            assert {n.state for n in await o.store.ticket_notices(ticket.id)} <= {"sent", "pending"}
