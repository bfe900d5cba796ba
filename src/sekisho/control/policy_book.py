"""Every policy that was ever in force: who changed what, when and why. `policy.jsonl`, a version on each line.

A line is written whole and synced before `change` returns, so that kill -9 leaves all that was acknowledged, and at
most one torn line behind it. A line holds the state after it (the common policy, and each model's own changes on top),
so that reading it asks for nothing that an earlier release knew and this one does not.
"""

# PolicyBookError
# ├── BookBroken      a line that was acknowledged cannot be read: names file and line
# ├── BookInUse       another process, or another PolicyBook, writes it
# └── BookUnwritable  the disk did not take a version; the policy before is in force

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from sekisho.control.policy import Policy
from sekisho.control.policy_changes import PolicyProblem, completed, dotted, normalised, overlaid, plain
from sekisho.core.clock import Clock
from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.file_lock import try_lock

FILE_NAME: Final = "policy.jsonl"
AGENT: Final = "agent"
log = logging.getLogger("sekisho.control")


def is_by_agent(by: str) -> bool:
    """Whether the agent did it by itself. Everybody else is a person, or does what one asked for."""
    return by.startswith(AGENT)


class PolicyBookError(Exception):
    """The book cannot be used as it is."""


class BookBroken(PolicyBookError):
    """A line in the midst is no version."""


class BookInUse(PolicyBookError):
    """There is another writer."""


class BookUnwritable(PolicyBookError):
    """A version could not be made durable, and is not there."""


class Version(msgspec.Struct, frozen=True):
    """`changes` as they were given; `policy`: the whole one after them, of `model`, or where that is None the one all
    models start from. `back_to`: it restored what held after that version, with `model` for that one alone. Number 0 is
    the default, before any."""

    number: int
    at: float
    by: str
    why: str
    model: str | None
    changes: dict[str, Any]
    policy: Policy
    back_to: int | None = None


class UnusableVersion(msgspec.Struct, frozen=True):
    """A version that this release cannot put in force, usually an earlier release's. Its line stays in the book."""

    number: int
    line: int
    field: str
    message: str


class _Line(msgspec.Struct, frozen=True):
    number: int
    at: float
    by: str
    why: str
    model: str | None
    changes: dict[str, Any]
    common: dict[str, Any]
    own: dict[str, dict[str, Any]]
    back_to: int | None = None


class _State(msgspec.Struct, frozen=True):
    """`own` is normalised: it can be laid over the common policy."""

    common: Policy
    own: dict[str, dict[str, Any]] = {}

    def of(self, model: str | None) -> Policy:
        changes = self.own.get(model) if model is not None else None
        return self.common if changes is None else completed(overlaid(plain(self.common), changes))


class PolicyBook:
    """One writer at a time. `change`, `roll_back` and `follow` wait for the disk (milliseconds), may be called from any
    thread, and raise PolicyProblem or BookUnwritable; nothing has changed then. Raises PolicyBookError at opening."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._path = folder / FILE_NAME
        self._clock = clock
        self._turn = threading.Lock()
        self._versions: dict[int, Version] = {0: Version(0, 0.0, "sekisho", "the default policy", None, {}, Policy())}
        self._states: dict[int, _State] = {0: _State(Policy())}
        self._problems: list[UnusableVersion] = []
        self._version = self._last = 0
        self._set_by_person = False
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor: int | None = os.open(self._path, flags, 0o600)
        try:
            if not try_lock(self._descriptor):
                raise BookInUse(f"{self._path}: somebody else writes it")
            self._end_bytes = self._read()
            _sync_folder(folder)
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """The number of the version in force; 0 as long as nobody has changed anything."""
        return self._version

    @property
    def set_by_person(self) -> bool:
        """Whether anybody but the agent itself has ever changed anything."""
        return self._set_by_person

    @property
    def problems(self) -> tuple[UnusableVersion, ...]:
        """Versions of the book that this release cannot put in force. What was in force before them still is, until
        the next change."""
        return tuple(self._problems)

    def current(self, model: str | None = None) -> Policy:
        """The policy in force, of one model or the one all start from."""
        return self._states[self._version].of(model)

    def own(self) -> Mapping[str, Mapping[str, Any]]:
        """The models that do not simply follow the common policy, and what they change of it."""
        return self._states[self._version].own

    def versions(self) -> list[Version]:
        """All that this release can read, the oldest first, without the default."""
        return [each for number, each in self._versions.items() if number]

    def before(self) -> int:
        """Where one step back leads: the newest version that held something else. What the agent took back because the
        engines did not take it is none. Raises PolicyProblem where there is nothing before."""
        failed: set[int] = set()
        for version in self._versions.values():
            if version.back_to is not None and is_by_agent(version.by):
                failed.update(range(version.back_to + 1, version.number))
        now = self._states[self._version]
        for number in sorted(self._states, reverse=True):
            if number < self._version and number not in failed and self._states[number] != now:
                return number
        raise PolicyProblem("version", "nothing was in force before this version")

    def change(self, changes: Mapping[str, Any], *, by: str, why: str, model: str | None = None) -> Version:
        """A change of the common policy, or of one model's own. What changes nothing makes no version: the one in force
        is returned. Refused as a whole where a model's own changes contradict it. A person's common change reaches all
        models: what the agent had set for single ones in the sections it names is dropped."""
        with self._turn:
            after = self._after(changes, by, model)
            return self._put(after, by=by, why=why, model=model, changes=_as_dicts(changes))

    def preview(self, changes: Mapping[str, Any], *, by: str, model: str | None, of: str) -> Policy:
        """What the policy of the model `of` would be after such a `change`."""
        return self._after(changes, by, model).of(of)

    def _after(self, changes: Mapping[str, Any], by: str, model: str | None) -> "_State":
        named = normalised(changes)
        before = self._states[self._version]
        if model is not None:
            return _State(before.common, before.own | {model: overlaid(before.own.get(model, {}), named)})
        own = dict(before.own)
        for name, fields in before.own.items() if not is_by_agent(by) else ():
            dropped = {field for field in self._by_agent(name, fields) if field.split(".")[0] in named}
            own[name] = _without(fields, dropped)
            if dropped and not own[name]:
                del own[name]
        return _State(completed(overlaid(plain(before.common), named)), own)

    def _by_agent(self, model: str, own: Mapping[str, Any]) -> set[str]:
        """The dotted fields of a model's own changes that the agent set last."""
        last: dict[str, tuple[Any, bool]] = {}
        for version in self._versions.values():
            if version.model == model and version.back_to is None:
                last |= {field: (value, is_by_agent(version.by)) for field, value in _fields(version).items()}
        return {field for field, value in dotted(own).items() if last.get(field) == (value, True)}

    def follow(self, model: str, *, by: str, why: str) -> Version:
        """Drops a model's own changes: it follows the common policy again."""
        with self._turn:
            before = self._states[self._version]
            rest = {name: changes for name, changes in before.own.items() if name != model}
            return self._put(_State(before.common, rest), by=by, why=why, model=model, changes={})

    def roll_back(self, to: int, by: str, why: str | None = None, model: str | None = None) -> Version:
        """A new version with all that held after an earlier one, models' own changes included; with `model` that one's
        own changes alone. 0 is the default. Raises PolicyProblem for a version that there is not, or that cannot be put
        in force."""
        with self._turn:
            if to not in self._states:
                newest = ", ".join(map(str, list(self._states)[-20:]))
                raise PolicyProblem("version", f"must be one that can be put in force (last: {newest}), not {to}")
            state = self._states[to]
            if model is not None:
                now = self._states[self._version]
                rest = {name: fields for name, fields in now.own.items() if name != model}
                state = _State(now.common, rest | ({model: state.own[model]} if model in state.own else {}))
            return self._put(state, by=by, why=why or f"back to version {to}", model=model, changes={}, back_to=to)

    def close(self) -> None:
        """Frees the book for another writer. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> "PolicyBook":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(
        self,
        state: _State,
        *,
        by: str,
        why: str,
        model: str | None,
        changes: dict[str, Any],
        back_to: int | None = None,
    ) -> Version:
        _check_models(state)
        if back_to is None and state == self._states[self._version]:
            return self._versions[self._version]
        line = _Line(
            self._last + 1, self._clock.now(), by, why, model, changes, plain(state.common), state.own, back_to
        )
        try:
            body = msgspec.json.encode(line) + b"\n"
        except UnicodeEncodeError:
            raise PolicyProblem("why", "must be text: half a character cannot be written") from None
        self._append(body)
        return self._keep(line, state)

    def _append(self, body: bytes) -> None:
        if self._descriptor is None:
            raise BookUnwritable(f"{self._path}: the book is closed")
        try:
            if os.fstat(self._descriptor).st_size != self._end_bytes:
                os.ftruncate(self._descriptor, self._end_bytes)  # what a full disk left of a line
            view = memoryview(body)
            while view:
                view = view[os.write(self._descriptor, view) :]
            os.fsync(self._descriptor)
        except OSError as error:
            self._cut_off()
            raise BookUnwritable(f"{self._path}: {error.strerror or error}") from error
        self._end_bytes += len(body)

    def _cut_off(self) -> None:
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._end_bytes)
        except OSError as error:
            log.warning("%s: part of a line stays until the next change: %s", self._path, error)

    def _keep(self, line: _Line, state: _State) -> Version:
        version = Version(
            line.number, line.at, line.by, line.why, line.model, line.changes, state.of(line.model), line.back_to
        )
        self._versions[line.number], self._states[line.number] = version, state
        self._version = self._last = line.number
        self._set_by_person = self._set_by_person or not is_by_agent(line.by)
        return version

    def _read(self) -> int:
        """Takes up what the file holds. Returns where the next line begins."""
        body = self._path.read_bytes()
        end = _whole_bytes(body)
        if end < len(body):
            log.warning("%s: dropped a torn last line of %d bytes", self._path, len(body) - end)
            assert self._descriptor is not None
            os.ftruncate(self._descriptor, end)
        for number, line in enumerate(self._lines(body[:end]), start=1):
            try:
                self._keep(line, _state(line))
            except PolicyProblem as problem:
                self._last = line.number
                self._set_by_person = self._set_by_person or not is_by_agent(line.by)
                self._problems.append(UnusableVersion(line.number, number, problem.field, problem.message))
                log.warning("%s, line %d: version %d is not put in force: %s", self._path, number, line.number, problem)
        return end

    def _lines(self, body: bytes) -> Iterator[_Line]:
        before = 0
        for number, raw in enumerate(body.split(b"\n")[:-1], start=1):
            try:
                line = decoded(raw, _Line)
            except Undecodable as error:
                raise BookBroken(f"{self._path}, line {number}: no version of a policy: {error}") from error
            if line.number != before + 1:
                raise BookBroken(f"{self._path}, line {number}: version {line.number} cannot follow {before}")
            before = line.number
            yield line


def _whole_bytes(body: bytes) -> int:
    """Where whole lines end: a write that was cut short ends without a line break. A last line with zeros in it was
    never on the disk either: a power failure leaves them where the file had grown and its bytes had not come."""
    end = body.rfind(b"\n") + 1
    last = body.rfind(b"\n", 0, max(0, end - 1)) + 1
    return last if b"\0" in body[last:end] else end


def _state(line: _Line) -> _State:
    """Raises PolicyProblem for fields that this release does not know, or not so. What is checked is kept as it was
    written: what a mode brings today is not brought into the past."""
    for changes in (line.common, *line.own.values()):
        normalised(changes)
    state = _State(completed(line.common), line.own)
    _check_models(state)
    return state


def _check_models(state: _State) -> None:
    for model in state.own:
        try:
            state.of(model)
        except PolicyProblem as problem:
            raise PolicyProblem(problem.field, f"{problem.message} (with what {model!r} has of its own)") from None


def _fields(version: Version) -> dict[str, Any]:
    """What it changed, by dotted name; nothing where this release no longer knows it."""
    try:
        return dotted(normalised(version.changes))
    except PolicyProblem:
        return {}


def _without(own: dict[str, Any], dropped: set[str]) -> dict[str, Any]:
    """Normalised changes less the dropped fields."""
    if not dropped:
        return own
    kept: dict[str, Any] = {}
    for field, value in dotted(own).items():
        *path, name = field.split(".")
        if field not in dropped:
            section = kept
            for each in path:
                section = section.setdefault(each, {})
            section[name] = value
    return kept


def _as_dicts(changes: Mapping[str, Any]) -> dict[str, Any]:
    """For a record: any mapping as a dict of its own."""
    return {name: _as_dicts(value) if isinstance(value, Mapping) else value for name, value in changes.items()}


def _sync_folder(folder: Path) -> None:
    """Makes the file's name durable. Windows keeps names in a journal of its own and opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
