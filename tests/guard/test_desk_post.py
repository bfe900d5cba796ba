"""The desk's post: notices are retried, resumed and never in anybody's way."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from desk_harness import CONFIG, Office, after_attempt, case, office, until

from sekisho.guard import desk
from sekisho.guard.desk_post import LONGEST_PAUSE_S, pause_s
from sekisho.guard.notices import NoticeFailed
from sekisho.store.keys import hash_secret

ONE_MAIL = msgspec.structs.replace(
    CONFIG,
    channels=msgspec.structs.replace(CONFIG.channels, medical=type(CONFIG.channels.medical)()),
    approvers={"doctor": CONFIG.approvers["doctor"]},
)


async def states(o: Office, ticket_id: str) -> list[str]:
    return [notice.state for notice in await o.store.ticket_notices(ticket_id)]


async def until_states(o: Office, ticket_id: str, wanted: list[str]) -> None:
    async with asyncio.timeout(60):
        while await states(o, ticket_id) != wanted:  # noqa: ASYNC110 - a database rings no bell
            await asyncio.sleep(0.02)


async def test_everybody_is_told_and_only_approvers_get_links(tmp_path: Path) -> None:
    """Slack, both approvers and the ward are told; the two approvers alone get a link, each their own, whose token is
    in the fragment and bound to the ticket."""
    async with office(tmp_path / "s.db") as o:
        ticket = await o.desk.open(case())
        await until(lambda: len(o.notifier.sent) == 4)
        told = {(n.kind, n.target, n.approver) for n, _, _ in o.notifier.sent}
        assert told == {
            ("slack", "", None),
            ("email", "doctor@example.com", "doctor"),
            ("email", "nurse@example.com", "nurse"),
            ("email", "ward@example.com", None),
        }
        links = {n.approver: link for n, _, link in o.notifier.sent if link is not None}
        assert set(links) == {"doctor", "nurse"}
        for approver, link in links.items():
            address, _, token = link.partition("#")
            assert address == f"https://llm.example.com/escalation/{ticket.id}"
            kept = await o.store.find_link_token(hash_secret(token))
            assert kept is not None
            assert (kept.ticket_id, kept.request_hash, kept.approver) == (ticket.id, "hash_1", approver)
            assert kept.expires_at == ticket.expires_at
        await until_states(o, ticket.id, ["sent"] * 4)
        assert o.book.kinds() == ["opened"]
        assert [event.kind for event in o.book.events].count("notified") == 4


async def test_a_notice_is_tried_again_with_growing_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five failures, then success: the pauses grow, and the link of the last attempt works."""
    monkeypatch.setattr(desk, "_TIDY_S", 0.05)
    async with office(tmp_path / "s.db", ONE_MAIL) as o:
        o.notifier.failures = [NoticeFailed("HTTP 500") for _ in range(5)]
        ticket = await o.desk.open(case())
        pauses = []
        for attempt in range(1, 6):
            waiting = await after_attempt(o, ticket.id, attempt)
            pauses.append(waiting.next_attempt_at - o.clock.now())
            assert waiting.last_error == "HTTP 500"
            o.clock.advance(pauses[-1])
        await until_states(o, ticket.id, ["sent"])
        for number, pause in enumerate(pauses):
            assert 2**number <= pause <= 3 * 2**number
        assert (await o.desk.redeem(o.notifier.token_for("doctor"), "approve")).state == "approved"


async def test_what_cannot_help_is_not_tried_again(tmp_path: Path) -> None:
    """A target that says no for good is failed at once, in the book too; the ticket lives on without it."""
    async with office(tmp_path / "s.db", ONE_MAIL) as o:
        o.notifier.failures = [NoticeFailed("HTTP 404", again=False)]
        ticket = await o.desk.open(case())
        await until_states(o, ticket.id, ["failed"])
        await until(lambda: [e.kind for e in o.book.events] == ["opened", "notice_failed"])
        assert "HTTP 404" in o.book.events[-1].text
        assert (await o.desk.get(ticket.id)).state == "pending"


async def test_a_target_may_say_when(tmp_path: Path) -> None:
    """`Retry-After` is kept; when it lies behind the ticket's end, the notice has failed."""
    async with office(tmp_path / "s.db", ONE_MAIL) as o:
        o.notifier.failures = [NoticeFailed("HTTP 429", after_s=120)]
        first = await o.desk.open(case())
        kept = await after_attempt(o, first.id, 1)
        assert kept.next_attempt_at == o.clock.now() + 120
        o.notifier.failures = [NoticeFailed("HTTP 429", after_s=301)]
        second = await o.desk.open(case())
        await until_states(o, second.id, ["failed"])


async def test_a_target_that_hangs_delays_nobody(tmp_path: Path) -> None:
    """Mail hangs: the ticket opens at once, Slack's notice goes out, and the decision is not kept waiting."""
    async with office(tmp_path / "s.db") as o:
        o.notifier.hangs = True
        ticket = await o.desk.open(case())
        waiting = asyncio.create_task(o.desk.wait(ticket.id))
        await until(lambda: [n.kind for n, _, _ in o.notifier.sent] == ["slack"])
        await o.desk.decide(ticket.id, "nurse", "approve")
        assert (await waiting).goes_on


async def test_a_process_that_dies_while_sending_is_taken_over(tmp_path: Path) -> None:
    """What hung in the first process goes out by the second when the claim's time is over."""
    async with office(tmp_path / "s.db", ONE_MAIL) as first:
        first.notifier.hangs = True
        await first.desk.open(case())
        await until(lambda: first.notifier.attempts == 1)
    async with office(tmp_path / "s.db", ONE_MAIL, clock=first.clock) as second:
        await asyncio.sleep(0.1)
        assert second.notifier.attempts == 0
        second.clock.advance(31)
        await until(lambda: len(second.notifier.sent) == 1)
        assert second.notifier.sent[0][0].attempts == 2


async def test_nobody_is_called_for_a_ticket_that_has_ended(tmp_path: Path) -> None:
    """Notices that wait for their next attempt are dropped once the ticket is decided."""
    async with office(tmp_path / "s.db", ONE_MAIL) as o:
        o.notifier.failures = [NoticeFailed("HTTP 500")]
        ticket = await o.desk.open(case())
        await after_attempt(o, ticket.id, 1)
        await o.desk.decide(ticket.id, "doctor", "deny")
        o.clock.advance(10)
        await until_states(o, ticket.id, ["dropped"])
        assert o.notifier.attempts == 1


async def test_a_clock_that_is_set_back_delays_no_notice_for_long(tmp_path: Path) -> None:
    """A notice that was due an hour ago by the old clock and is days ahead by the new one is sent."""
    async with office(tmp_path / "s.db", ONE_MAIL, started=False) as o:
        await o.desk.open(case())
        o.clock.jump(-3 * 86_400)
        await o.desk.start()
        await until(lambda: len(o.notifier.sent) == 1)


async def test_without_a_public_address_there_are_no_links(tmp_path: Path) -> None:
    """People are told all the same, and answer by command line or API."""
    async with office(tmp_path / "s.db", msgspec.structs.replace(CONFIG, link_base_url=None)) as o:
        await o.desk.open(case())
        await until(lambda: len(o.notifier.sent) == 4)
        assert {link for _, _, link in o.notifier.sent} == {None}


def test_pauses_have_an_end() -> None:
    """However often it failed, the next attempt is at most a minute and a half away, and not all come as one."""
    for attempts in (1, 2, 10, 1000):
        pauses = {pause_s(attempts) for _ in range(50)}
        assert len(pauses) > 10
        assert max(pauses) <= LONGEST_PAUSE_S * 1.5
