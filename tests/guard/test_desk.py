"""The escalation desk on a real store."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from desk_harness import VERDICT, Office, case, office, until, waits

from sekisho.core.errors import AlreadyDecided, Forbidden, InvalidRequest, NotFound, RequestError, TicketExpired
from sekisho.store import Ticket


async def test_a_held_request_goes_on_when_a_human_approves(open_office: Office) -> None:
    """The caller waits, the doctor approves, the outcome goes on; the book has it in order with who it was."""
    desk, book = open_office.desk, open_office.book
    ticket = await desk.open(case())
    waiting = await waits(desk, ticket.id)
    await asyncio.sleep(0.05)
    assert not waiting.done()
    decided = await desk.decide(ticket.id, "doctor", "approve", reason="処方どおり")
    outcome = await waiting
    assert (outcome.state, outcome.goes_on, outcome.ticket.decided_by) == ("approved", True, "doctor")
    assert (decided.state, decided.reason) == ("approved", "処方どおり")
    assert book.kinds() == ["opened", "approved"]
    assert (book.last().actor, book.last().text) == ("doctor", "処方どおり")


async def test_a_human_answers_in_place_of_the_model(open_office: Office) -> None:
    """The outcome does not go on and has the human's words; in the database they stand sealed."""
    desk = open_office.desk
    ticket = await desk.open(case())
    await desk.decide(ticket.id, "nurse", "answer", answer="一日二錠までです。")
    outcome = await desk.wait(ticket.id)
    assert (outcome.state, outcome.goes_on, outcome.ticket.answer) == ("answered", False, "一日二錠までです。")
    kept = await open_office.store.get_ticket(ticket.id)
    assert kept is not None
    assert "二錠" not in str(kept)
    assert "何錠" not in str(kept)


async def test_a_denial_refuses(open_office: Office) -> None:
    """The outcome does not go on."""
    ticket = await open_office.desk.open(case())
    await open_office.desk.decide(ticket.id, "doctor", "deny")
    outcome = await open_office.desk.wait(ticket.id)
    assert (outcome.state, outcome.goes_on) == ("denied", False)


async def test_time_that_runs_out_refuses_and_a_late_click_revives_nothing(open_office: Office) -> None:
    """After 300 s the wait ends as expired; approving by name or by link is then 410, and the ticket stays expired."""
    desk, clock, notifier = open_office.desk, open_office.clock, open_office.notifier
    ticket = await desk.open(case())
    await until(lambda: len(notifier.sent) == 4)
    waiting = await waits(desk, ticket.id)
    clock.advance(299.9)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    clock.advance(0.1)
    outcome = await waiting
    assert (outcome.state, outcome.goes_on) == ("expired", False)
    with pytest.raises(TicketExpired):
        await desk.decide(ticket.id, "doctor", "approve")
    with pytest.raises(TicketExpired):
        await desk.redeem(notifier.token_for("doctor"), "approve")
    assert (await desk.get(ticket.id)).state == "expired"
    assert await desk.approved("hash_1", "key_1") is None
    assert open_office.book.kinds() == ["opened", "expired", "rejected"]


async def test_a_click_after_the_end_without_anybody_waiting_expires_the_ticket(tmp_path: Path) -> None:
    """Also where no desk runs and nothing has marked the ticket yet, the late click is 410."""
    async with office(tmp_path / "s.db", started=False) as o:
        ticket = await o.desk.open(case())
        o.clock.advance(300)
        with pytest.raises(TicketExpired):
            await o.desk.decide(ticket.id, "doctor", "approve")
        assert (await o.desk.get(ticket.id)).state == "expired"


@pytest.mark.parametrize("seconds", [-86_400.0, -299.0, 299.0, 86_400.0])
async def test_a_clock_that_jumps_never_prolongs_a_wait(tmp_path: Path, seconds: float) -> None:
    """Set back, the wait still ends after 300 s of real time; set forward, it may end earlier, as a refusal."""
    async with office(tmp_path / "s.db") as o:
        ticket = await o.desk.open(case())
        waiting = await waits(o.desk, ticket.id)
        o.clock.jump(seconds)
        o.clock.advance(300)
        assert (await asyncio.wait_for(waiting, 60)).state == "expired"
        with pytest.raises(TicketExpired):
            await o.desk.decide(ticket.id, "doctor", "approve")


async def test_two_people_at_once_have_one_outcome(open_office: Office) -> None:
    """Doctor and nurse click at the same moment, ten times: one gets the ticket, the other is told who was first."""
    for number in range(10):
        ticket = await open_office.desk.open(case(request_hash=f"h{number}"))
        waiting = asyncio.create_task(open_office.desk.wait(ticket.id))
        clicks = await asyncio.gather(
            open_office.desk.decide(ticket.id, "doctor", "approve"),
            open_office.desk.decide(ticket.id, "nurse", "deny"),
            return_exceptions=True,
        )
        won = [click for click in clicks if isinstance(click, Ticket)]
        lost = [click for click in clicks if isinstance(click, AlreadyDecided)]
        assert (len(won), len(lost)) == (1, 1)
        assert f"'{won[0].decided_by}'" in lost[0].message
        assert (await waiting).state == won[0].state


@pytest.mark.parametrize(
    ("action", "answer"),
    [("answer", None), ("answer", "  "), ("approve", "yes"), ("deny", "no"), ("allow", None), ("", None),
     ("answer", "x" * 32_001)],
)  # fmt: skip
async def test_a_decision_that_makes_no_sense_changes_nothing(open_office: Office, action: str, answer: str) -> None:
    """400, the ticket stays open and the link unused."""
    ticket = await open_office.desk.open(case())
    await until(lambda: len(open_office.notifier.sent) == 4)
    token = open_office.notifier.token_for("doctor")
    with pytest.raises(InvalidRequest):
        await open_office.desk.decide(ticket.id, "doctor", action, answer)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest):
        await open_office.desk.redeem(token, action, answer)  # type: ignore[arg-type]
    assert (await open_office.desk.redeem(token, "answer", "\ud800ok\0")).answer == "?ok\ufffd"


async def test_a_caller_that_leaves_ends_its_ticket(open_office: Office) -> None:
    """Abandoned, the ticket needs no answer: a decision is 409 and says why. A decided one is not abandoned."""
    ticket = await open_office.desk.open(case())
    waiting = await waits(open_office.desk, ticket.id)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gone = await open_office.desk.abandon(ticket.id)
    assert gone is not None
    assert gone.state == "abandoned"
    with pytest.raises(AlreadyDecided, match="gone"):
        await open_office.desk.decide(ticket.id, "doctor", "approve")
    assert await open_office.desk.abandon(ticket.id) is None
    assert (await open_office.desk.wait(ticket.id)).state == "abandoned"
    assert open_office.book.kinds("rejected") == ["opened", "abandoned"]


async def test_a_ticket_lets_the_repeated_request_through_once(open_office: Office) -> None:
    """Asked again while pending it is the same ticket; approved, exactly one of ten repetitions passes; afterwards
    the request is a new case."""
    desk = open_office.desk
    ticketed = case(behaviour="ticket")
    ticket = await desk.open(ticketed)
    assert (await desk.open(ticketed)).id == ticket.id
    assert await desk.approved("hash_1", "key_1") is None
    await desk.decide(ticket.id, "doctor", "approve")
    passed = await asyncio.gather(*(desk.approved("hash_1", "key_1", f"req_{n}") for n in range(10)))
    assert [t.id for t in passed if t is not None] == [ticket.id]
    assert (await desk.open(ticketed)).id != ticket.id
    assert open_office.book.kinds() == ["opened", "approved", "used", "opened"]


async def test_an_approval_is_of_one_request_one_key_and_one_time(open_office: Office) -> None:
    """Another request, another key, and the same after 900 s do not pass."""
    desk = open_office.desk
    ticket = await desk.open(case(behaviour="ticket"))
    await desk.decide(ticket.id, "doctor", "approve")
    assert await desk.approved("hash_2", "key_1") is None
    assert await desk.approved("hash_1", "key_2") is None
    open_office.clock.advance(901)
    assert await desk.approved("hash_1", "key_1") is None


async def test_a_held_approval_passes_its_holder_or_a_repetition_but_not_both(open_office: Office) -> None:
    """The approval that a repeated request took is not given to the one that waits."""
    desk = open_office.desk
    ticket = await desk.open(case())
    await desk.decide(ticket.id, "doctor", "approve")
    assert await desk.approved("hash_1", "key_1") is not None
    outcome = await desk.wait(ticket.id)
    assert (outcome.state, outcome.goes_on) == ("used", False)


async def test_a_humans_answer_is_given_as_often_as_it_is_asked(open_office: Office) -> None:
    """The answer of a ticket is there for every repetition within its time."""
    desk = open_office.desk
    ticket = await desk.open(case(behaviour="ticket"))
    await desk.decide(ticket.id, "doctor", "answer", answer="二錠です")
    for _ in range(3):
        found = await desk.approved("hash_1", "key_1")
        assert found is not None
        assert (found.state, found.answer) == ("answered", "二錠です")


async def test_a_denial_holds_and_takes_an_earlier_approval_back(open_office: Office) -> None:
    """Denied, the same request does not call the human again for a while, whatever was approved before."""
    desk = open_office.desk
    first, second = await desk.open(case()), await desk.open(case())
    await desk.decide(first.id, "doctor", "approve")
    open_office.clock.advance(1)
    await desk.decide(second.id, "nurse", "deny", reason="危険です")
    assert await desk.approved("hash_1", "key_1") is None
    denied = await desk.denied("hash_1", "key_1")
    assert denied is not None
    assert denied.reason == "危険です"
    assert await desk.denied("hash_1", "key_2") is None


async def test_every_refusal_of_the_desk_is_a_known_kind(open_office: Office) -> None:
    """403, 404, 409 and 410 come from the error tree with their codes."""
    assert {kind.status for kind in (Forbidden, NotFound, AlreadyDecided, TicketExpired)} == {403, 404, 409, 410}
    for absent in ("esc_none", "\0", "x" * 1000):
        for act in (
            open_office.desk.get(absent),
            open_office.desk.decide(absent, "doctor", "approve"),
            open_office.desk.wait(absent),
        ):
            with pytest.raises(NotFound) as caught:
                await act
            assert isinstance(caught.value, RequestError)


async def test_lists_show_pages_and_channels(open_office: Office) -> None:
    """By state and channel, newest first, page after page."""
    desk = open_office.desk
    legal = msgspec.structs.replace(VERDICT, category="legal")
    opened = []
    for number in range(5):
        open_office.clock.advance(1)
        opened.append(await desk.open(case(request_hash=f"h{number}", verdict=legal if number % 2 else VERDICT)))
    first = await desk.list(limit=3)
    rest = await desk.list(limit=3, after_id=first[-1].id)
    assert [t.id for t in (*first, *rest)] == [t.id for t in reversed(opened)]
    assert [t.channel for t in await desk.list("pending", ["legal"])] == ["legal", "legal"]
    open_office.clock.advance(300)
    assert {t.state for t in await desk.list()} == {"expired"}
