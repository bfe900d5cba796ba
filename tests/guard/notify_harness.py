"""A ticket, its notices, and a notifier and receiver of them over real connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web
from desk_harness import START

from sekisho.guard.desk_config import EscalationConfig
from sekisho.guard.notices import NoticeFailed
from sekisho.guard.notify import OutboundNotifier
from sekisho.store import Notice, NoticeKind, Ticket

TICKET = Ticket(
    id="esc_1", request_hash="h", request_id="req_1", key_id="key_1", key_name="secret-key-name", user="山田花子",
    model="mini", protocol="chat", category="medical", channel="medical", severity="critical", language="ja",
    rationale="個別の投薬量の質問です <!channel> & more", question="山田花子です。この薬を何錠飲めますか",
    behaviour="hold", created_at=START, expires_at=START + 300,
)  # fmt: skip
LINK = "https://llm.example.com/escalation/esc_1#token"


def redact(text: str) -> str:
    return text.replace("山田花子", "[氏名]")


def notice(kind: NoticeKind, target: str = "") -> Notice:
    return Notice(
        id="note_1", ticket_id="esc_1", channel="medical", kind=kind, target=target, created_at=START,
        next_attempt_at=START,
    )  # fmt: skip


class Received(msgspec.Struct):
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """A real HTTP server. `answers` are used up one a request, then 200; a None hangs."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.answers: list[tuple[int, dict[str, str]] | None] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append(Received(request.path, headers, await request.read()))
        wanted = self.answers.pop(0) if self.answers else (200, {})
        if wanted is None:
            await asyncio.Event().wait()
        assert wanted is not None
        return web.Response(status=wanted[0], headers=wanted[1], text="ok")


@asynccontextmanager
async def notifier(config: EscalationConfig, **environment: str) -> AsyncIterator[OutboundNotifier]:
    made = OutboundNotifier(config, redact, environment)
    try:
        yield made
    finally:
        await made.close()
        await made.close()


async def failure(sending: Awaitable[None]) -> NoticeFailed:
    with pytest.raises(NoticeFailed) as caught:
        await sending
    return caught.value
