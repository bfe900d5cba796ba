"""The escalation desk among other processes, restarts, kills, and a database that is away."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from desk_harness import CONFIG, KeepingNotifier, Office, case, office, until, waits

from sekisho.core.errors import BookUnavailable, StoreUnavailable
from sekisho.guard.desk import Desk
from sekisho.store import Store, Ticket

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
        waiting = await waits(first.desk, ticket.id)
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


async def test_a_database_that_is_away_for_a_moment_ends_no_wait(tmp_path: Path) -> None:
    """The wait lives through it, and the decision afterwards is heard."""
    async with office(tmp_path / "s.db", started=False) as o:
        ticket = await o.desk.open(case())
        shut = await Store.open(tmp_path / "shut.db")
        await shut.close()
        current, asked = o.store, list[Store]()

        def store() -> Store:
            asked.append(current)
            return current

        desk = Desk(store, CONFIG, KeepingNotifier(CONFIG), o.clock, o.book, poll_s=0.02)
        waiting = asyncio.create_task(desk.wait(ticket.id))
        await until(lambda: len(asked) == 2)  # it has looked once, and looks again
        current = shut
        with pytest.raises(StoreUnavailable):
            await desk.get(ticket.id)
        await until(lambda: asked.count(shut) > 2)
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
