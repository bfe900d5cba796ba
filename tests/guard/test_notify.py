"""Notices over real connections: HTTP servers that behave and misbehave."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from desk_harness import START, case, office, until
from hypothesis import given
from hypothesis import strategies as st
from notify_harness import LINK, TICKET, Receiver, failure, notice, notifier

from sekisho.guard.desk_config import ChannelConfig, ChannelsConfig, EscalationConfig, SmtpConfig
from sekisho.guard.notify import sign, verify


def http_config(receiver: Receiver, **changes: Any) -> EscalationConfig:
    channel = ChannelConfig(slack_url_env="SLACK", webhook_url=f"{receiver.url}/hook", webhook_secret_env="HOOK_SECRET")
    return EscalationConfig(channels=ChannelsConfig(medical=channel), notice_timeout_s=60, **changes)


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
    receiver.answers = [None] * 50
    config = msgspec.structs.replace(http_config(receiver), notice_timeout_s=0.2)
    async with notifier(config, SLACK=receiver.url) as sender:
        failed = await failure(sender.send(notice("slack"), TICKET, LINK, START))
        assert (failed.again, "0.2 s" in str(failed)) == (True, True)
        receiver.answers.clear()
        sender._config = http_config(receiver)  # which has time for an answer
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


# All of it


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
