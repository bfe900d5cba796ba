"""The escalation desk on a real store."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from desk_harness import CONFIG, VERDICT, KeepingNotifier, Office, case, office, until

from sekisho.core.errors import (
    AlreadyDecided,
    BookUnavailable,
    Forbidden,
    InvalidRequest,
    NotFound,
    RequestError,
    StoreUnavailable,
    TicketExpired,
)
from sekisho.guard.desk import Desk
from sekisho.store import LinkToken, Store, Ticket
from sekisho.store.keys import hash_secret


@pytest.fixture
async def open_office(tmp_path: Path) -> AsyncIterator[Office]:
    async with office(tmp_path / "s.db") as opened:
        yield opened


async def test_a_held_request_goes_on_when_a_human_approves(open_office: Office) -> None:
    """The caller waits, the doctor approves, the outcome goes on; the book has it in order with who it was."""
    desk, book = open_office.desk, open_office.book
    ticket = await desk.open(case())
    waiting = asyncio.create_task(desk.wait(ticket.id))
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
    waiting = asyncio.create_task(desk.wait(ticket.id))
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
        waiting = asyncio.create_task(o.desk.wait(ticket.id))
        await asyncio.sleep(0.05)
        o.clock.jump(seconds)
        o.clock.advance(300)
        assert (await asyncio.wait_for(waiting, 20)).state == "expired"
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


OTHER_PERSON = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from desk_harness import CONFIG, KeepingNotifier, ReversingSealer
from sekisho.core.clock import ManualClock
from sekisho.core.errors import AlreadyDecided
from sekisho.guard.desk import Desk
from sekisho.store import Store

async def main():
    store = await Store.open(sys.argv[1])
    desk = Desk(lambda: store, CONFIG, KeepingNotifier(CONFIG), ManualClock(), sealer=ReversingSealer())
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            await desk.decide(line.strip(), "nurse", "answer", answer="別のプロセスから")
            print("won", flush=True)
        except AlreadyDecided:
            print("lost", flush=True)
    await desk.close()
    await store.close()

asyncio.run(main())
"""


async def test_another_process_decides_and_the_caller_here_hears_it(tmp_path: Path) -> None:
    """A command line beside the server answers a held request; the caller gets the answer, and this server, which
    alone writes the book, tells it. Where both click at once, there is one outcome."""
    async with office(tmp_path / "s.db") as o:
        person = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            OTHER_PERSON,
            str(tmp_path / "s.db"),
            str(Path(__file__).parent),
            stdin=PIPE,
            stdout=PIPE,
        )
        assert person.stdin is not None
        assert person.stdout is not None
        assert await person.stdout.readline() == b"ready\n"

        async def click(ticket: Ticket) -> str:
            person.stdin.write(f"{ticket.id}\n".encode())
            await person.stdin.drain()
            return (await person.stdout.readline()).decode().strip()

        alone = await o.desk.open(case())
        waiting = asyncio.create_task(o.desk.wait(alone.id))
        assert await click(alone) == "won"
        outcome = await waiting
        assert (outcome.state, outcome.ticket.answer) == ("answered", "別のプロセスから")
        assert o.book.kinds() == ["opened", "answered"]
        assert o.book.last().actor == "nurse"

        for number in range(10):
            ticket = await o.desk.open(case(request_hash=f"h{number}"))
            waiting = asyncio.create_task(o.desk.wait(ticket.id))
            here, there = await asyncio.gather(
                o.desk.decide(ticket.id, "doctor", "approve"), click(ticket), return_exceptions=True
            )
            assert isinstance(here, Ticket) == (there == "lost")
            assert (await waiting).state == ("approved" if there == "lost" else "answered")
        person.stdin.close()
        assert await person.wait() == 0


async def test_a_restart_loses_no_ticket_and_no_notice(tmp_path: Path) -> None:
    """The first process dies with a ticket open and its notices unsent; the next sends them, and a decision then lets
    the repeated request through."""
    async with office(tmp_path / "s.db", started=False) as first:
        ticket = await first.desk.open(case())
        assert first.notifier.sent == []
    async with office(tmp_path / "s.db") as second:
        await until(lambda: len(second.notifier.sent) == 4)
        assert [t.id for t in await second.desk.list("pending")] == [ticket.id]
        await second.desk.redeem(second.notifier.token_for("doctor"), "approve")
        passed = await second.desk.approved("hash_1", "key_1", "req_2")
        assert passed is not None
        assert passed.question == "この薬を何錠飲めますか"
        assert await second.desk.approved("hash_1", "key_1") is None
        assert second.book.kinds() == ["approved", "used"]
        assert second.book.last().request_id == "req_2"


async def test_what_the_book_does_not_know_yet_is_told_after_a_restart(tmp_path: Path) -> None:
    """A book in trouble while a human decides loses no event: the caller is refused, and the next process tells it."""
    async with office(tmp_path / "s.db", started=False) as first:
        ticket = await first.desk.open(case())
        waiting = asyncio.create_task(first.desk.wait(ticket.id))
        await asyncio.sleep(0.05)
        first.book.broken = True
        assert (await first.desk.decide(ticket.id, "doctor", "approve")).state == "approved"
        with pytest.raises(BookUnavailable):
            await waiting
        assert first.book.kinds() == ["opened"]
    async with office(tmp_path / "s.db") as second:
        await until(lambda: second.book.kinds() == ["approved"])
        await asyncio.sleep(0.1)
        assert second.book.kinds() == ["approved"]


async def test_a_ticket_that_the_book_cannot_take_is_no_ticket(open_office: Office) -> None:
    """Where opening cannot be recorded the caller is refused, and no human is left with a dead ticket."""
    open_office.book.broken = True
    with pytest.raises(BookUnavailable):
        await open_office.desk.open(case())
    assert [t.state for t in await open_office.desk.list()] == ["abandoned"]
    assert open_office.notifier.sent == []


@pytest.mark.parametrize("stranger", ["lawyer", "nobody", "", "taro", "\0"])
async def test_only_the_role_may_decide(open_office: Office, stranger: str) -> None:
    """Another channel's approver and strangers get 403, in the book too, and the ticket stays open."""
    ticket = await open_office.desk.open(case())
    with pytest.raises(Forbidden):
        await open_office.desk.decide(ticket.id, stranger, "approve")
    assert (await open_office.desk.get(ticket.id)).state == "pending"
    assert open_office.book.kinds() == ["opened", "rejected"]
    assert open_office.book.last().actor == stranger


async def test_nobody_decides_about_their_own_request(tmp_path: Path) -> None:
    """The doctor's own key asks: the doctor gets no link and 403, the nurse decides; a setting allows it."""
    async with office(tmp_path / "s.db") as o:
        ticket = await o.desk.open(case(key_name="doctors-key"))
        await until(lambda: len(o.notifier.sent) == 4)
        assert {n.approver for n, _, link in o.notifier.sent if link} == {"nurse"}
        with pytest.raises(Forbidden, match="own key"):
            await o.desk.decide(ticket.id, "doctor", "approve")
        assert (await o.desk.decide(ticket.id, "nurse", "approve")).state == "approved"
    alone = msgspec.structs.replace(CONFIG, own_requests=True)
    async with office(tmp_path / "s2.db", alone) as o:
        ticket = await o.desk.open(case(key_name="doctors-key"))
        assert (await o.desk.decide(ticket.id, "doctor", "approve")).state == "approved"


async def test_the_operator_decides_unless_it_is_forbidden(tmp_path: Path) -> None:
    """A fresh server without approvers still has somebody to ask: whoever has its command line."""
    async with office(tmp_path / "s.db") as o:
        ticket = await o.desk.open(case())
        assert (await o.desk.decide(ticket.id, "operator", "deny")).decided_by == "operator"
    async with office(tmp_path / "s.db", msgspec.structs.replace(CONFIG, operator=False)) as o:
        ticket = await o.desk.open(case())
        with pytest.raises(Forbidden):
            await o.desk.decide(ticket.id, "operator", "approve")


async def test_a_link_works_once_for_its_own_ticket(open_office: Office) -> None:
    """Looking at it uses nothing up. Replayed, bent, cut, or held against another ticket it decides nothing."""
    desk, notifier = open_office.desk, open_office.notifier
    ticket = await desk.open(case())
    other = await desk.open(case(request_hash="hash_2"))
    await until(lambda: len(notifier.sent) == 8)
    mine = [n for n in notifier.sent if n[1].id == ticket.id and n[0].approver == "doctor"]
    token = str(mine[0][2]).partition("#")[2]
    for _ in range(3):
        shown, who = await desk.peek(token, ticket.id)
        assert (shown.question, shown.state, who) == ("この薬を何錠飲めますか", "pending", "doctor")
    for bad in (token[:-1], token.swapcase(), "", "\0", "\ud800", "x" * 10_000):
        with pytest.raises(NotFound):
            await desk.redeem(bad, "approve")
    with pytest.raises(NotFound):
        await desk.redeem(token, "approve", ticket_id=other.id)
    with pytest.raises(NotFound):
        await desk.peek(token, other.id)
    assert (await desk.redeem(token, "deny", ticket_id=ticket.id)).decided_by == "doctor"
    with pytest.raises(AlreadyDecided, match="used"):
        await desk.redeem(token, "approve")
    with pytest.raises(AlreadyDecided):
        await desk.peek(token)
    assert (await desk.get(ticket.id)).state == "denied"
    assert (await desk.get(other.id)).state == "pending"


async def test_two_uses_of_one_link_at_once_decide_once(open_office: Office) -> None:
    """A double click, or a copied link: one decision."""
    ticket = await open_office.desk.open(case())
    await until(lambda: len(open_office.notifier.sent) == 4)
    token = open_office.notifier.token_for("doctor")
    clicks = await asyncio.gather(
        *(open_office.desk.redeem(token, action) for action in ("approve", "deny", "approve")), return_exceptions=True
    )
    assert sorted(type(click).__name__ for click in clicks) == ["AlreadyDecided", "AlreadyDecided", "Ticket"]
    assert (await open_office.desk.get(ticket.id)).version == 2


async def test_the_other_persons_link_is_told_who_was_first(open_office: Office) -> None:
    """Two links to one ticket: the second says who decided and stays without effect."""
    await open_office.desk.open(case())
    await until(lambda: len(open_office.notifier.sent) == 4)
    doctor, nurse = (open_office.notifier.token_for(name) for name in ("doctor", "nurse"))
    await open_office.desk.redeem(doctor, "approve")
    with pytest.raises(AlreadyDecided, match="approved by 'doctor'"):
        await open_office.desk.redeem(nurse, "deny")


async def test_a_link_ends_with_its_owners_role(tmp_path: Path) -> None:
    """Whoever loses the role between notice and click decides nothing."""
    async with office(tmp_path / "s.db") as o:
        await o.desk.open(case())
        await until(lambda: len(o.notifier.sent) == 4)
        token = o.notifier.token_for("doctor")
    fewer = msgspec.structs.replace(CONFIG, approvers={"nurse": CONFIG.approvers["nurse"]})
    async with office(tmp_path / "s.db", fewer, clock=o.clock) as o:
        for act in (o.desk.redeem(token, "approve"), o.desk.peek(token)):
            with pytest.raises(Forbidden):
                await act


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_tokens_are_nowhere_in_the_database(tmp_path: Path) -> None:
    """Whoever reads the database cannot make a link of it, nor read the question."""
    async with office(tmp_path / "s.db") as o:
        await o.desk.open(case())
        await until(lambda: len(o.notifier.sent) == 4)
        tokens = [o.notifier.token_for(name) for name in ("doctor", "nurse")]
        await o.desk.redeem(tokens[0], "answer", answer="二錠です")
    files = everything_in(tmp_path)
    for secret in (*tokens, "二錠です", "何錠飲めますか"):
        assert secret.encode() not in files


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
    waiting = asyncio.create_task(open_office.desk.wait(ticket.id))
    await asyncio.sleep(0.05)
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


async def test_a_database_that_is_away_for_a_moment_ends_no_wait(tmp_path: Path) -> None:
    """The wait lives through it, and the decision afterwards is heard."""
    async with office(tmp_path / "s.db", started=False) as o:
        ticket = await o.desk.open(case())
        shut = await Store.open(tmp_path / "shut.db")
        await shut.close()
        current = o.store
        desk = Desk(lambda: current, CONFIG, KeepingNotifier(CONFIG), o.clock, o.book, poll_s=0.02)
        waiting = asyncio.create_task(desk.wait(ticket.id))
        await asyncio.sleep(0.1)
        current = shut
        with pytest.raises(StoreUnavailable):
            await desk.get(ticket.id)
        await asyncio.sleep(0.1)
        current = o.store
        await o.desk.decide(ticket.id, "doctor", "deny")
        assert (await waiting).state == "denied"


async def test_a_server_with_another_key_reads_no_texts(tmp_path: Path) -> None:
    """What another key sealed is empty in lists, and an answer that cannot be read is an error, never an empty one."""
    async with office(tmp_path / "s.db") as o:
        ticket = await o.desk.open(case())
        await o.desk.decide(ticket.id, "doctor", "answer", answer="二錠です")

        class Stranger:
            def seal(self, text: str, owner: str) -> str:
                return text

            def unseal(self, sealed: str, owner: str) -> str | None:
                return None

        desk = Desk(lambda: o.store, CONFIG, KeepingNotifier(CONFIG), o.clock, sealer=Stranger())
        assert [(t.question, t.answer) for t in await desk.list()] == [("", None)]
        with pytest.raises(StoreUnavailable):
            await desk.wait(ticket.id)


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


OPENER = """
import asyncio, sys
import msgspec
sys.path.insert(0, sys.argv[2])
from desk_harness import CONFIG, KeepingNotifier, case
from sekisho.core.clock import ManualClock
from sekisho.guard.desk import Desk
from sekisho.store import Store

async def main():
    store = await Store.open(sys.argv[1])
    config = msgspec.structs.replace(CONFIG, pending_per_key=10_000)
    desk = Desk(lambda: store, config, KeepingNotifier(config), ManualClock())
    number = 0
    while True:
        tickets = await asyncio.gather(*(desk.open(case(request_hash=f"h{number + n}")) for n in range(5)))
        number += 5
        for ticket in tickets:
            print(ticket.id, flush=True)

asyncio.run(main())
"""


async def test_a_kill_at_any_moment_loses_no_ticket(tmp_path: Path) -> None:
    """Six times a process that opens tickets is killed by signal 9: every ticket that it told of is there, pending,
    with all its notices."""
    told: list[str] = []
    for round_number in range(6):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OPENER, str(tmp_path / "s.db"), str(Path(__file__).parent), stdout=PIPE
        )
        assert process.stdout is not None
        for _ in range(3 + 4 * round_number):
            told.append((await process.stdout.readline()).decode().strip())
        process.kill()
        told += (await process.stdout.read()).decode().split("\n")[:-1]
        await process.wait()
    async with office(tmp_path / "s.db", started=False) as o:
        kept = {ticket.id: ticket for ticket in await o.desk.list(limit=10_000)}
        for ticket_id in told:
            assert kept[ticket_id].state == "pending"
            assert len(await o.store.ticket_notices(ticket_id)) == 4


async def test_a_link_is_of_one_request(open_office: Office) -> None:
    """A link made for another request is no link to this ticket, whoever wrote the row."""
    ticket = await open_office.desk.open(case())
    foreign = LinkToken(
        token_hash=hash_secret("token"),
        ticket_id=ticket.id,
        request_hash="another request",
        approver="doctor",
        created_at=open_office.clock.now(),
        expires_at=ticket.expires_at,
    )
    await open_office.store.add_link_token(foreign)
    with pytest.raises(NotFound):
        await open_office.desk.redeem("token", "approve", ticket_id=ticket.id)
    assert (await open_office.desk.get(ticket.id)).state == "pending"
