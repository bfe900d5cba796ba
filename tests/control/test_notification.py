"""Alerts over real HTTP."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from sekisho.control.fallback import Action
from sekisho.control.notification import AGAIN_S, TRIES, WAITING, Alert, HttpSender, OutboundNotifier, Target, alert_of
from sekisho.core.clock import ManualClock
from sekisho.guard.notify import ID_HEADER, SIGNATURE_HEADER, verify

ALERT = Alert("fallback.memory", "kv:m", "warning", "compress more <!channel>", 1_790_000_000.0, {"value": 0.97})


class Receiver:
    """A webhook. `answers` are used up one a request, then 200; None hangs until the test is over."""

    def __init__(self, *answers: int | None) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.over = asyncio.Event()
        self.arrived = asyncio.Condition()

    async def came(self, number: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.bodies) >= number)

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.headers.append(dict(request.headers))
        async with self.arrived:
            self.arrived.notify_all()
        answer = self.answers.pop(0) if self.answers else 200
        if answer is None:
            await self.over.wait()
            return web.Response(status=200)
        return web.Response(status=answer, headers={"Location": "http://127.0.0.1:1/"} if answer == 302 else {})


class Desk:
    """A notifier that sends to the receiver; its pauses are counted and not waited for."""

    def __init__(self, url: str, kind: str = "webhook") -> None:
        self.clock = ManualClock()
        self.pauses: list[float] = []
        target = Target(kind, url_env="URL", key_env="KEY")  # type: ignore[arg-type]
        self.environment = {"URL": url, "KEY": "secret"}
        sender = HttpSender("hook", target, self.environment)
        self.notifier = OutboundNotifier((sender,), self.clock, random.Random(1), self._pause)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


@asynccontextmanager
async def desk(receiver: Receiver, kind: str = "webhook") -> AsyncIterator[Desk]:
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    async with TestServer(app) as server:
        made = Desk(str(server.make_url("/hook")), kind)
        try:
            yield made
        finally:
            receiver.over.set()
            await made.notifier.close()
            await made.notifier.close()


async def test_a_webhook_is_signed_as_the_desks_are() -> None:
    """A receiver checks it with the same function, and sees one id for one alert."""
    receiver = Receiver()
    async with desk(receiver) as made:
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        (body,), (headers,) = receiver.bodies, receiver.headers
        told = json.loads(body)
        assert (told["type"], told["version"], told["id"]) == ("control.alert", 1, headers[ID_HEADER])
        assert msgspec.convert(told["alert"], Alert) == ALERT
        assert verify("secret", headers[SIGNATURE_HEADER], headers[ID_HEADER], body, made.clock.now())
        assert not verify("other", headers[SIGNATURE_HEADER], headers[ID_HEADER], body, made.clock.now())
        assert made.notifier.problems == ()


async def test_slack_gets_letters_and_no_commands() -> None:
    """Slack's three characters are escaped."""
    receiver = Receiver()
    async with desk(receiver, "slack") as made:
        made.notifier.notify(ALERT)
        await made.notifier.settled()
    told = json.loads(receiver.bodies[0])["text"]
    assert told == "[warning] fallback.memory kv:m: compress more &lt;!channel&gt;\nvalue: 0.97"


async def test_a_send_that_fails_is_tried_again_with_growing_pauses_under_the_same_id() -> None:
    """It counts as sent only after the receiver said so; until then the problem stands."""
    receiver = Receiver(503, 429, 500)
    async with desk(receiver) as made:
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert len(receiver.bodies) == 4
        assert len({headers[ID_HEADER] for headers in receiver.headers}) == 1
        assert made.pauses == sorted(made.pauses)
        assert len(made.pauses) == 3
        assert made.notifier.sent_at("hook", ALERT) is not None
        assert [problem.rsplit(" ", 1)[1] for problem in made.notifier.problems] == ["503", "429", "500"]


async def test_the_same_alert_is_sent_once_in_ten_minutes_after_it_arrived() -> None:
    """Not while it waits either; a graver one about the same is another alert."""
    receiver = Receiver()
    async with desk(receiver) as made:
        for _ in range(3):
            made.notifier.notify(ALERT)
        await made.notifier.settled()
        made.notifier.notify(msgspec.structs.replace(ALERT, text="other words", at=1.0))
        await made.notifier.settled()
        assert len(receiver.bodies) == 1
        made.notifier.notify(msgspec.structs.replace(ALERT, severity="critical"))
        await made.notifier.settled()
        assert len(receiver.bodies) == 2
        made.clock.advance(AGAIN_S)
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert len(receiver.bodies) == 3


async def test_an_alert_that_never_arrived_is_not_taken_for_sent() -> None:
    """After the last try it is given up and told; the next one of its kind is sent."""
    receiver = Receiver(*([500] * TRIES))
    async with desk(receiver) as made:
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert len(receiver.bodies) == TRIES
        assert made.notifier.sent_at("hook", ALERT) is None
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert len(receiver.bodies) == TRIES + 1
        assert made.notifier.sent_at("hook", ALERT) is not None


@pytest.mark.parametrize("status", [302, 400, 404])
async def test_what_another_try_cannot_mend_is_tried_once(status: int) -> None:
    """Redirects are not followed."""
    receiver = Receiver(status)
    async with desk(receiver) as made:
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert len(receiver.bodies) == 1
        assert made.notifier.problems == (f"hook: fallback.memory kv:m did not arrive: HTTP {status}",)


async def test_a_receiver_that_hangs_holds_nobody_up() -> None:
    """`notify` returns, other alerts go out, and closing does not wait."""
    receiver = Receiver(None)
    async with desk(receiver) as made:
        made.notifier.notify(ALERT)
        await receiver.came(1)
        made.notifier.notify(msgspec.structs.replace(ALERT, subject="other"))
        await receiver.came(2)
        await made.notifier.close()
        assert made.notifier.pending == 0
        made.notifier.notify(ALERT)  # only the log, now
        assert made.notifier.pending == 0


async def test_missing_secrets_and_open_addresses_are_problems_without_the_address() -> None:
    """A variable that is set later is used by the next try; clear text goes to this machine only."""
    receiver = Receiver()
    async with desk(receiver) as made:
        made.environment["KEY"] = ""
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert set(made.notifier.problems) == {
            "hook: fallback.memory kv:m did not arrive: the key that signs is not set"
        }
        made.environment |= {"KEY": "secret", "URL": "http://example.com/hidden"}
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert "https://" in made.notifier.problems[-1]
        made.environment["URL"] = "http://127.0.0.1:9/hidden"
        made.notifier.notify(ALERT)
        await made.notifier.settled()
        assert not any("hidden" in problem for problem in made.notifier.problems)
        assert receiver.bodies == []


async def test_more_than_can_wait_is_told_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """The log has every one of them."""
    receiver = Receiver(*([None] * 200))
    async with desk(receiver) as made:
        with caplog.at_level(logging.WARNING, "sekisho.control"):
            for number in range(WAITING + 3):
                made.notifier.notify(msgspec.structs.replace(ALERT, subject=f"s{number}"))
        assert made.notifier.pending == WAITING
        assert len(made.notifier.problems) == 3
        assert sum("compress more" in record.getMessage() for record in caplog.records) == WAITING + 3


def test_an_alert_of_an_action_says_what_decided() -> None:
    """Signal, value, limit and changes; nothing that is not known."""
    action = Action("memory", "compress more", "kv.used_share", 0.97, 0.95, None, "add memory", "critical", 5.0, "kv:m")
    told = alert_of(action, 7.0)
    assert (told.kind, told.subject, told.severity, told.at) == ("fallback.memory", "kv:m", "critical", 7.0)
    assert told.facts == {"signal": "kv.used_share", "value": 0.97, "limit": 0.95}
