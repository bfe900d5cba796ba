"""A desk on a real store, with a notifier that keeps what it is given and a book that keeps what it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from sekisho.core.clock import ManualClock
from sekisho.core.errors import BookUnavailable
from sekisho.core.verdict import Verdict
from sekisho.guard import notices
from sekisho.guard.desk import Desk
from sekisho.guard.desk_config import ApproverConfig, ChannelConfig, ChannelsConfig, EscalationConfig, SmtpConfig
from sekisho.guard.desk_records import Case, DeskEvent, Outcome
from sekisho.guard.notices import NoticeFailed
from sekisho.store import Notice, NoticeKind, Store, Ticket

START = 1_790_000_000.0

CONFIG = EscalationConfig(
    approvers={
        "doctor": ApproverConfig(channels=("medical",), email="doctor@example.com", key="doctors-key"),
        "nurse": ApproverConfig(channels=("medical",), email="nurse@example.com"),
        "lawyer": ApproverConfig(channels=("legal",), email="lawyer@example.com"),
    },
    channels=ChannelsConfig(medical=ChannelConfig(slack_url_env="SLACK_MEDICAL", email=("ward@example.com",))),
    smtp=SmtpConfig(host="mail.example.com", sender="sekisho@example.com"),
    link_base_url="https://llm.example.com",
)
VERDICT = Verdict(
    decision="escalate", category="medical", severity="high", rationale="個別の投薬量の質問です", language="ja"
)
CASE = Case(
    request_hash="hash_1",
    request_id="req_1",
    key_id="key_1",
    key_name="taro",
    user="花子",
    model="mini",
    protocol="chat",
    verdict=VERDICT,
    question="この薬を何錠飲めますか",
    behaviour="hold",
)


def case(**changes: Any) -> Case:
    return msgspec.structs.replace(CASE, **changes)


class KeepingNotifier:
    """A `Notifier` that sends nothing. `failures` are raised first, one an attempt; with `hangs`, mail hangs."""

    def __init__(self, config: EscalationConfig) -> None:
        self._config = config
        self.sent: list[tuple[Notice, Ticket, str | None]] = []
        self.attempts = 0
        self.failures: list[NoticeFailed] = []
        self.hangs = False

    def plan(self, ticket: Ticket, now: float) -> list[Notice]:
        return notices.plan(self._config, ticket, now)

    async def send(self, notice: Notice, ticket: Ticket, link: str | None, now: float) -> None:
        self.attempts += 1
        if self.hangs and notice.kind == "email":
            await asyncio.Event().wait()
        if self.failures:
            raise self.failures.pop(0)
        self.sent.append((notice, ticket, link))

    async def close(self) -> None:
        pass

    def token_for(self, approver: str) -> str:
        """The token of the last link that the approver got."""
        links = [link for notice, _, link in self.sent if notice.approver == approver and link]
        return links[-1].partition("#")[2]


class Book:
    """Keeps events; `broken` lets it refuse them."""

    def __init__(self) -> None:
        self.events: list[DeskEvent] = []
        self.broken = False

    async def __call__(self, event: DeskEvent) -> None:
        if self.broken:
            raise BookUnavailable("The book cannot be written.")
        self.events.append(event)

    def last(self) -> DeskEvent:
        return [event for event in self.events if event.kind not in ("notified", "notice_failed")][-1]

    def kinds(self, *left_out: str) -> list[str]:
        """What the book was told, without notices and what is named."""
        silent = ("notified", "notice_failed", *left_out)
        return [event.kind for event in self.events if event.kind not in silent]


class ReversingSealer:
    """Seals enough to see that nothing is stored in clear, and is bound to its owner."""

    def seal(self, text: str, owner: str) -> str:
        return f"sealed:{owner}:{text[::-1]}"

    def unseal(self, sealed: str, owner: str) -> str | None:
        start = f"sealed:{owner}:"
        return sealed[len(start) :][::-1] if sealed.startswith(start) else None


class Office(msgspec.Struct):
    """Everything around one desk."""

    desk: Desk
    store: Store
    clock: ManualClock
    notifier: KeepingNotifier
    book: Book


@asynccontextmanager
async def office(
    path: Path, config: EscalationConfig = CONFIG, clock: ManualClock | None = None, started: bool = True
) -> AsyncIterator[Office]:
    clock = clock or ManualClock(START)
    store = await Store.open(path, clock=clock)
    notifier, book = KeepingNotifier(config), Book()
    desk = Desk(lambda: store, config, notifier, clock, book, sealer=ReversingSealer(), poll_s=0.02)
    if started:
        await desk.start()
    try:
        yield Office(desk, store, clock, notifier, book)
    finally:
        await desk.close()
        await store.close()


async def until(condition: Any) -> None:
    """Lets the loop run until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for rings no bell
            await asyncio.sleep(0.01)


async def waits(desk: Desk, ticket_id: str) -> asyncio.Task[Outcome]:
    """A wait for the ticket's end, which has begun: its time runs."""
    begun, hear = asyncio.Event(), desk._hear

    async def noted(bell: asyncio.Event, ends_at: float) -> None:
        begun.set()
        await hear(bell, ends_at)

    desk._hear = noted  # type: ignore[method-assign]
    waiting = asyncio.create_task(desk.wait(ticket_id))
    await begun.wait()
    return waiting


async def after_attempt(o: Office, ticket_id: str, attempt: int, kind: NoticeKind = "email") -> Notice:
    """The ticket's one notice of its kind when attempt number `attempt` has failed, and not only been claimed."""
    lease_s = CONFIG.notice_timeout_s + 15
    async with asyncio.timeout(60):
        while True:
            (notice,) = (each for each in await o.store.ticket_notices(ticket_id) if each.kind == kind)
            if notice.attempts == attempt and notice.next_attempt_at != o.clock.now() + lease_s:
                return notice
            await asyncio.sleep(0.01)
