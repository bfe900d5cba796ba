"""The ASGI application: finds the route, identifies the caller, calls the handler, turns trouble into an answer."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from sekisho.core.clock import Clock
from sekisho.core.errors import (
    Draining,
    Forbidden,
    SekishoError,
    StoreUnavailable,
)
from sekisho.gateway.answer import TurnFailed
from sekisho.gateway.config import GatewayConfig
from sekisho.gateway.exchange import Exchange
from sekisho.gateway.guarding import Guarding
from sekisho.gateway.http import JSON, ClientGone, Header, Receive, Request, Scope, Send
from sekisho.gateway.identity import (
    Holder,
    KeyRing,
    check_network,
    check_scope,
    client_address,
    inside,
    networks,
    told_user,
)
from sekisho.gateway.ledger import Ledger
from sekisho.gateway.metrics import Metrics
from sekisho.gateway.roster import Roster
from sekisho.gateway.router import Call, Router
from sekisho.gateway.running import Running
from sekisho.gateway.seal import Sealer
from sekisho.gateway.trouble import persistently, unexpected
from sekisho.guard.desk import Desk
from sekisho.guard.desk_config import EscalationConfig
from sekisho.ops.denials import DenialLog
from sekisho.store import Store, UsageSpool
from sekisho.wire import messages, openai_error
from sekisho.wire.base import ErrorView
from sekisho.wire.ollama import encoder as ollama

log = logging.getLogger("sekisho.gateway")

ErrorBody = Callable[[ErrorView], bytes]


class Gateway:
    """Everything a handler needs. Built by `serve`, started and stopped by ASGI's lifespan."""

    def __init__(
        self,
        config: GatewayConfig,
        router: Router,
        roster: Roster,
        spool: UsageSpool,
        open_store: Callable[[], Awaitable[Store]],
        sealer: Callable[[], Sealer],
        clock: Clock,
        responses_ttl_s: float,
        guarding: Guarding,
        denials: DenialLog,
    ) -> None:
        self.config = config
        self.router = router
        self.roster = roster
        self.clock = clock
        self.metrics = Metrics()
        self.responses_ttl_s = responses_ttl_s
        self.guarding = guarding
        self.denials = denials
        guarding.bind(lambda: self.store, roster.unguarded)
        guarding.checkpoint.on_verdict = self.metrics.observe_verdict
        self.answers: dict[str, tuple[str, Running]] = {}
        self.background: set[asyncio.Task[None]] = set()
        self.draining = False
        self.started_s = clock.monotonic()
        self.started_unix_s = clock.now()
        self._spool = spool
        self._open_store = open_store
        self._store: Store | None = None
        self._sealer = sealer
        self._made_sealer: Sealer | None = None
        self.ring = KeyRing(lambda: self._store, clock)
        self.ledger = Ledger(spool, lambda: self._store, clock, config.prices)
        self._trusted = networks(config.trusted_proxies)
        self._allowed = networks(config.allow_networks)
        self._tasks: list[asyncio.Task[None]] = []
        self._booking: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the store if it answers, adopts a dead process's usage, begins the background work."""
        self._spool.recover()
        try:
            await self._connect()
        except StoreUnavailable as error:
            log.error("starting without the store: %s (%s)", error.message, error.id)
        else:
            await self._know_spending()
        await self.guarding.start()
        loop = asyncio.get_running_loop()
        self._booking = loop.create_task(self.ledger.run(), name="ledger")
        for name, work in (
            ("store", self._keep_connected),
            ("keys", self.ring.watch),
            ("roster", self.roster.watch),
            ("book", self.guarding.keeper.watch),
            ("denials", self.denials.keep),
        ):
            self._tasks.append(loop.create_task(persistently(name, work), name=name))

    async def stop(self) -> None:
        """Ends background work, empties the spool, closes everything."""
        self.draining = True
        self.guarding.begin_stop()
        for task in (*self._tasks, *self.background):
            task.cancel()
        await asyncio.gather(*self._tasks, *self.background, return_exceptions=True)
        self.ledger.stop()  # after the background answers, whose usage it still takes
        if self._booking is not None:
            await self._booking
        await self.roster.close()
        await self.guarding.stop()
        await asyncio.to_thread(self.denials.close)
        self._spool.close()
        if self._store is not None:
            await self._store.close()

    def begin_drain(self) -> None:
        """No new turns from now on; running ones have `drain_timeout_s`, then end with a clear failure."""
        if self.draining:
            return
        self.draining = True
        self.ledger.samples.end()
        self.guarding.begin_stop()
        log.info("draining %d running requests", len(self.answers))
        asyncio.get_running_loop().call_later(self.config.drain_timeout_s, self._abort_all)

    def _abort_all(self) -> None:
        for _, answer in list(self.answers.values()):
            answer.abort(Draining("The server is shutting down.", retry_after_s=5.0))

    async def _connect(self) -> None:
        store = await self._open_store()
        await store.fail_stale_responses(self.clock.now())
        self._store = store

    async def _know_spending(self) -> None:
        """Budgets hold from the first request on, also after a kill that left usage in the spool."""
        try:
            await self.ledger.drain()
        except StoreUnavailable as error:
            log.error("starting without the month's spending: %s (%s)", error.message, error.id)

    async def _keep_connected(self) -> None:
        while True:
            await asyncio.sleep(2.0)
            try:
                if self._store is None:
                    await self._connect()
                    log.info("the store answers now")
                else:
                    await self._store.expire_responses(self.clock.now())
                    await asyncio.sleep(600.0)
            except StoreUnavailable as error:
                log.warning("store: %s (%s)", error.message, error.id)

    # --- what handlers use --------------------------------------------------------------------------------------

    def address(self, request: Request) -> str | None:
        """Where the call comes from. Raises Forbidden for a network that may not use the server."""
        address = request.peer
        if self._trusted or self._allowed:
            address = client_address(address, request.headers.get(b"x-forwarded-for"), self._trusted)
            if self._allowed and not inside(address, self._allowed):
                raise Forbidden("This address may not use the server.", code="network_not_allowed")
        return address

    async def identify(self, request: Request) -> Holder:
        """Whose key this is. Raises Unauthenticated, StoreUnavailable, or Forbidden for the wrong network."""
        address = self.address(request)
        holder = self.ring.known(request.headers) or await self.ring.identify(request.headers)
        check_network(holder, address)
        return holder

    @property
    def store(self) -> Store:
        """Raises StoreUnavailable while it is not open."""
        if self._store is None:
            raise StoreUnavailable("The store does not answer.", retry_after_s=5.0)
        return self._store

    @property
    def store_open(self) -> bool:
        return self._store is not None

    @property
    def desk(self) -> Desk:
        return self.guarding.desk

    @property
    def config_of_desk(self) -> EscalationConfig:
        return self.guarding.config.escalation

    @property
    def sealer(self) -> Sealer:
        if self._made_sealer is None:
            self._made_sealer = self._sealer()
        return self._made_sealer

    async def body(self, call: Call) -> bytes:
        return await call.request.body(self.config.body_limit_bytes, self.config.body_timeout_s)

    def admit(
        self, call: Call, turn_id: str, model: str, protocol: str, estimate: int, user: str | None = None
    ) -> Exchange:
        """Meters the call. Raises Draining, RateLimited, QuotaSpent."""
        if self.draining:
            raise Draining("The server is shutting down.", retry_after_s=5.0)
        assert call.holder is not None
        user = (user or told_user(call.request.headers) or "")[:256] or None
        return Exchange(turn_id, model, protocol, call.holder, self.ledger, self.metrics, self.clock, estimate, user)

    def limit_headers(self, holder: Holder) -> list[Header]:
        """OpenAI's `x-ratelimit-*` headers, for the limits that the key has."""
        limits = holder.meter.limits
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return []
        requests, tokens = holder.meter.remaining(self.clock.monotonic())
        headers: list[Header] = []
        if requests is not None:
            headers.append((b"x-ratelimit-limit-requests", b"%d" % (limits.requests_per_minute or 0)))
            headers.append((b"x-ratelimit-remaining-requests", b"%d" % requests))
        if tokens is not None:
            headers.append((b"x-ratelimit-limit-tokens", b"%d" % (limits.tokens_per_minute or 0)))
            headers.append((b"x-ratelimit-remaining-tokens", b"%d" % tokens))
        return headers

    # --- ASGI ---------------------------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        request = Request(scope, receive, send)
        try:
            if request.method == "OPTIONS" and b"access-control-request-method" in request.headers:
                await self._preflight(request)
                return
            if self.config.cors_origins:
                self._add_cors(request)
            route, params = self.router.find(request.method, request.path)
            call = Call(request, params)
            if not route.public:
                call.holder = await self.identify(request)
                if route.scope is not None:
                    check_scope(call.holder, route.scope)
            await route.handler(self, call)
        except ClientGone:
            pass  # there is nobody left to tell
        except TurnFailed as error:
            failed = error.failed
            await self._tell(
                request,
                ErrorView(
                    failed.id, failed.status, failed.type, failed.code, failed.message, None, failed.retry_after_s
                ),
            )
        except SekishoError as error:
            await self._tell(request, ErrorView.of(error))
        except Exception as error:  # noqa: BLE001 — the last line of defence: logged with its traceback, told without
            await self._tell(request, ErrorView.of(unexpected(f"{request.method} {request.path[:200]}", error)))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _tell(self, request: Request, view: ErrorView) -> None:
        self.metrics.errors.labels(str(view.status), view.code).inc()
        if view.status in (401, 403):
            self.denials.note(view.code)
        if view.status >= 500:
            where = f"{request.method} {request.path[:200]}"
            log.warning("%s: %d %s %s (%s)", where, view.status, view.code, view.message, view.id)
        if request.begun or request.gone:
            return  # too late for a status; the server closes the connection
        headers: list[Header] = [(b"x-error-id", view.id.encode())]
        if view.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(view.retry_after_s + 0.499))))
            headers.append((b"retry-after-ms", b"%d" % max(1, round(view.retry_after_s * 1000))))
        if view.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="sekisho"'))
        if view.status == 405:
            headers.append((b"allow", ", ".join(self.router.methods(request.path)).encode()))
        if view.status in (408, 413):
            headers.append((b"connection", b"close"))
        await request.respond(view.status, error_body(request.path)(view), JSON, headers)

    def _add_cors(self, request: Request) -> None:
        origin = request.headers.get(b"origin")
        if origin is None or not self._origin_allowed(origin):
            return
        send = request.send

        async def with_cors(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"access-control-allow-origin", origin),
                    (b"access-control-expose-headers", b"x-request-id, x-error-id, retry-after"),
                    (b"vary", b"origin"),
                ]
            await send(message)

        request.send = with_cors

    def _origin_allowed(self, origin: bytes) -> bool:
        return "*" in self.config.cors_origins or origin.decode("latin-1") in self.config.cors_origins

    async def _preflight(self, request: Request) -> None:
        origin = request.headers.get(b"origin", b"")
        if not self._origin_allowed(origin):
            raise Forbidden("Browsers of this origin may not use the server: see gateway.cors_origins.")
        await request.respond(
            204,
            b"",
            headers=[
                (b"access-control-allow-origin", origin),
                (b"access-control-allow-methods", b"GET, POST, DELETE"),
                (b"access-control-allow-headers", request.headers.get(b"access-control-request-headers", b"*")),
                (b"access-control-max-age", b"600"),
                (b"vary", b"origin"),
            ],
        )


_FACES: Mapping[str, ErrorBody] = {"/v1/messages": messages.error_body, "/api/": ollama.error_body}


def error_body(path: str) -> ErrorBody:
    """The error shape of the protocol that lives at a path."""
    for prefix, body in _FACES.items():
        if path.startswith(prefix):
            return body
    return openai_error.error_body
