"""The thresholds that a team owns: `<home>/thresholds.yaml`, or the built-in ones (docs/scorecard.md).

A profile is a machine's name; what it does not say is as under `criteria`.
"""

import hashlib
from functools import cache
from importlib import resources
from pathlib import Path

import msgspec

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.verdict.criterion import Criterion, Operator, Pattern, Threshold
from sekisho.evaluate.verdict.scorecard import Rules
from sekisho.evaluate.verdict.stability import Calendar
from sekisho.evaluate.verdict.thresholds_file import ThresholdProblem, ThresholdsError, Written, read
from sekisho.ops.home import Home, write_atomically

FILE_NAME = "thresholds.yaml"
BUILT_IN = "built in"
OTHER = "other"


class Ruled(msgspec.Struct, frozen=True, kw_only=True):
    """What a criterion decides by, without its wording. Approvals hold these."""

    id: str
    figures: tuple[str, ...]
    operator: Operator
    value: Threshold
    patterns: tuple[Pattern, ...]
    minimal_n: int

    @staticmethod
    def of(criterion: Criterion) -> "Ruled":
        return msgspec.convert(criterion, Ruled, from_attributes=True)

    def criterion(self) -> Criterion:
        """Judges alike, without the wording."""
        own = (self.id, self.id)
        return Criterion(**msgspec.structs.asdict(self), name=own, when_failed=own, when_open=own)


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """All of a file. `written_at` is its modification time, None for the built-in ones."""

    source: str
    written: Written
    written_at: float | None = None

    @property
    def calendar(self) -> Calendar:
        return self.written.calendar

    @property
    def profiles(self) -> tuple[str, ...]:
        return tuple(self.written.profiles)

    def rules(self, profile: str) -> Rules:
        """The criteria of one profile, by `other` where it is not named. Raises NotFound."""
        own = self.written.profiles.get(profile, self.written.profiles.get(OTHER))
        if own is None:
            why = f"{self.source} has no profile {profile!r} and no `{OTHER}`; it has {', '.join(self.profiles)}"
            raise NotFound(why, param="profile")
        criteria = tuple(
            msgspec.structs.replace(each, value=own[each.id]) if each.id in own else each
            for each in self.written.criteria
        )
        have = {criterion.id for criterion in criteria}
        return Rules(
            profile=profile,
            criteria=criteria,
            sha256=digest(profile, criteria, self.calendar),
            left_out=tuple(each.id for each in built_in().written.criteria if each.id not in have),
            source=self.source,
        )


def digest(profile: str, criteria: tuple[Criterion, ...], calendar: Calendar) -> str:
    """SHA-256 of what is decided by: not of wording, order or comments."""
    ruled = sorted((Ruled.of(criterion) for criterion in criteria), key=lambda each: each.id)
    body = msgspec.json.encode({"profile": profile, "calendar": calendar, "criteria": ruled}, order="deterministic")
    return hashlib.sha256(body).hexdigest()


def path_of(home: Home) -> Path:
    return home.path / FILE_NAME


def load(home: Home) -> Thresholds:
    """The team's thresholds, else the built-in ones. Raises ThresholdsError."""
    path = path_of(home)
    try:
        body, written_at = path.read_bytes(), path.stat().st_mtime
    except FileNotFoundError:
        return built_in()
    except OSError as error:
        raise ThresholdsError(ThresholdProblem(str(path), 1, f"cannot be read: {error.strerror}")) from error
    known = {criterion.id: criterion for criterion in built_in().written.criteria}
    return Thresholds(source=str(path), written=read(body, str(path), known), written_at=written_at)


def write_template(home: Home, *, replace: bool = False) -> Path:
    """Puts the built-in thresholds into the home, to be changed there. Raises InvalidRequest where some are there
    already, OSError."""
    path = path_of(home)
    if path.exists() and not replace:
        raise InvalidRequest(f"{path} is there already: edit it, or begin anew with --force", code="exists")
    write_atomically(path, template())
    return path


def template() -> bytes:
    """The built-in file."""
    return resources.files(__package__).joinpath(FILE_NAME).read_bytes()


@cache
def built_in() -> Thresholds:
    return Thresholds(source=BUILT_IN, written=read(template(), FILE_NAME))
