"""Guard, book and desk of one gateway: put together, opened and closed as one."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from sekisho.audit.config import AuditConfig
from sekisho.audit.records import AdminRecord
from sekisho.core.clock import Clock
from sekisho.core.errors import BookUnavailable, EngineUnavailable, StoreUnavailable
from sekisho.core.events import EventStream, Handler, Stage
from sekisho.core.turn import Turn
from sekisho.engines.config import Thinking
from sekisho.gateway.bookkeeper import Bookkeeper
from sekisho.gateway.checkpoint import Checkpoint
from sekisho.gateway.passing import settle
from sekisho.gateway.people import DeskOnTheRoad, into_book
from sekisho.gateway.seal import Sealer
from sekisho.guard.assembly import build_judge
from sekisho.guard.config import GuardConfig, Mode
from sekisho.guard.desk import Desk
from sekisho.guard.emergency import Emergency, EmergencySwitch, emergency_file
from sekisho.guard.guard_model import GuardModel
from sekisho.guard.notify import OutboundNotifier
from sekisho.guard.personal import redact
from sekisho.guard.quiet import QuietNotifier
from sekisho.guard.thinking import Seal
from sekisho.store import Store

log = logging.getLogger("sekisho.gateway.guarding")


class Guarding:
    """`audit_folder`, `secrets` and `team_folder` are the home's. `sealer` is made on first use. `thinking`: by model.

    Raises `guard.assembly.GuardUnusable` where rules, model or thresholds cannot be used.
    """

    def __init__(
        self,
        config: GuardConfig,
        audit: AuditConfig,
        folders: tuple[Path, Path, Path],
        sealer: Callable[[], Sealer],
        clock: Clock,
        thinking: Mapping[str, Thinking],
    ) -> None:
        audit_folder, secrets, team_folder = folders
        self.config = config
        self.keeper = Bookkeeper(audit_folder, secrets, audit)
        self._notes: set[asyncio.Task[None]] = set()
        self._switch = EmergencySwitch(emergency_file(team_folder), on_change=self._changed)
        self._store: Callable[[], Store] = _no_store
        self._run: Handler = _no_engine
        notifier = QuietNotifier() if config.test_mode else OutboundNotifier(config.escalation, _clean)
        self.desk = Desk(
            lambda: self._store(),
            config.escalation,
            notifier,
            clock,
            into_book(self.keeper),
            sealer=_Late(sealer),
        )
        self._road = DeskOnTheRoad(self.desk, config)
        self._judge = build_judge(config, team_folder)
        self.checkpoint = Checkpoint(
            config,
            self._judge,
            self.keeper.book,
            self._road,
            self.mode,
            lambda owner: _sealing(sealer, owner),
            thinking,
            None if config.model is None else GuardModel(lambda turn: self._run(turn), config.model),
        )

    @property
    def stage(self) -> Stage:
        """The outermost skin of every turn's road."""
        return self.checkpoint.stage

    def mode(self) -> Mode:
        """What is in force now: an emergency wins over the settings."""
        return self._switch.mode(self.config.mode)

    def _changed(self, emergency: Emergency | None) -> None:
        """Called wherever the mode is asked for."""
        try:
            task = asyncio.get_running_loop().create_task(self._note(emergency))
        except RuntimeError:
            return  # at the start: `start` notes what it finds
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _note(self, emergency: Emergency | None) -> None:
        """The book knows when an emergency was on, who declared it and why."""
        action = "emergency_off" if emergency is None else "emergency_on"
        who = "" if emergency is None else emergency.by
        detail = {} if emergency is None else {"reason": redact(emergency.reason).text}
        try:
            await self.keeper.book().append(AdminRecord(action=action, user_id=who, detail={**detail}))
        except BookUnavailable as error:
            log.error("%s is not in the book: %s (%s)", action, error.message, error.id)

    def bind(self, store: Callable[[], Store], run: Handler) -> None:
        """Where tickets are kept (`store` raises StoreUnavailable while there is none), and how a guard model is asked:
        `run` is the road without this checkpoint."""
        self._store = store
        self._run = run

    async def start(self) -> None:
        """Opens the book if it can be opened, and begins the desk's work."""
        await asyncio.gather(self.keeper.open(), asyncio.to_thread(self._judge.longest_match))
        if (emergency := self._switch.current()) is not None:
            await self._note(emergency)
        await self.desk.start()

    def begin_stop(self) -> None:
        """From now on a request that breaks off while a person thinks leaves its ticket to the next server."""
        self._road.stopping = True

    async def stop(self) -> None:
        await self.desk.close()
        await settle()
        await self.keeper.close()


class _Late:
    """A sealer that is made when it is first needed: the cipher costs 20 ms that most starts do not need."""

    def __init__(self, make: Callable[[], Sealer]) -> None:
        self._make = make

    def seal(self, text: str, owner: str) -> str:
        return self._make().seal(text, owner)

    def unseal(self, sealed: str, owner: str) -> str | None:
        return self._make().unseal(sealed, owner)


def _clean(text: str) -> str:
    return redact(text).text


def _sealing(sealer: Callable[[], Sealer], owner: str) -> Seal:
    return lambda text: sealer().seal(text, owner)


def _no_engine(turn: Turn) -> EventStream:
    raise EngineUnavailable("No engine is there yet.", retry_after_s=1.0)


def _no_store() -> Store:
    raise StoreUnavailable("The store does not answer.", retry_after_s=5.0)
