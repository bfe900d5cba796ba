"""`<home>/thresholds.approvals.jsonl`: who froze which thresholds, when, why, and on which measurement.

A record holds the values themselves, the hash of the record before it, and a signature of the home's signing key
(`audit.keys`). What is in force is the last record of a profile. Records are only ever added: whoever changes, drops or
reorders one breaks the chain, and then nothing counts as approved. Cutting the newest ones off brings an older approval
back, with whose values the file then disagrees; reports keep the hash of the record they were made under.
"""

import base64
import hashlib
import os
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sekisho.audit.files import Files, write_atomically
from sekisho.audit.keys import SIGNING_FILE, canonical_base64, load_key, public_key, sign, signed_by
from sekisho.core.errors import InvalidRequest, StoreUnavailable
from sekisho.core.file_lock import try_lock
from sekisho.evaluate.figures import Figures
from sekisho.evaluate.verdict.criterion import Criterion
from sekisho.evaluate.verdict.scorecard import ApprovalState, Change, Rules, Scorecard, score
from sekisho.evaluate.verdict.stability import Calendar
from sekisho.evaluate.verdict.thresholds import Ruled, Thresholds, digest, load
from sekisho.ops.home import Home

FILE_NAME = "thresholds.approvals.jsonl"
LOCK_S = 10.0
FIRST = "0" * 64


class Approval(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One record without its signature. `at` is seconds since 1970; `rules_sha256` is the `thresholds.digest` of what
    it holds; `alone` says why nobody else approved. `run_id` and `manifest_sha256` name the measurement it rests on."""

    number: int
    previous: str
    at: float
    profile: str
    rules_sha256: str
    file_sha256: str
    calendar: Calendar
    criteria: tuple[Ruled, ...]
    measured_by: str
    approved_by: str
    alone: str
    why: str
    run_id: str
    manifest_sha256: str
    signer: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    record: msgspec.Raw
    signature: str


class Approvals(msgspec.Struct, frozen=True):
    """All records that hold, oldest first, with the hash of each. `problem` says what is wrong with the rest."""

    records: tuple[Approval, ...] = ()
    hashes: tuple[str, ...] = ()
    problem: str = ""

    def last(self, profile: str) -> tuple[Approval, str] | None:
        pairs = zip(reversed(self.records), reversed(self.hashes), strict=True)
        return next((pair for pair in pairs if pair[0].profile == profile), None)


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to freeze. `alone`: why one person measured and approved."""

    profile: str
    measured_by: str
    approved_by: str
    why: str
    run_id: str
    manifest_sha256: str
    alone: str = ""


def read(home: Home) -> Approvals:
    """Checks numbers, chain, digests and signatures. Raises OSError."""
    try:
        body = (home.path / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return Approvals()
    signer = _signer(home)
    records: list[Approval] = []
    hashes: list[str] = []
    for number, line in enumerate(body.removesuffix(b"\n").split(b"\n"), 1):
        found = _checked(line, number, hashes[-1] if hashes else FIRST, signer)
        if isinstance(found, str):
            return Approvals(tuple(records), tuple(hashes), f"record {number} {found}")
        records.append(found)
        hashes.append(hashlib.sha256(line).hexdigest())
    return Approvals(tuple(records), tuple(hashes))


def _checked(line: bytes, number: int, previous: str, signer: bytes | None) -> Approval | str:
    """The record of a line, or what is wrong with it. Where the home has no signing key, the record names its own."""
    try:
        parts = msgspec.json.decode(line, type=_Line)
        body = bytes(parts.record)
        record = msgspec.json.decode(body, type=Approval)
        signature = canonical_base64(parts.signature.encode("ascii"))
        own = bytes.fromhex(record.signer)
    except (msgspec.DecodeError, ValueError):
        return "cannot be read"
    if record.number != number or record.previous != previous:
        return "does not follow the one before it: one was taken out, changed or put in"
    if not signed_by(own if signer is None else signer, body, signature):
        return "is not as this home's key signed it"
    if digest(record.profile, tuple(ruled.criterion() for ruled in record.criteria), record.calendar) != (
        record.rules_sha256
    ):
        return "names other thresholds than it holds"
    return record


def approve(home: Home, thresholds: Thresholds, wish: Wish, now: float) -> Approval:
    """Adds a record and makes it durable. Raises InvalidRequest for a wish that is none, for records that were tampered
    with, and where nothing changed since the last approval; NotFound for a profile that there is not."""
    rules = thresholds.rules(wish.profile)
    _check(wish)
    with _locked(home):
        before = read(home)
        if before.problem:
            raise InvalidRequest(
                f"{home.path / FILE_NAME} cannot be trusted ({before.problem}): restore it from a backup, or move it "
                "away and approve anew"
            )
        last = before.last(wish.profile)
        if last is not None and last[0].rules_sha256 == rules.sha256 and last[0].run_id == wish.run_id:
            raise InvalidRequest(
                f"these thresholds of {wish.profile} are approved already, on this run (number {last[0].number})",
                code="already_approved",
            )
        key = load_key(home.secrets / SIGNING_FILE)
        record = Approval(
            number=len(before.records) + 1,
            previous=before.hashes[-1] if before.hashes else FIRST,
            at=now,
            profile=wish.profile,
            rules_sha256=rules.sha256,
            file_sha256=_file_sha256(thresholds),
            calendar=thresholds.calendar,
            criteria=tuple(Ruled.of(criterion) for criterion in rules.criteria),
            measured_by=wish.measured_by.strip(),
            approved_by=wish.approved_by.strip(),
            alone=wish.alone.strip(),
            why=wish.why.strip(),
            run_id=wish.run_id,
            manifest_sha256=wish.manifest_sha256,
            signer=public_key(key).hex(),
        )
        body = msgspec.json.encode(record)
        signature = base64.b64encode(sign(key, body)).decode()
        path = home.path / FILE_NAME
        old = path.read_bytes() if path.exists() else b""
        write_atomically(Files(), path, old + msgspec.json.encode(_Line(msgspec.Raw(body), signature)) + b"\n")
    return record


def _check(wish: Wish) -> None:
    for name in ("measured_by", "approved_by", "why", "run_id", "manifest_sha256"):
        text = getattr(wish, name).strip()
        if not text or len(text) > 2000 or not text.isprintable():
            raise InvalidRequest(f"{name}: some words on one line are needed", param=name)
    if _name(wish.measured_by) == _name(wish.approved_by) and not wish.alone.strip():
        raise InvalidRequest(
            "who measured cannot approve: let somebody else do it, or say why you are alone with --alone REASON",
            param="approved_by",
        )


def scorecard(home: Home, figures: Figures, profile: str, run_id: str = "") -> Scorecard:
    """Judges figures by the home's thresholds, with what is known of their approval. Raises ThresholdsError, NotFound,
    OSError."""
    thresholds = load(home)
    state, approved = state_of(read(home), thresholds, profile)
    return score(figures, thresholds.rules(profile), state, approved, run_id)


def state_of(
    approvals: Approvals, thresholds: Thresholds, profile: str
) -> tuple[ApprovalState, tuple[Criterion, ...] | None]:
    """Whether the thresholds are the approved ones, and the criteria that were approved last. Raises NotFound."""
    rules = thresholds.rules(profile)
    last = approvals.last(profile)
    if approvals.problem:
        return ApprovalState(status="broken", problem=approvals.problem), None
    if last is None:
        return ApprovalState(), None
    record, record_hash = last
    changes = _changes(record, rules, thresholds.calendar)
    state = ApprovalState(
        status="changed" if changes else "approved",
        number=record.number,
        approved_by=record.approved_by,
        measured_by=record.measured_by,
        alone=record.alone,
        approved_at=record.at,
        why=record.why,
        run_id=record.run_id,
        hash=record_hash,
        changes=changes,
        changed_at=thresholds.written_at if changes else None,
    )
    return state, tuple(ruled.criterion() for ruled in record.criteria)


def _changes(record: Approval, rules: Rules, calendar: Calendar) -> tuple[Change, ...]:
    before = {ruled.id: ruled for ruled in record.criteria}
    after = {criterion.id: Ruled.of(criterion) for criterion in rules.criteria}
    changes: list[Change] = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            told = old or new
            said = "" if told is None else _said(told.operator, told.value)
            changes.append(Change(name, "criterion", said if old else None, said if new else None))
            continue
        if (old.operator, old.value) != (new.operator, new.value):
            changes.append(Change(name, "value", _said(old.operator, old.value), _said(new.operator, new.value)))
        for field in ("figures", "patterns", "minimal_n"):
            if getattr(old, field) != getattr(new, field):
                changes.append(Change(name, field, _text(getattr(old, field)), _text(getattr(new, field))))
    for name in Calendar.__struct_fields__:
        was, value = getattr(record.calendar, name), getattr(calendar, name)
        if was != value:
            changes.append(Change("calendar", name, _text(was), _text(value)))
    return tuple(changes)


def _said(operator: str, value: object) -> str:
    return f"{operator} {_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "—"
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def _locked(home: Home) -> Iterator[None]:
    home.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(home.run / "approvals.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_S
        while not try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StoreUnavailable("somebody else is approving thresholds of this home just now: try again")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _signer(home: Home) -> bytes | None:
    path = home.secrets / SIGNING_FILE
    return public_key(load_key(path)) if path.exists() else None


def _name(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _file_sha256(thresholds: Thresholds) -> str:
    try:
        return hashlib.sha256(Path(thresholds.source).read_bytes()).hexdigest()
    except OSError:
        return ""  # the built-in ones
