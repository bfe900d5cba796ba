import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import msgspec
import pytest

from sekisho.core.errors import RateLimited
from sekisho.store import HumanVerdict, LinkToken, Notice, Store, Ticket

NOW = 1_790_000_000.0


def ticket(ticket_id: str = "esc_1", **changes: object) -> Ticket:
    made = Ticket(
        id=ticket_id,
        request_hash="hash_1",
        request_id="req_1",
        key_id="key_1",
        key_name="taro",
        user="花子",
        model="mini",
        protocol="chat",
        category="medical",
        channel="medical",
        severity="high",
        language="ja",
        rationale="個別の投薬量の質問です",
        question="薬を何錠飲めますか",
        behaviour="hold",
        created_at=NOW,
        expires_at=NOW + 300,
    )
    return msgspec.structs.replace(made, **changes)


def notice(notice_id: str, ticket_id: str = "esc_1", **changes: object) -> Notice:
    made = Notice(
        id=notice_id, ticket_id=ticket_id, channel="medical", kind="slack", created_at=NOW, next_attempt_at=NOW
    )
    return msgspec.structs.replace(made, **changes)


def token(token_hash: str, ticket_id: str = "esc_1", **changes: object) -> LinkToken:
    made = LinkToken(
        token_hash=token_hash,
        ticket_id=ticket_id,
        request_hash="hash_1",
        approver="doctor",
        created_at=NOW,
        expires_at=NOW + 300,
    )
    return msgspec.structs.replace(made, **changes)


def approval(ticket_id: str = "esc_1", **changes: object) -> HumanVerdict:
    made = HumanVerdict(ticket_id=ticket_id, state="approved", decided_by="doctor")
    return msgspec.structs.replace(made, **changes)


async def test_one_key_cannot_flood_the_desk(store: Store) -> None:
    """Of fifty requests at once as many become tickets as may wait, with their notices; what has ended makes room,
    what is asked again needs none, and another key has its own."""

    async def knock(number: int) -> bool:
        try:
            opened = ticket(f"esc_{number}", request_hash=f"hash_{number}")
            await store.open_ticket(opened, [notice(f"note_{number}", f"esc_{number}")], NOW, limit=3)
        except RateLimited:
            return False
        return True

    assert sum(await asyncio.gather(*map(knock, range(50)))) == 3
    waiting = await store.list_tickets("pending")
    assert len(waiting) == 3
    assert await store.close_ticket(waiting[0].id, "abandoned", NOW) is not None
    assert await knock(60)
    assert not await knock(61)
    assert (await store.open_ticket(ticket("esc_o", key_id="key_2"), [], NOW, limit=3)).id == "esc_o"
    assert (await store.open_ticket(ticket("esc_l", request_hash="late"), [], NOW + 301, limit=3)).id == "esc_l"


async def test_a_ticket_comes_back_as_it_was_put(store: Store) -> None:
    """Every field survives, texts of any language included, and an unknown or impossible id is None."""
    await store.open_ticket(ticket(), [], NOW)
    assert await store.get_ticket("esc_1") == ticket()
    for hostile in ("esc_2", "\0", "\ud800", "x" * 100_000, "", "' OR 1=1 --"):
        assert await store.get_ticket(hostile) is None


async def test_one_of_many_simultaneous_decisions_counts(store: Store) -> None:
    """Twenty people at once, three kinds of decision: one gets the ticket, and the row says what that one said."""
    await store.open_ticket(ticket(), [], NOW)
    states = ("approved", "answered", "denied")
    verdicts = [approval(state=states[n % 3], decided_by=f"p{n}", answer=f"a{n}") for n in range(20)]
    outcomes = await asyncio.gather(*(store.decide_ticket(verdict, NOW + 1) for verdict in verdicts))
    won = [outcome for outcome in outcomes if outcome is not None]
    assert len(won) == 1
    assert await store.get_ticket("esc_1") == won[0]
    chosen = next(verdict for verdict in verdicts if verdict.decided_by == won[0].decided_by)
    assert (won[0].state, won[0].answer, won[0].version) == (chosen.state, chosen.answer, 2)


DECIDER = """
import asyncio, sys
from sekisho.store import HumanVerdict, Store, backends

backends.BUSY_TIMEOUT_MS = 60_000  # a machine that stalls in mid-transaction is no fault of the other server

async def main():
    store = await Store.open(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for number in range(20):
        verdict = HumanVerdict(ticket_id=f"esc_{number}", state="approved", decided_by=sys.argv[2])
        if await store.decide_ticket(verdict, 1_790_000_001.0) is not None:
            won.append(number)
    await store.close()
    print(*won)

asyncio.run(main())
"""


async def test_two_processes_never_both_decide_a_ticket(database_url: str) -> None:
    """Two servers decide the same twenty tickets at the same time: each ticket has one winner, and the row names it."""
    store = await Store.open(database_url)
    for number in range(20):
        await store.open_ticket(ticket(f"esc_{number}"), [], NOW)
    people = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", DECIDER, database_url, name, stdin=PIPE, stdout=PIPE)
        for name in ("left", "right")
    ]
    for person in people:
        assert person.stdout is not None
        assert await person.stdout.readline() == b"ready\n"
    told = await asyncio.gather(*(person.communicate(b"go\n") for person in people))
    won = [{int(word) for word in output.split()} for output, _ in told]
    assert [person.returncode for person in people] == [0, 0]
    assert won[0] & won[1] == set()
    assert won[0] | won[1] == set(range(20))
    for number in range(20):
        kept = await store.get_ticket(f"esc_{number}")
        assert kept is not None
        assert kept.decided_by == ("left" if number in won[0] else "right")
    await store.close()


@pytest.mark.parametrize("state", ["approved", "answered", "denied", "expired", "abandoned"])
async def test_a_late_decision_revives_nothing(store: Store, state: str) -> None:
    """A ticket that has ended in any way, or whose time is over, cannot be decided again, and its row stays."""
    await store.open_ticket(ticket("esc_late"), [], NOW)
    assert await store.decide_ticket(approval("esc_late"), NOW + 300) is None
    await store.open_ticket(ticket(state=state, request_hash="h2"), [], NOW)
    assert await store.decide_ticket(approval(), NOW + 1) is None
    kept = await store.get_ticket("esc_1")
    assert kept is not None
    assert (kept.state, kept.decided_by) == (state, None)


async def test_closing_and_deciding_exclude_each_other(store: Store) -> None:
    """A time-out and a click at the same moment leave one outcome."""
    for number in range(10):
        await store.open_ticket(ticket(f"esc_{number}"), [], NOW)
        decided, closed = await asyncio.gather(
            store.decide_ticket(approval(f"esc_{number}"), NOW + 299),
            store.close_ticket(f"esc_{number}", "expired", NOW + 300),
        )
        assert (decided is None) != (closed is None)
        assert await store.get_ticket(f"esc_{number}") == (decided or closed)


async def test_time_ends_exactly_the_tickets_whose_time_is_over(store: Store) -> None:
    """`expire_tickets` takes what has reached its end, once, and leaves the rest."""
    await store.open_ticket(ticket("esc_short", expires_at=NOW + 10), [], NOW)
    await store.open_ticket(ticket("esc_long"), [], NOW)
    assert await store.expire_tickets(NOW + 9) == []
    assert [gone.id for gone in await store.expire_tickets(NOW + 10)] == ["esc_short"]
    assert await store.expire_tickets(NOW + 10) == []
    assert await store.no_longer_pending(["esc_short", "esc_long", "esc_never"]) == {"esc_short"}


async def test_a_request_that_is_asked_again_has_one_open_ticket(store: Store) -> None:
    """With the behaviour `ticket` ten simultaneous questions make one ticket with one set of notices; another key,
    another request, or a ticket whose time is over make a new one."""
    asked = [ticket(f"esc_{n}", behaviour="ticket") for n in range(10)]
    opened = await asyncio.gather(*(store.open_ticket(t, [notice(f"n_{t.id}", t.id)], NOW) for t in asked))
    assert len({t.id for t in opened}) == 1
    assert [n.ticket_id for n in await store.claim_notices(NOW, 60)] == [opened[0].id]
    for other in (
        ticket("esc_key", behaviour="ticket", key_id="key_2"),
        ticket("esc_hash", behaviour="ticket", request_hash="hash_2"),
        ticket("esc_held"),
    ):
        assert (await store.open_ticket(other, [], NOW)).id == other.id
    later = ticket("esc_later", behaviour="ticket", created_at=NOW + 300, expires_at=NOW + 600)
    assert (await store.open_ticket(later, [], NOW + 300)).id == "esc_later"
    ended = await store.get_ticket(opened[0].id)
    assert ended is not None
    assert ended.state == "expired"


async def test_an_approval_lets_one_request_through(store: Store) -> None:
    """Ten simultaneous repetitions of an approved request: one passes. A foreign key, another request or an old
    approval passes none."""
    await store.open_ticket(ticket(behaviour="ticket"), [], NOW)
    await store.decide_ticket(approval(), NOW + 5)
    assert await store.use_approval("hash_1", "key_2", NOW, NOW + 6) is None
    assert await store.use_approval("hash_2", "key_1", NOW, NOW + 6) is None
    assert await store.use_approval("hash_1", "key_1", NOW + 5, NOW + 6) is None
    passed = await asyncio.gather(*(store.use_approval("hash_1", "key_1", NOW, NOW + 6) for _ in range(10)))
    assert [t.id for t in passed if t is not None] == ["esc_1"]
    assert not await store.use_ticket("esc_1", NOW + 7)


async def test_only_an_approval_can_be_used(store: Store) -> None:
    """A pending, answered or denied ticket lets nothing through; the decision itself can be looked up."""
    await store.open_ticket(ticket(), [], NOW)
    assert not await store.use_ticket("esc_1", NOW)
    await store.decide_ticket(approval(state="answered", answer="二錠まで"), NOW + 1)
    assert not await store.use_ticket("esc_1", NOW)
    assert await store.use_approval("hash_1", "key_1", NOW, NOW) is None
    found = await store.latest_decided("hash_1", "key_1", "answered", NOW)
    assert found is not None
    assert found.answer == "二錠まで"
    assert await store.latest_decided("hash_1", "key_1", "denied", NOW) is None
    assert await store.latest_decided("hash_1", "key_1", "answered", NOW + 1) is None


async def test_a_link_decides_once_and_only_its_own_ticket_for_its_own_approver(store: Store) -> None:
    """Another ticket, another approver, an expired link: nothing is decided and the link is not spent. Ten
    simultaneous uses of the good link decide once."""
    await store.open_ticket(ticket(), [], NOW)
    await store.open_ticket(ticket("esc_2"), [], NOW)
    await store.add_link_token(token("t1"))
    await store.add_link_token(token("old", expires_at=NOW + 1))
    for wrong in (
        approval("esc_2", token_hash="t1"),
        approval(token_hash="t1", decided_by="lawyer"),
        approval(token_hash="old"),
        approval(token_hash="never"),
    ):
        assert await store.decide_ticket(wrong, NOW + 2) is None
    assert await store.find_link_token("t1") == token("t1")
    used = await asyncio.gather(*(store.decide_ticket(approval(token_hash="t1"), NOW + 3) for _ in range(10)))
    assert len([t for t in used if t is not None]) == 1
    assert await store.find_link_token("t1") == token("t1", used_at=NOW + 3)
    assert await store.decide_ticket(approval("esc_2", token_hash="t1"), NOW + 3) is None
    assert await store.find_link_token("never") is None


async def test_a_link_that_comes_too_late_is_not_spent_and_decides_nothing(store: Store) -> None:
    """When the ticket was decided by another way, the link's transaction leaves no trace."""
    await store.open_ticket(ticket(), [], NOW)
    await store.add_link_token(token("t1"))
    await store.decide_ticket(approval(state="denied", decided_by="other"), NOW + 1)
    assert await store.decide_ticket(approval(token_hash="t1"), NOW + 2) is None
    assert await store.find_link_token("t1") == token("t1")


async def test_a_notice_has_one_sender_at_a_time_and_is_due_again_when_he_dies(store: Store) -> None:
    """Of many that claim, each notice goes to one. Not settled in time, it is due again; settled, never."""
    await store.open_ticket(ticket(), [notice(f"n{n}") for n in range(6)], NOW)
    claims = await asyncio.gather(*(store.claim_notices(NOW, 60, limit=6) for _ in range(4)))
    claimed = sorted(n.id for claim in claims for n in claim)
    assert claimed == [f"n{n}" for n in range(6)]
    assert await store.claim_notices(NOW + 59, 60) == []
    again = await store.claim_notices(NOW + 60, 60)
    assert sorted((n.id, n.attempts) for n in again) == [(f"n{n}", 2) for n in range(6)]
    first = next(n for claim in claims for n in claim if n.id == "n0")
    await store.settle_notice(first, "failed", NOW, "a sender that was thought dead")
    mine = {n.id: n for n in again}
    await store.settle_notice(mine["n0"], "sent", NOW + 60)
    await store.settle_notice(mine["n1"], "pending", NOW + 70, "HTTP 500")
    states = {n.id: (n.state, n.last_error) for n in await store.ticket_notices("esc_1")}
    assert (states["n0"], states["n1"]) == (("sent", None), ("pending", "HTTP 500"))
    assert [n.id for n in await store.claim_notices(NOW + 70, 60)] == ["n1"]


async def test_the_list_is_newest_first_by_pages(store: Store) -> None:
    """Pages join without a gap or a repeat, also where tickets share their second; filters hold."""
    for n in range(7):
        channel = "legal" if n % 2 else "medical"
        await store.open_ticket(ticket(f"esc_{n}", created_at=NOW + n // 3, channel=channel), [], NOW)
    await store.decide_ticket(approval("esc_3"), NOW + 1)
    seen: list[str] = []
    page = await store.list_tickets(limit=2)
    while page:
        seen += [t.id for t in page]
        page = await store.list_tickets(limit=2, after=page[-1])
    assert seen == ["esc_6", "esc_5", "esc_4", "esc_3", "esc_2", "esc_1", "esc_0"]
    assert [t.id for t in await store.list_tickets("approved")] == ["esc_3"]
    assert {t.id for t in await store.list_tickets("pending", ["legal"])} == {"esc_5", "esc_1"}
    assert await store.list_tickets(channels=[]) == []


async def test_a_ticket_is_forgotten_only_when_the_book_knows_its_end(store: Store) -> None:
    """Old tickets go with their notices and links; a pending one, a young one and one not yet told stay."""
    for name in ("esc_told", "esc_untold", "esc_pending"):
        await store.open_ticket(ticket(name), [notice(f"n_{name}", name)], NOW)
        await store.add_link_token(token(f"t_{name}", name))
    await store.open_ticket(ticket("esc_young", created_at=NOW + 100, state="denied", told_version=1), [], NOW)
    await store.decide_ticket(approval("esc_told"), NOW + 1)
    await store.decide_ticket(approval("esc_untold"), NOW + 1)
    await store.ticket_told("esc_told", 2)
    await store.ticket_told("esc_told", 1)
    await store.ticket_told("esc_untold", 1)
    assert [t.id for t in await store.untold_tickets()] == ["esc_pending", "esc_untold"]
    assert await store.forget_tickets(NOW + 50) == 1
    assert await store.get_ticket("esc_told") is None
    assert await store.ticket_notices("esc_told") == []
    assert await store.find_link_token("t_esc_told") is None
    assert len(await store.list_tickets()) == 3


async def test_a_restart_loses_no_ticket(database_url: str) -> None:
    """What was opened, with its notices and links, is there for the next process."""
    store = await Store.open(database_url)
    await store.open_ticket(ticket(), [notice("n1")], NOW)
    await store.add_link_token(token("t1"))
    await store.close()
    store = await Store.open(database_url)
    assert await store.get_ticket("esc_1") == ticket()
    assert [n.id for n in await store.claim_notices(NOW + 1, 60)] == ["n1"]
    assert (await store.decide_ticket(approval(token_hash="t1"), NOW + 2)) is not None
    await store.close()


async def test_a_database_of_the_first_schema_is_brought_up_with_its_rows(tmp_path: Path) -> None:
    """The second migration adds tables and touches none that exist."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import Connection

    from sekisho.store import KeySpec
    from sekisho.store.migrate import MIGRATIONS

    def back(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")

    store = await Store.open(tmp_path / "s.db")
    await store.create_key(KeySpec(name="taro"))
    async with store._write() as connection:
        await connection.run_sync(back)
    await store.close()
    store = await Store.open(tmp_path / "s.db")
    assert [key.name for key in await store.list_keys()] == ["taro"]
    await store.open_ticket(ticket(), [], NOW)
    await store.close()


async def test_a_used_link_is_used_whatever_its_ticket_says(store: Store) -> None:
    """A link that is marked as used decides nothing, even about a ticket that is open."""
    await store.open_ticket(ticket(), [], NOW)
    await store.add_link_token(token("t1", used_at=NOW + 1))
    assert await store.decide_ticket(approval(token_hash="t1"), NOW + 2) is None
    kept = await store.get_ticket("esc_1")
    assert kept is not None
    assert kept.state == "pending"
