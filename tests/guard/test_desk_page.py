"""The page behind a single-use link."""

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.guard import desk_page

sys.path.insert(0, str(Path(__file__).parent))

from desk_harness import Office, case, office, until


@pytest.fixture
async def open_office(tmp_path: Path) -> AsyncIterator[Office]:
    async with office(tmp_path / "s.db") as opened:
        yield opened


def form(**fields: str) -> bytes:
    return urlencode(fields).encode()


async def test_the_page_shows_first_and_decides_only_by_its_buttons(open_office: Office) -> None:
    """The entry page holds nothing of the case; `show` shows it and decides nothing; `approve` decides once."""
    ticket = await open_office.desk.open(case(question="<script>alert(1)</script> 何錠ですか"))
    await until(lambda: len(open_office.notifier.sent) == 4)
    token = open_office.notifier.token_for("doctor")
    assert ticket.id.encode() not in desk_page.entry_page()
    status, shown = await desk_page.answer(open_office.desk, ticket.id, form(token=token, action="show"))
    assert status == 200
    assert "&lt;script&gt;alert(1)&lt;/script&gt; 何錠ですか" in shown.decode()
    assert (await open_office.desk.get(ticket.id)).state == "pending"
    status, done = await desk_page.answer(
        open_office.desk, ticket.id, form(token=token, action="approve", answer="left in the field", reason="")
    )
    assert (status, "Approved" in done.decode()) == (200, True)
    status, again = await desk_page.answer(open_office.desk, ticket.id, form(token=token, action="deny"))
    assert (status, token in again.decode()) == (409, False)
    assert (await open_office.desk.get(ticket.id)).state == "approved"


async def test_a_wrong_form_is_a_page_and_decides_nothing(open_office: Office) -> None:
    """A wrong token or ticket is 404, an expired one 410, a form that makes no sense 400."""
    ticket = await open_office.desk.open(case())
    await until(lambda: len(open_office.notifier.sent) == 4)
    token = open_office.notifier.token_for("doctor")
    for ticket_id, body, expected in (
        (ticket.id, form(token="x", action="approve"), 404),
        ("esc_other", form(token=token, action="approve"), 404),
        (ticket.id, form(token=token, action="answer", answer=" "), 400),
        (ticket.id, form(token=token, action="destroy"), 400),
        (ticket.id, b"\xff\xfe", 400),
        (ticket.id, b"", 400),
    ):
        assert (await desk_page.answer(open_office.desk, ticket_id, body))[0] == expected
    assert (await open_office.desk.get(ticket.id)).state == "pending"
    open_office.clock.advance(300)
    for action in ("show", "approve"):
        assert (await desk_page.answer(open_office.desk, ticket.id, form(token=token, action=action)))[0] == 410


async def test_an_answer_goes_through_the_form(open_office: Office) -> None:
    """Text of any language, with line breaks, comes to the caller as it was written."""
    ticket = await open_office.desk.open(case())
    await until(lambda: len(open_office.notifier.sent) == 4)
    body = form(token=open_office.notifier.token_for("nurse"), action="answer", answer="二錠です。\n& <医師へ>")
    assert (await desk_page.answer(open_office.desk, ticket.id, body))[0] == 200
    assert (await open_office.desk.wait(ticket.id)).ticket.answer == "二錠です。\n& <医師へ>"


def test_the_page_may_load_nothing_and_be_framed_by_nobody() -> None:
    """The policy allows exactly the page's own script and style, by their hashes; nothing is cached or referred to."""
    page, policy = desk_page.entry_page().decode(), desk_page.HEADERS["content-security-policy"]
    scripts = re.findall(r"<script>(.*?)</script>", page)
    styles = re.findall(r"<style>(.*?)</style>", page)
    assert (len(scripts), len(styles)) == (1, 1)
    for inline in (*scripts, *styles):
        assert desk_page._hash(inline) in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"(src|href)=", page)
    assert (desk_page.HEADERS["cache-control"], desk_page.HEADERS["referrer-policy"]) == ("no-store", "no-referrer")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_form_or_a_named_refusal(body: bytes) -> None:
    """No body is an error of ours."""
    try:
        read = desk_page.parse(body)
    except InvalidRequest:
        return
    assert read.token


@given(st.text(min_size=1, max_size=40), st.text(max_size=200))
def test_no_text_becomes_markup(token: str, text: str) -> None:
    """Whatever a caller wrote stays text on the page."""
    from sekisho.store import Ticket

    ticket = Ticket(
        id="esc_1", request_hash="h", request_id="r", key_id="k", key_name="n", model="m", protocol="chat",
        category="medical", channel="medical", severity="high", language="ja", rationale=text, question=text,
        behaviour="hold", created_at=0.0, expires_at=1.0,
    )  # fmt: skip
    plain = desk_page.ticket_page(ticket, "doctor", "").decode("utf-8", "replace")
    if text.isprintable():
        shown = desk_page.ticket_page(ticket, text, token if token.isprintable() else "t").decode("utf-8", "replace")
        assert shown.count("<") == plain.count("<")
