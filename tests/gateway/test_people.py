"""The desk on the road: a caller who leaves at the worst moment, and a server that does."""

import asyncio
from typing import Any

import pytest

from sekisho.core.errors import StoreUnavailable
from sekisho.core.turn import Caller, Message, Text, Turn
from sekisho.core.verdict import Verdict
from sekisho.gateway.checkpoint import Held
from sekisho.gateway.people import DeskOnTheRoad
from sekisho.guard.config import GuardConfig
from sekisho.guard.desk_records import Case
from sekisho.store.escalations import Ticket

TURN = Turn("x", "chat", "m", messages=(Message("user", (Text("hi"),)),), caller=Caller("key_1", "taro"))
HELD = Held(TURN, Verdict("escalate", "medical", rationale="why"), "hash", "hi")


class SlowDesk:
    """Takes its time to make a ticket; nobody ever decides."""

    def __init__(self, broken: bool = False) -> None:
        self.opening = asyncio.Event()
        self.go_on = asyncio.Event()
        self.waiting = asyncio.Event()
        self.opened: list[str] = []
        self.abandoned: list[str] = []
        self.broken = broken

    async def approved(self, *_: str) -> None: ...

    async def denied(self, *_: str) -> None: ...

    async def left_behind(self, *_: str) -> None: ...

    async def open(self, case: Case) -> Ticket:
        self.opening.set()
        await self.go_on.wait()
        if self.broken:
            raise StoreUnavailable("The store does not answer.")
        self.opened.append("esc_1")
        fields: dict[str, Any] = dict.fromkeys(("request_hash", "request_id", "key_id", "key_name", "model"), "x")
        fields |= dict.fromkeys(("protocol", "language", "rationale", "question"), "x")
        return Ticket(
            id="esc_1",
            category="medical",
            channel="medical",
            severity="low",
            behaviour=case.behaviour,
            created_at=0.0,
            expires_at=1.0,
            **fields,
        )

    async def wait(self, ticket_id: str) -> None:
        self.waiting.set()
        await asyncio.Event().wait()

    async def abandon(self, ticket_id: str) -> None:
        if self.broken:
            raise StoreUnavailable("The store does not answer.")
        self.abandoned.append(ticket_id)


async def leave(desk: SlowDesk, mode: Any, stopping: bool, when: str) -> None:
    road = DeskOnTheRoad(desk, GuardConfig())  # type: ignore[arg-type]
    road.stopping = stopping
    task = asyncio.create_task(road.rule(HELD, mode))
    await desk.opening.wait()
    if when == "while it waits":
        desk.go_on.set()
        await desk.waiting.wait()
    task.cancel()
    await asyncio.sleep(0)  # it hears of that before the ticket stands
    desk.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("when", ["while the ticket is made", "while it waits"])
async def test_who_leaves_leaves_no_ticket_behind(when: str) -> None:
    """Whether the ticket stood already or was on its way into the store."""
    desk = SlowDesk()
    await leave(desk, "production", False, when)
    assert (desk.opened, desk.abandoned) == (["esc_1"], ["esc_1"])


@pytest.mark.parametrize("when", ["while the ticket is made", "while it waits"])
async def test_a_server_that_leaves_gives_nothing_up(when: str) -> None:
    """The next server and the people find the ticket."""
    desk = SlowDesk()
    await leave(desk, "production", True, when)
    assert (desk.opened, desk.abandoned) == (["esc_1"], [])


async def test_a_ticket_without_a_hold_stays() -> None:
    """Its caller was to come again anyway."""
    desk = SlowDesk()
    await leave(desk, "basic", False, "while the ticket is made")
    assert (desk.opened, desk.abandoned) == (["esc_1"], [])


async def test_trouble_hides_no_cancellation() -> None:
    """A store that is away while the caller leaves does not turn the leaving into an error."""
    await leave(SlowDesk(broken=True), "production", False, "while the ticket is made")
