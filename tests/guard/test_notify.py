"""Notices over real connections: HTTP servers that behave and misbehave, a mail server with real TLS."""

import asyncio
import datetime
import email
import email.policy
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult
from aiosmtpd.smtp import Envelope as Mail
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from desk_harness import CASE, START, case, office, until
from hypothesis import given
from hypothesis import strategies as st

from sekisho.guard.desk_config import ApproverConfig, ChannelConfig, ChannelsConfig, EscalationConfig, SmtpConfig
from sekisho.guard.notices import NoticeFailed
from sekisho.guard.notify import OutboundNotifier, sign, verify
from sekisho.store import Notice, NoticeKind, Ticket

TICKET = Ticket(
    id="esc_1", request_hash="h", request_id="req_1", key_id="key_1", key_name="secret-key-name", user="山田花子",
    model="mini", protocol="chat", category="medical", channel="medical", severity="critical", language="ja",
    rationale="個別の投薬量の質問です <!channel> & more", question="山田花子です。この薬を何錠飲めますか",
    behaviour="hold", created_at=START, expires_at=START + 300,
)  # fmt: skip
LINK = "https://llm.example.com/escalation/esc_1#token"


def redact(text: str) -> str:
    return text.replace("山田花子", "[氏名]")


def notice(kind: NoticeKind, target: str = "") -> Notice:
    return Notice(
        id="note_1", ticket_id="esc_1", channel="medical", kind=kind, target=target, created_at=START,
        next_attempt_at=START,
    )  # fmt: skip


class Received(msgspec.Struct):
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """A real HTTP server. `answers` are used up one a request, then 200; a None hangs."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.answers: list[tuple[int, dict[str, str]] | None] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Received(request.path, headers, await request.read()))
        wanted = self.answers.pop(0) if self.answers else (200, {})
        if wanted is None:
            await asyncio.Event().wait()
        assert wanted is not None
        return web.Response(status=wanted[0], headers=wanted[1], text="ok")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


def http_config(receiver: Receiver, **changes: Any) -> EscalationConfig:
    channel = ChannelConfig(slack_url_env="SLACK", webhook_url=f"{receiver.url}/hook", webhook_secret_env="HOOK_SECRET")
    return EscalationConfig(channels=ChannelsConfig(medical=channel), notice_timeout_s=5, **changes)


@asynccontextmanager
async def notifier(config: EscalationConfig, **environment: str) -> AsyncIterator[OutboundNotifier]:
    made = OutboundNotifier(config, redact, environment)
    try:
        yield made
    finally:
        await made.close()
        await made.close()


async def failure(sending: Awaitable[None]) -> NoticeFailed:
    with pytest.raises(NoticeFailed) as caught:
        await sending
    return caught.value


# Slack


async def test_slack_gets_blocks_that_its_schema_allows(receiver: Receiver) -> None:
    """Known block types within Slack's limits, a fallback text, the link; markup of the case is escaped; neither the
    question nor the caller is in it."""
    async with notifier(http_config(receiver), SLACK=f"{receiver.url}/services/T/B/x") as sender:
        await sender.send(notice("slack"), TICKET, LINK, START)
    (request,) = receiver.requests
    assert request.path == "/services/T/B/x"
    assert request.headers["content-type"].startswith("application/json")
    message = msgspec.json.decode(request.body)
    check_slack(message)
    text = request.body.decode()
    assert LINK in text
    assert "&lt;!channel&gt; &amp; more" in text
    assert "<!channel>" not in text
    assert "119" in text
    for private in ("何錠", "山田", "secret-key-name", "req_1"):
        assert private not in text


def check_slack(message: dict[str, Any]) -> None:
    """Slack's published limits of the blocks that we use."""
    assert message["text"]
    assert message["unfurl_links"] is False
    assert 1 <= len(message["blocks"]) <= 50

    def check_text(block: dict[str, Any], kinds: tuple[str, ...], longest: int) -> None:
        assert set(block) == {"type", "text"}
        assert block["type"] in kinds
        assert 1 <= len(block["text"]) <= longest

    for block in message["blocks"]:
        if block["type"] == "header":
            check_text(block["text"], ("plain_text",), 150)
        elif block["type"] == "context":
            assert 1 <= len(block["elements"]) <= 10
            for element in block["elements"]:
                check_text(element, ("mrkdwn",), 3000)
        elif "fields" in block:
            assert block["type"] == "section"
            assert 1 <= len(block["fields"]) <= 10
            for field in block["fields"]:
                check_text(field, ("mrkdwn",), 2000)
        else:
            assert block["type"] == "section"
            check_text(block["text"], ("mrkdwn",), 3000)


@given(st.text(min_size=1, max_size=60_000) | st.sampled_from(["&" * 50_000, "<" * 50_000, "あ" * 50_000]))
def test_any_text_stays_within_slacks_limits(text: str) -> None:
    """However long or full of markup the case is, the message is valid, with no half escape and no live mention."""
    from sekisho.guard import notices

    ticket = msgspec.structs.replace(TICKET, rationale=text, question=text)
    message = notices.slack_message(notices.compose(ticket, None, True, lambda same: same))
    check_slack(message)
    for block in message["blocks"]:
        shown = block.get("text", {}).get("text", "")
        assert "<" not in shown.replace("<https://", "")
        assert not shown.endswith(("&", "&a", "&am", "&amp", "&l", "&lt", "&g", "&gt"))


async def test_the_question_goes_along_only_where_it_is_allowed_and_redacted(receiver: Receiver) -> None:
    """With `notice_text` the question is in the notice, without its personal data."""
    config = http_config(receiver, notice_text=True)
    async with notifier(config, SLACK=receiver.url, HOOK_SECRET="s") as sender:
        await sender.send(notice("slack"), TICKET, None, START)
        await sender.send(notice("webhook"), TICKET, None, START)
    for request in receiver.requests:
        assert "[氏名]です。この薬を何錠飲めますか" in request.body.decode()
        assert "山田" not in request.body.decode()


# Webhook


async def test_a_webhook_is_signed_and_its_receiver_can_prove_it(receiver: Receiver) -> None:
    """Time, id and body are under the signature: changed, late, or under another key it does not verify. The id is
    the notice's, so that a repetition is known as one."""
    async with notifier(http_config(receiver), HOOK_SECRET="s3cret") as sender:
        await sender.send(notice("webhook"), TICKET, LINK, START)
        await sender.send(notice("webhook"), TICKET, LINK, START + 60)
    first, again = receiver.requests
    signature, delivery = first.headers["x-sekisho-signature"], first.headers["x-sekisho-id"]
    assert delivery == again.headers["x-sekisho-id"] == "note_1"
    assert signature.startswith(f"t={int(START)},v1=")
    assert verify("s3cret", signature, delivery, first.body, START + 10)
    assert not verify("other", signature, delivery, first.body, START + 10)
    assert not verify("s3cret", signature, "note_2", first.body, START + 10)
    assert not verify("s3cret", signature, delivery, first.body + b" ", START + 10)
    assert not verify("s3cret", signature, delivery, first.body, START + 301)
    assert not verify("s3cret", signature, delivery, first.body, START - 301)
    assert not verify("s3cret", signature.replace("t=1", "t=2"), delivery, first.body, START + 10)
    told = msgspec.json.decode(first.body)
    assert (told["type"], told["id"], told["link"]) == ("escalation.opened", "note_1", LINK)
    assert told["ticket"]["expires_at"] == START + 300
    assert "question" not in told["ticket"]
    for private in ("何錠", "山田", "secret-key-name"):
        assert private not in first.body.decode()


@given(st.text(max_size=120), st.binary(max_size=50))
def test_no_made_up_signature_verifies(signature: str, body: bytes) -> None:
    """Any text is no signature, and never an error."""
    assert not verify("key", signature, "id", body, START)
    assert verify("key", sign("key", "id", body, int(START)), "id", body, START)


# HTTP in trouble


@pytest.mark.parametrize(
    ("status", "again"),
    [(500, True), (503, True), (429, True), (408, True), (400, False), (403, False), (404, False), (410, False)],
)
async def test_which_refusals_are_worth_another_attempt(receiver: Receiver, status: int, again: bool) -> None:
    """Trouble of theirs is tried again, a plain no is not; `Retry-After` is passed on; no address is told."""
    receiver.answers = [(status, {"Retry-After": "7"})]
    async with notifier(http_config(receiver), SLACK=f"{receiver.url}/services/secret") as sender:
        failed = await failure(sender.send(notice("slack"), TICKET, LINK, START))
    assert (str(failed), failed.again, failed.after_s) == (f"HTTP {status}", again, 7)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(receiver: Receiver, status: int) -> None:
    """A case and its link go to the address in the settings and nowhere else."""
    receiver.answers = [(status, {"Location": f"{receiver.url}/elsewhere"})]
    async with notifier(http_config(receiver), SLACK=f"{receiver.url}/services") as sender:
        failed = await failure(sender.send(notice("slack"), TICKET, LINK, START))
    assert not failed.again
    assert [request.path for request in receiver.requests] == ["/services"]


async def test_a_server_that_hangs_is_given_up(receiver: Receiver) -> None:
    """After `notice_timeout_s` the attempt has failed and may be repeated."""
    receiver.answers = [None]
    config = msgspec.structs.replace(http_config(receiver), notice_timeout_s=0.2)
    async with notifier(config, SLACK=receiver.url) as sender:
        failed = await failure(sender.send(notice("slack"), TICKET, LINK, START))
        assert (failed.again, "0.2 s" in str(failed)) == (True, True)
        await sender.send(notice("slack"), TICKET, LINK, START)


@pytest.mark.parametrize(
    ("url", "again"),
    [("http://127.0.0.1:1/secret", True), ("http://example.invalid/secret", False), ("https://[secret", False),
     ("secret", False)],
)  # fmt: skip
async def test_an_address_that_leads_nowhere_is_a_failure_that_does_not_tell_it(
    receiver: Receiver, url: str, again: bool
) -> None:
    """Refused connections are tried again; an address that may not be used never is. The address is a secret."""
    async with notifier(http_config(receiver), SLACK=url) as sender:
        failed = await failure(sender.send(notice("slack"), TICKET, LINK, START))
    assert failed.again is again
    assert "secret" not in str(failed)


async def test_a_missing_secret_is_a_failure_that_names_no_value(receiver: Receiver, tmp_path: Path) -> None:
    """Without the variable, or with a file that is not there, nothing is sent; set later, the next attempt works."""
    async with notifier(http_config(receiver)) as sender:
        assert str(await failure(sender.send(notice("slack"), TICKET, None, START))) == "Slack's address is not set"
        assert "secret is not set" in str(await failure(sender.send(notice("webhook"), TICKET, None, START)))
    file = tmp_path / "slack"
    channel = ChannelConfig(slack_url_file=str(file))
    async with notifier(EscalationConfig(channels=ChannelsConfig(medical=channel))) as sender:
        assert (await failure(sender.send(notice("slack"), TICKET, None, START))).again
        file.write_text(f"{receiver.url}/later\n")
        await sender.send(notice("slack"), TICKET, None, START)
    assert [request.path for request in receiver.requests] == ["/later"]


# Mail


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
    return EscalationConfig(smtp=SmtpConfig(**settings), notice_timeout_s=10)


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
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()
            gone.set()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = msgspec.structs.replace(mail_config(port), notice_timeout_s=0.3)
    async with notifier(config) as sender:
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


async def test_a_case_is_answered_by_a_link_from_a_real_mail(tmp_path: Path, receiver: Receiver) -> None:
    """Ticket, notices to Slack (down at first) and by mail over STARTTLS, the link out of the mail, the decision: the
    caller goes on. Slack comes right at a later attempt."""
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
            for attempt in (2, 3):
                while len(receiver.requests) < attempt:
                    o.clock.advance(1)
                    await asyncio.sleep(0.05)
            await o.desk.redeem(token, "approve", ticket_id=ticket.id)
            assert (await waiting).goes_on
            assert {n.state for n in await o.store.ticket_notices(ticket.id)} <= {"sent", "pending"}


async def test_a_dead_target_never_delays_the_ticket(tmp_path: Path, receiver: Receiver) -> None:
    """With Slack hanging for ever and no mail server, opening and deciding work as always."""
    receiver.answers = [None] * 50
    config = EscalationConfig(
        channels=ChannelsConfig(medical=ChannelConfig(slack_url_env="SLACK", email=("a@example.com",))),
        smtp=SmtpConfig(host="127.0.0.1", port=1, sender="sekisho@example.com"),
    )
    async with office(tmp_path / "s.db", config) as o, notifier(config, SLACK=receiver.url) as sender:
        o.notifier.send = sender.send  # type: ignore[method-assign]
        tickets = [await o.desk.open(case(request_hash=f"h{n}")) for n in range(5)]
        await until(lambda: len(receiver.requests) == 5)
        for ticket in tickets:
            await o.desk.decide(ticket.id, "operator", "approve")
            assert (await o.desk.wait(ticket.id)).goes_on
