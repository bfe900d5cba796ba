"""Entering a run: is it the same plan, is it its folder, does nobody else work on it."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sekisho.core import ids
from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.durable import run_owner
from sekisho.evaluate.durable.journal_errors import FolderUnusable, RunBusy, RunChanged, WrongFolder
from sekisho.evaluate.durable.run_folder import Identity, RunFolder
from sekisho.store import RunOwner, RunRecord

if TYPE_CHECKING:
    from sekisho.store import Store  # it brings SQLAlchemy

log = logging.getLogger("sekisho.evaluate")

_LONGEST_ID = 64
_DIFFERENCES_TOLD = 5
_LONGEST_VALUE = 60
_ABSENT = object()


def canonical(value: object) -> bytes:
    """JSON with sorted keys: equal values give equal bytes."""
    return msgspec.json.encode(value, order="sorted")


async def enter(
    store: "Store", folder: RunFolder, run_id: str, kind: str, plan: object, title: str
) -> tuple[RunOwner, RunRecord]:
    """The run, with this process as its owner, and the folder's lock held. Where it raises the lock may be held too,
    and everything else is as before. Raises InvalidRequest and what `Journal.open` names."""
    if not _is_id(run_id):
        raise InvalidRequest(
            f"a run's id has up to {_LONGEST_ID} letters, digits, dots and dashes: {run_id!r}", param="run"
        )
    stored = await store.get_run(run_id)
    if stored is not None and folder.identity() is None and await store.run_steps(run_id):
        raise WrongFolder(
            f"run {run_id} has finished steps, but {folder.path} is not its folder: put the folder back (it was "
            f"{stored.folder}), or start a new run"
        )
    folder.acquire()
    stored = await store.get_run(run_id)  # whoever had the lock before may have begun it
    made = _new_run(store, folder, run_id, kind, plan, title)
    _check_folder(folder, run_id, stored)
    if stored is None:
        stored = await store.create_run(made)
    _check_plan(stored, made)
    if folder.identity() is None:
        folder.write_identity(Identity(run_id, stored.mark))
    _check_folder(folder, run_id, stored)
    return await _claim(store, folder, stored)


def _new_run(store: "Store", folder: RunFolder, run_id: str, kind: str, plan: object, title: str) -> RunRecord:
    text = canonical(plan)
    now = store.now()
    return RunRecord(
        id=run_id,
        kind=kind,
        title=title,
        plan=text.decode(),
        plan_hash=hashlib.sha256(text).hexdigest(),
        folder=str(folder.path),
        mark=ids.new("mark"),
        created_at=now,
        updated_at=now,
    )


async def _claim(store: "Store", folder: RunFolder, run: RunRecord) -> tuple[RunOwner, RunRecord]:
    if run_owner.lives(run.owner, store.now()):
        raise _busy(run.id, run.owner)
    steps = await store.run_steps(run.id)
    ended = await run_owner.end_orphans([child for step in steps for child in step.children], run.mark)
    if ended:
        log.warning("run %s: ended %d processes of its earlier life", run.id, ended)
    owner = run_owner.this_process(store.now())
    instead_of = None if run.owner is None else run.owner.token
    claimed = await store.claim_run(run.id, owner, instead_of, str(folder.path))
    if claimed is None:
        now_there = await store.get_run(run.id)
        raise _busy(run.id, None if now_there is None else now_there.owner)
    for name in folder.sweep():
        log.warning("run %s: removed %s, left by a write that was cut off", run.id, name)
    return owner, claimed


def _busy(run_id: str, owner: RunOwner | None) -> RunBusy:
    who = "another process" if owner is None else f"process {owner.pid} on {owner.host}"
    return RunBusy(
        f"run {run_id} is worked on by {who}: wait for it to end, or end it", retry_after_s=run_owner.LEASE_S
    )


def _check_folder(folder: RunFolder, run_id: str, stored: RunRecord | None) -> None:
    identity = folder.identity()
    if identity is None:
        return
    if identity.run != run_id:
        raise WrongFolder(f"{folder.path} is the folder of run {identity.run}, not of {run_id}: use one of its own")
    if stored is None:
        raise WrongFolder(
            f"this database knows no run {run_id}, whose folder {folder.path} is: use the database that the run was "
            "begun with, or another folder"
        )
    if identity.mark != stored.mark:
        raise WrongFolder(
            f"{folder.path} is the folder of another run that is called {run_id} too: use the database that it was "
            "begun with, or another folder"
        )
    home = Path(stored.folder)
    if home != folder.path and _is_another(home, folder, identity):
        raise WrongFolder(f"{folder.path} is a copy; run {run_id} has its folder at {home}: resume it there")


def _is_another(home: Path, folder: RunFolder, identity: Identity) -> bool:
    """A folder that was moved, or is reached by another path, is still the run's."""
    try:
        return RunFolder(home).identity() == identity and not home.samefile(folder.path)
    except (OSError, WrongFolder, FolderUnusable):
        return False  # whatever lies there is not the run's folder


def _check_plan(stored: RunRecord, made: RunRecord) -> None:
    if (stored.kind, stored.plan_hash) == (made.kind, made.plan_hash):
        return
    told = list(differences(stored.kind, made.kind, "kind"))
    told += differences(msgspec.json.decode(stored.plan), msgspec.json.decode(made.plan), "")
    more = f"; and {len(told) - _DIFFERENCES_TOLD} more" if len(told) > _DIFFERENCES_TOLD else ""
    raise RunChanged(
        f"run {stored.id} was begun with another plan: {'; '.join(told[:_DIFFERENCES_TOLD])}{more}. "
        "Resume it with the plan it was begun with, or start a new run",
        param="plan",
    )


def differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """What differs between two JSON values, each as `path was X, is Y`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{path}.{name}" if path else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{path}[{place}]")
    elif old is _ABSENT or new is _ABSENT or canonical(old) != canonical(new):
        yield f"{path or 'it'} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "not there"
    text = canonical(value).decode()
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _is_id(run_id: str) -> bool:
    plain = run_id.isascii() and all(character.isalnum() or character in "._-" for character in run_id)
    return plain and 0 < len(run_id) <= _LONGEST_ID and run_id[0].isalnum()
