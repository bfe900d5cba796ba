"""Who may decide at the escalation desk, and by which link."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from desk_harness import CONFIG, Office, case, office, until

from sekisho.core.errors import AlreadyDecided, Forbidden, NotFound
from sekisho.store import LinkToken
from sekisho.store.keys import hash_secret


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
