"""Is the evidence what was measured? A report is made anew again and again, and must not sign what somebody wrote into
its folder meanwhile.

The journal in the database vouches for the plan and for what steps have left, the last signed manifest for the records
and for what people have added since.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.definitions import Words
from sekisho.evaluate.durable.run_folder import RunFolder
from sekisho.evaluate.evaluation import Plan
from sekisho.evaluate.evidence import ATTESTED
from sekisho.evaluate.report.signing import MANIFEST_FILE, FileRow, Manifest, check_manifest
from sekisho.store import RunRecord, StepRecord

RENEWED = ("records.json", "accounts.json")


def check(
    folder: Path, plan: Plan, run: RunRecord | None, steps: Sequence[StepRecord], public: bytes | None, renewed: bool
) -> tuple[Words, ...]:
    """What a reader must know of changes that are allowed: ratings that were changed after they had been signed.

    `renewed`: the records are read anew now. Raises InvalidRequest for everything that is not as it was measured or
    signed, and for a run that this home's database does not know.
    """
    if run is None:
        raise InvalidRequest(
            f"This home's database does not know the run {folder.name}: its report can be verified, but not made anew "
            "here. Use the home in which it was measured."
        )
    if decoded(run.plan.encode(), Plan) != plan:
        raise InvalidRequest(f"{folder / 'plan.json'} is not the plan with which the run was begun: put it back.")
    for step in steps:
        changed = RunFolder(folder).first_change(step.artifacts) if step.state == "done" else None
        if changed is not None:
            raise InvalidRequest(
                f"{folder / changed[0]} {changed[1]} since it was measured. Put it back, or measure it again: "
                f"sekisho evaluate --resume {folder.name} --redo {step.key.partition('.')[0]}"
            )
    signed = _signed(folder, public)
    _check_records(folder, signed, renewed)
    _check_attested(folder, signed)
    return _ratings(folder, signed)


def _signed(folder: Path, public: bytes | None) -> dict[str, FileRow]:
    """What the last manifest lists; nothing where there is none that this home has signed."""
    found = check_manifest(folder, public)
    if public is None or found.signer != public.hex():
        return {}
    try:
        listed = decoded((folder / MANIFEST_FILE).read_bytes(), Manifest)
    except (OSError, Undecodable):
        return {}
    return {row.path: row for row in listed.files}


def _check_records(folder: Path, signed: dict[str, FileRow], renewed: bool) -> None:
    for name in RENEWED:
        path = folder / name
        if renewed or not path.exists():
            continue
        if name not in signed or signed[name].sha256 != hashlib.sha256(path.read_bytes()).hexdigest():
            raise InvalidRequest(
                f"{path} is not what was signed. Have the server's records read anew: "
                f"sekisho evaluate report {folder.name} --since 14d"
            )


def _check_attested(folder: Path, signed: dict[str, FileRow]) -> None:
    """What people told may be added to, and nothing of it taken back."""
    row = signed.get(ATTESTED)
    if row is None:
        return
    try:
        body = (folder / ATTESTED).read_bytes()[: row.bytes]
    except FileNotFoundError:
        body = b""
    if hashlib.sha256(body).hexdigest() != row.sha256:
        raise InvalidRequest(f"{folder / ATTESTED} was changed, not added to: put back what was signed.")


def _ratings(folder: Path, signed: dict[str, FileRow]) -> tuple[Words, ...]:
    told: list[Words] = []
    for name, row in signed.items():
        if name.startswith("rubric/ratings-"):
            path = folder / name
            now = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""
            if now != row.sha256:
                rater = path.stem.removeprefix("ratings-")
                told.append(
                    (
                        f"The ratings of {rater} are not those of the report before this one.",
                        f"{rater} の採点は、直前のレポートの時点から変わっています。",
                    )
                )
    return tuple(told)
