"""Signatures (Ed25519, the home's signing key) of the report's file and of the run's folder.

    report.html     <!doctype html> … </html>⏎<!-- sekisho-report-signature 1 SIGNER SIGNATURE -->⏎
                    └───────── signed ──────┘
    manifest.json   every file but itself with its SHA-256, and data_sha256: of all that the report rests on.
                    What begins with a dot at the folder's top is the journal's own and in neither
    report.html     shows the same data_sha256 in its head, so that file and folder belong together

The last line is the only part of the file that the signature does not cover, so it has one form alone: lower-case hex,
one space, one newline, and nothing after it.
"""

import hashlib
import os
import re
import stat
from pathlib import Path

import msgspec

from sekisho.audit.keys import public_key as public_key
from sekisho.audit.keys import sign, signed_by
from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.definitions import Words
from sekisho.evaluate.report.text import visible
from sekisho.ops.home import write_atomically

MANIFEST_FILE = "manifest.json"
REPORT_PREFIX = "report."
"""The folder's own `report.html`, `report.pdf`, … are made from the data, so `data_sha256` is without them."""
MARKER = b"sekisho-report-signature"
_OPENING = b"<!-- " + MARKER + b" "  # text on a page is escaped: only a comment begins so

_SEAL = re.compile(rb"<!-- sekisho-report-signature 1 ([0-9a-f]{64}) ([0-9a-f]{128}) -->\n\Z")
_DIGEST = re.compile(rb'<meta name="sekisho-data-sha256" content="([0-9a-f]{64})">')
_SEAL_BYTES = len(b"<!--  1   -->\n") + len(MARKER) + 64 + 128
_CHUNK_BYTES = 1 << 20


class Checked(msgspec.Struct, frozen=True):
    """`signer` is the public key in hex that the file names, None where it names none. `why` says what is wrong, or
    what the good answer rests on."""

    ok: bool
    signer: str | None
    why: Words


# --- the report -----------------------------------------------------------------------------------------------------


def seal(html: str, signing: bytes) -> str:
    """The page with its signature as its last line. Raises ValueError for a page that is sealed already or does not end
    as a page does: such a file could not be told from one that was tampered with."""
    body = html.encode("utf-8")
    if _OPENING in body or not body.endswith(b"</html>\n") or b"\r" in body:
        raise ValueError(
            "a page to be sealed ends with </html> and a newline, and holds no seal and no carriage return"
        )
    public = public_key(signing)
    signature = sign(signing, _report_body(public, body))
    return f"{html}<!-- {MARKER.decode()} 1 {public.hex()} {signature.hex()} -->\n"


def check(html: bytes, public: bytes | None = None) -> Checked:
    """Whether the file is, byte for byte, what its signer sealed; with `public`, whether that is the expected signer.

    Without `public` a good answer only says that nobody changed the file after it was signed by the key it names.
    """
    marks = html.count(_OPENING)
    found = _SEAL.search(html, max(0, len(html) - _SEAL_BYTES))
    if marks == 0:
        return Checked(False, None, ("the file carries no signature", "署名がありません"))
    if marks > 1:
        return Checked(False, None, ("the file carries more than one signature", "署名が複数あります"))
    if found is None:
        return Checked(False, None, _misplaced(html))
    body = html[: found.start()]
    key = bytes.fromhex(found[1].decode())
    signer = key.hex()
    if not body.endswith(b"</html>\n") or not signed_by(key, _report_body(key, body), bytes.fromhex(found[2].decode())):
        return Checked(
            False, signer, ("the file was changed after it was signed", "署名後にファイルが変更されています")
        )
    return Checked(*_by_whom(key, public))


def shown_digest(html: bytes) -> str | None:
    """The `data_sha256` that a report shows in its head; None where there is none or more than one."""
    found = _DIGEST.findall(html)
    return found[0].decode() if len(found) == 1 else None


def _report_body(public: bytes, body: bytes) -> bytes:
    return b"sekisho report 1\n" + public.hex().encode() + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _misplaced(html: bytes) -> Words:
    if b"\r\n" in html and check(html.replace(b"\r\n", b"\n")).ok:
        return (
            "the line ends were changed (CRLF) on the way: ask for the file as it was",
            "途中で改行コードが変わっています（CRLF）。元のファイルを入手してください",
        )
    return (
        "the signature is damaged, or something was added after it",
        "署名が壊れているか、署名の後に何かが追加されています",
    )


def _by_whom(key: bytes, public: bytes | None) -> tuple[bool, str, Words]:
    if public is None:
        return (
            True,
            key.hex(),
            (
                "unchanged since it was signed; compare the signer with the key that your team knows",
                "署名後の変更はありません。署名者の鍵を、チームが知っている鍵と照合してください",
            ),
        )
    if key != public:
        return False, key.hex(), ("signed with another key than the expected one", "想定と異なる鍵で署名されています")
    return (
        True,
        key.hex(),
        ("unchanged since it was signed with the expected key", "想定どおりの鍵で署名され、その後の変更はありません"),
    )


# --- the folder -----------------------------------------------------------------------------------------------------


class FileRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`manifest.json`: `files` sorted by path (with `/`), `signature` over everything before it."""

    manifest: int = 1
    run: str
    files: tuple[FileRow, ...]
    data_sha256: str
    signer: str
    signature: str = ""


class FolderChecked(msgspec.Struct, frozen=True, kw_only=True):
    """`changed`, `missing`, `added`: paths, each to be told. `report` is None where the folder has no report.html."""

    ok: bool
    signer: str | None
    why: Words
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    report: Checked | None = None


def manifest(folder: Path, run: str, signing: bytes) -> Manifest:
    """Signed. Raises InvalidRequest where the folder holds anything but files and folders, or a name that no line can
    hold; OSError where a file cannot be read."""
    rows, odd = _rows(folder)
    if odd:
        raise InvalidRequest(f"not a plain file with a plain name: {odd[0]}; take it out of the run's folder")
    public = public_key(signing)
    unsigned = Manifest(run=run, files=rows, data_sha256=_digest(rows), signer=public.hex())
    signature = sign(signing, _manifest_body(unsigned))
    return msgspec.structs.replace(unsigned, signature=signature.hex())


def write_manifest(folder: Path, run: str, signing: bytes) -> Manifest:
    """`manifest.json`, whole or not at all. Raises what `manifest` raises."""
    made = manifest(folder, run, signing)
    write_atomically(folder / MANIFEST_FILE, _manifest_text(made))
    return made


def data_digest(folder: Path) -> str:
    """The SHA-256 of `sha256sum`'s lines for all files that a report rests on, sorted by path: everything but
    manifest and report. Raises as `manifest` does."""
    rows, odd = _rows(folder)
    if odd:
        raise InvalidRequest(f"not a plain file with a plain name: {odd[0]}; take it out of the run's folder")
    return _digest(rows)


def check_manifest(folder: Path, public: bytes | None = None) -> FolderChecked:
    """Every file against the signed manifest, and the report in the folder against both. Never opens a path that the
    manifest names but the folder does not hold. Raises OSError where a file cannot be read."""
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        told = (f"there is no {MANIFEST_FILE}", f"{MANIFEST_FILE} がありません")
        return FolderChecked(ok=False, signer=None, why=told)
    try:
        listed = msgspec.json.decode(raw, type=Manifest)
        key, signature = _hex(listed.signer, 32), _hex(listed.signature, 64)
    except (msgspec.DecodeError, ValueError):
        return FolderChecked(ok=False, signer=None, why=_DAMAGED)
    unsigned = msgspec.structs.replace(listed, signature="")
    if raw != _manifest_text(listed) or not signed_by(key, _manifest_body(unsigned), signature):
        return FolderChecked(ok=False, signer=listed.signer, why=_DAMAGED)
    rows, odd = _rows(folder)
    then, now = ({row.path: row for row in side} for side in (listed.files, rows))
    changed = tuple(path for path in then if path in now and then[path] != now[path])
    missing = tuple(path for path in then if path not in now)
    added = (*(path for path in now if path not in then), *odd)
    ok, signer, why = _by_whom(key, public)
    report = _check_report(folder, public, listed) if "report.html" in now else None
    if report is not None and not report.ok:
        ok, why = False, ("the report: " + report.why[0], "レポート: " + report.why[1])
    if changed or missing or added:
        ok, why = False, _differs(changed, missing, added)
    return FolderChecked(ok=ok, signer=signer, why=why, changed=changed, missing=missing, added=added, report=report)


_DAMAGED = (
    f"{MANIFEST_FILE} was changed after it was signed, or is none",
    f"{MANIFEST_FILE} が署名後に変更されているか、正しい形式ではありません",
)


def _check_report(folder: Path, public: bytes | None, listed: Manifest) -> Checked:
    html = (folder / "report.html").read_bytes()
    checked = check(html, public)
    if not checked.ok:
        return checked
    if checked.signer != listed.signer:
        told = ("report and manifest are signed with different keys", "レポートと manifest.json の署名鍵が異なります")
        return Checked(False, checked.signer, told)
    if shown_digest(html) != listed.data_sha256:
        told = ("it was made from other data than this folder's", "このフォルダーとは別のデータから作られています")
        return Checked(False, checked.signer, told)
    return checked


def _differs(changed: tuple[str, ...], missing: tuple[str, ...], added: tuple[str, ...]) -> Words:
    parts = [(changed, "changed", "変更"), (missing, "missing", "欠落"), (added, "added", "追加")]
    return (
        "; ".join(f"{en}: {', '.join(paths)}" for paths, en, _ in parts if paths),
        "、".join(f"{ja}: {', '.join(paths)}" for paths, _, ja in parts if paths),
    )


def _rows(folder: Path) -> tuple[tuple[FileRow, ...], tuple[str, ...]]:
    """All files below but the manifest and the journal's own, and what is no file. Links are not followed: what they
    lead to may change."""
    rows: list[FileRow] = []
    odd: list[str] = []
    for parent, folders, names in os.walk(folder):
        for name in (*names, *(each for each in folders if (Path(parent) / each).is_symlink())):
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if relative == MANIFEST_FILE or relative.startswith("."):
                continue
            if not stat.S_ISREG(path.lstat().st_mode) or not _is_plain(relative):
                odd.append(visible(relative).replace("\n", "⟨U+000A⟩").replace("\t", "⟨U+0009⟩"))
            else:
                rows.append(_row(path, relative))
    return tuple(sorted(rows, key=lambda row: row.path.encode())), tuple(sorted(odd))


def _is_plain(relative: str) -> bool:
    """Names as one writes them in a line: no line breaks, no backslashes, no bytes that are not UTF-8."""
    return relative.isprintable() and "\\" not in relative


def _row(path: Path, relative: str) -> FileRow:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return FileRow(relative, size, digest.hexdigest())


def _digest(rows: tuple[FileRow, ...]) -> str:
    lines = "".join(f"{row.sha256}  {row.path}\n" for row in rows if not row.path.startswith(REPORT_PREFIX))
    return hashlib.sha256(lines.encode()).hexdigest()


def _manifest_text(made: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(made)) + b"\n"


def _manifest_body(unsigned: Manifest) -> bytes:
    return b"sekisho manifest 1\n" + msgspec.json.encode(unsigned)


def _hex(text: str, length: int) -> bytes:
    """Raises ValueError unless `text` is the one way to write its bytes."""
    raw = bytes.fromhex(text)
    if raw.hex() != text or len(raw) != length:
        raise ValueError("not canonical hex")
    return raw
