"""Alerts to people: the log always, a signed webhook or Slack where they are set up. The desk of the guard has its own
notices, which belong to tickets; the signature is the same, so that a receiver checks both with `guard.notify.verify`.
"""

import asyncio
import contextlib
import logging
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from sekisho.control.backoff import Backoff
from sekisho.control.fallback import Action
from sekisho.core import ids
from sekisho.core.clock import Clock

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("sekisho.control")

AGAIN_S: Final = 600.0  # how long the same alert is not sent again
WAITING: Final = 100
TRIES: Final = 8
DEADLINE_S: Final = 15.0
_PROBLEMS: Final = 20
_TRY_AGAIN: Final = (408, 425, 429)
Severity = Literal["info", "warning", "critical"]
_LEVEL: Final = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}


class Alert(msgspec.Struct, frozen=True):
    """What somebody is to know. `kind` and `subject` say what it is about: alerts that agree in these and in severity
    are the same. No secrets and no text of users."""

    kind: str
    subject: str
    severity: Severity
    text: str
    at: float
    facts: dict[str, Any] = {}

    @property
    def same(self) -> tuple[str, str, str]:
        return self.kind, self.subject, self.severity


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where alerts go. `key_env` names the variable with the key that signs a webhook (Slack has none). `url_env` names
    the variable with the address, where that is a secret."""

    kind: Literal["webhook", "slack"]
    url: str | None = None
    url_env: str | None = None
    key_env: str | None = None


class AlertFailed(Exception):
    """An alert did not arrive. The text holds no address. `again`: whether another try may help."""

    def __init__(self, message: str, *, again: bool = True) -> None:
        super().__init__(message)
        self.again = again


class Notifier(Protocol):
    """`notify` returns at once and never raises."""

    def notify(self, alert: Alert) -> None: ...

    @property
    def problems(self) -> tuple[str, ...]:
        """What did not arrive, latest last."""
        ...

    async def close(self) -> None:
        """May be called twice."""
        ...


class Sender(Protocol):
    """One way out."""

    name: str

    async def send(self, alert: Alert, delivery: str, now: float) -> None:
        """Waits for the other side, within a time of its own. Raises AlertFailed."""
        ...

    async def close(self) -> None: ...


class OutboundNotifier:
    """A log line for each alert, then every sender, in a task of its own. A send that fails is tried again with growing
    delays, up to eight times. The same alert within ten minutes after it was *sent* is not sent again, nor while it
    waits. What waits when the process ends is lost; the log has it. Belongs to one event loop."""

    def __init__(
        self,
        senders: tuple[Sender, ...],
        clock: Clock,
        chance: random.Random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._senders = senders
        self._clock = clock
        self._chance = chance
        self._pause = pause
        self._waiting: dict[str, set[tuple[str, str, str]]] = {sender.name: set() for sender in senders}
        self._sent: dict[tuple[str, tuple[str, str, str]], float] = {}
        self._problems: deque[str] = deque(maxlen=_PROBLEMS)
        self._failing: dict[str, str] = {}  # by sender, what became of its last try
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self._problems)

    @property
    def unsent(self) -> tuple[str, ...]:
        """Of each sender whose last try failed, why."""
        return tuple(self._failing.values())

    @property
    def pending(self) -> int:
        """Alerts that wait for a sender, counted by sender."""
        return sum(len(alerts) for alerts in self._waiting.values())

    def sent_at(self, sender: str, alert: Alert) -> float | None:
        """Monotonic time at which it, or the same before it, really arrived."""
        return self._sent.get((sender, alert.same))

    def notify(self, alert: Alert) -> None:
        log.log(_LEVEL[alert.severity], "%s %s: %s", alert.kind, alert.subject, alert.text)
        if self._closed:
            return
        self._forget_old()
        for sender in self._senders:
            if alert.same in self._waiting[sender.name] or self.sent_at(sender.name, alert) is not None:
                continue
            if len(self._waiting[sender.name]) >= WAITING:
                self._problem(sender, alert, f"{WAITING} alerts wait already")
                continue
            self._waiting[sender.name].add(alert.same)
            task = asyncio.get_running_loop().create_task(self._deliver(sender, alert), name="alert")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for sender in self._senders:
            await sender.close()

    async def settled(self) -> None:
        """Returns once nothing waits any more; for shutting down gently."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _forget_old(self) -> None:
        now_s = self._clock.monotonic()
        self._sent = {key: at for key, at in self._sent.items() if now_s - at < AGAIN_S}

    async def _deliver(self, sender: Sender, alert: Alert) -> None:
        backoff = Backoff(1.0, 300.0, 2.0, self._chance)
        delivery = ids.new("alert")
        try:
            while True:
                try:
                    await sender.send(alert, delivery, self._clock.now())
                except AlertFailed as error:
                    self._failing[sender.name] = self._problem(sender, alert, str(error))
                    if not error.again or backoff.attempts + 1 >= TRIES:
                        return
                    await self._pause(backoff.next_s())
                else:
                    self._failing.pop(sender.name, None)
                    self._sent[sender.name, alert.same] = self._clock.monotonic()
                    return
        finally:
            self._waiting[sender.name].discard(alert.same)

    def _problem(self, sender: Sender, alert: Alert, why: str) -> str:
        told = f"{sender.name}: {alert.kind} {alert.subject} did not arrive: {why}"
        log.warning("%s", told)
        self._problems.append(told)
        return told


class HttpSender:
    """A signed webhook, or Slack's incoming webhook. Connects at the first alert; address and key are read anew for
    each, so that a mended variable needs no restart."""

    def __init__(self, name: str, target: Target, environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._target = target
        self._environment = os.environ if environment is None else environment
        self._session: aiohttp.ClientSession | None = None

    async def send(self, alert: Alert, delivery: str, now: float) -> None:
        from sekisho.guard.desk_config import safe_address
        from sekisho.guard.notify import ID_HEADER, SIGNATURE_HEADER, sign

        url = self._target.url or self._named(self._target.url_env, "the address")
        if not safe_address(url):
            raise AlertFailed(
                "the address must begin with https:// (http:// only for this machine itself)", again=False
            )
        if self._target.kind == "slack":
            await self._post(url, msgspec.json.encode(slack_message(alert)), {})
            return
        body = msgspec.json.encode(webhook_message(alert, delivery))
        key = self._named(self._target.key_env, "the key that signs")
        await self._post(url, body, {ID_HEADER: delivery, SIGNATURE_HEADER: sign(key, delivery, body, int(now))})

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _named(self, variable: str | None, what: str) -> str:
        found = self._environment.get(variable, "").strip() if variable is not None else ""
        if not found:
            raise AlertFailed(f"{what} is not set")
        return found

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        import aiohttp  # 0.2 s that an agent without alerts does without

        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        sent = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "sekisho"} | headers
        try:
            async with asyncio.timeout(DEADLINE_S):
                async with self._session.post(url, data=body, headers=sent, allow_redirects=False) as answer:
                    status = answer.status
        except TimeoutError as error:
            raise AlertFailed(f"no answer within {DEADLINE_S:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AlertFailed(type(error).__name__) from error  # its words may hold the address
        if not 200 <= status < 300:
            raise AlertFailed(f"HTTP {status}", again=status >= 500 or status in _TRY_AGAIN)


def alert_of(action: Action, at: float) -> Alert:
    """The alert of a fallback's action."""
    facts = {"signal": action.signal, "value": action.value, "limit": action.limit, "changes": action.changes}
    told = {name: value for name, value in facts.items() if value not in (None, "")}
    return Alert(
        f"fallback.{action.reason}", action.subject, action.severity, f"{action.rule}; {action.advice}", at, told
    )


def webhook_message(alert: Alert, delivery: str) -> dict[str, Any]:
    """`id` is the same at each try: a receiver that has seen it is done."""
    return {"version": 1, "type": "control.alert", "id": delivery, "alert": alert}


def slack_message(alert: Alert) -> dict[str, Any]:
    """Slack's three characters escaped: `<!channel>` is letters, not a command."""
    facts = [f"{name}: {value}" for name, value in alert.facts.items()]
    text = "\n".join([f"[{alert.severity}] {alert.kind} {alert.subject}: {alert.text}", *facts])
    escaped = text[:2_900].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return {"text": escaped, "unfurl_links": False, "unfurl_media": False}
