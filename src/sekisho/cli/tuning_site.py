"""What `policy tune`, `compare` and `ablate` work on: a model of this home, and the policies that there are."""

import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sekisho.cli.agent_client import AgentClient, agent_client
from sekisho.cli.failure import ABSENT, USAGE, CommandFailed
from sekisho.cli.options import at_home, settings_of
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from sekisho.control.policy import Policy
    from sekisho.control.policy_book import PolicyBook
    from sekisho.engines.config import ModelConfig
    from sekisho.evaluate.definitions import Language
    from sekisho.ops.home import Home

T = TypeVar("T")


class Policies:
    """Those of the running agent; without one, those of the home's book."""

    def __init__(self, place: "Home", model: str, agent: AgentClient | None) -> None:
        self._place, self._model, self._agent = place, model, agent

    @cached_property
    def current(self) -> "Policy":
        """As it was when it was first asked for."""
        import msgspec

        from sekisho.control.policy import Policy

        if self._agent is None:
            return self._from_book(lambda book: book.current(self._model), Policy())
        told = self._agent.get(f"/v1/policy?model={_quoted(self._model)}")
        return msgspec.convert({name: told[name] for name in Policy.__struct_fields__}, Policy)

    def version(self, number: int) -> "Policy":
        """Raises CommandFailed for one that there is not, or that is another model's own."""
        import msgspec

        from sekisho.control.policy import Policy

        if self._agent is None:
            listed: list[dict[str, Any]] = self._from_book(lambda book: msgspec.to_builtins(book.versions()), [])
        else:
            listed = self._agent.get("/v1/policy/versions")["versions"]
        if number == 0:
            return Policy()
        found = next((each for each in listed if each["number"] == number), None)
        if found is None or found.get("model") not in (None, self._model):
            why = "no such version" if found is None else f"is of {found['model']} alone"
            raise CommandFailed(f"version:{number}: {why}", hint="sekisho policy versions", exit_code=ABSENT)
        return msgspec.convert(found["policy"], Policy)

    def _from_book(self, read: "Callable[[PolicyBook], T]", nothing: T) -> T:
        from sekisho.control.policy_book import FILE_NAME, PolicyBook, PolicyBookError
        from sekisho.core.clock import SystemClock

        folder = self._place.path / "control"
        if not (folder / FILE_NAME).exists():
            return nothing
        try:
            with PolicyBook(folder, SystemClock()) as book:
                return read(book)
        except PolicyBookError as error:
            raise CommandFailed(str(error), hint="sekisho status") from error


class Site:
    """`own`: the model's settings. `alone`: it is the only model, so that a policy of all is its own. `agent` None:
    none runs."""

    def __init__(
        self,
        out: Output,
        place: "Home",
        own: "ModelConfig",
        agent: AgentClient | None,
        *,
        alone: bool,
        text: Path | None,
    ) -> None:
        self.out, self.place, self.own, self.agent, self.alone = out, place, own, agent, alone
        self.text = text
        self.policies = Policies(place, own.name, agent)
        self.made_at = time.time()

    def check_room(self, policies: "Iterable[Policy]") -> None:
        """Raises CommandFailed where the largest worker that would be started has no room in memory."""
        from sekisho.control import trial_room
        from sekisho.control.trial_settings import meant
        from sekisho.control.units import human

        room = trial_room.look(meant(policy, self.own) for policy in policies)
        if room.enough or room.need_bytes is None:
            return
        needed, free = (human(size >> 20 << 20) for size in (room.need_bytes, room.free_bytes))
        text = self.out.text("tuning_no_room", model=self.own.name, needed=needed, free=free)
        raise CommandFailed(text, hint=self.out.text("tuning_make_room"))


def find(out: Output, home: Path | None, model: str | None, agent: str | None = None, text: Path | None = None) -> Site:
    """The model named, or the default one. Raises CommandFailed: no such model, or none that can be tried. Warns where
    the server runs."""
    from sekisho.control.measured import MeasurementFailed
    from sekisho.control.trial_settings import KINDS, kind_of
    from sekisho.ops.home import running

    place = at_home(home)
    place.create()
    settings = settings_of(place)
    name = model or settings.default_model
    own = next(iter(settings.models), None) if name is None else settings.model(name)
    if own is None:
        raise CommandFailed(f"{name}: no such model", hint="sekisho model list", exit_code=ABSENT)
    try:
        kind_of(own)
    except MeasurementFailed as error:
        fitting = ", ".join(each.name for each in settings.models if each.engine in KINDS and not each.embeddings)
        hint = f"--model with one of {fitting}" if fitting else None
        raise CommandFailed(str(error), hint=hint, exit_code=USAGE) from error
    if running(place) is not None:
        out.warn(out.text("tuning_disturbed"))
    named = settings.control.quality.text
    chosen = text if text is not None else None if named is None else Path(named)
    return Site(out, place, own, _agent(place, agent), alone=len(settings.models) == 1, text=chosen)


def _agent(place: "Home", url: str | None) -> AgentClient | None:
    """None where none answers; one that was named must."""
    try:
        client = agent_client(place, url)
        client.get("/v1/policy")
    except CommandFailed as error:
        if url is None and error.exit_code == ABSENT:
            return None
        raise
    return client


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def language_of(out: Output) -> "Language":
    """As the reports name it."""
    return "ja" if out.language == "ja" else "en"
