"""Model files: those the settings name, and what else lies in the folder of models."""

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from sekisho.engines import builtin, gguf_header
from sekisho.engines.config import ModelConfig
from sekisho.ops.doctor.finding import Case, Finding, Patient, Words
from sekisho.ops.hub_listing import SPLIT

DEEPEST = 5
MOST_FILES = 5000
FRESH_S = 3600.0
PARTIAL = (".part", ".partial", ".incomplete", ".tmp", ".download", ".crdownload", ".aria2")

BAD = Case(
    "model_file.bad",
    "error",
    ("{model}: {field} {path}", "{model}: {field} {path}"),
    ("{why}", "{why}"),
    ("{fix}", "{fix}"),
)
GOOD = Case("model_file.good", "ok", ("{model}: {path}", "{model}: {path}"))
LINK = Case(
    "models_folder.dangling",
    "warning",
    ("{path} is a link to nothing", "{path} のリンク先がありません"),
    ("it leads to {target}", "リンク先: {target}"),
    ("put the file there, or: rm {quoted}", "ファイルを置くか、削除してください: rm {quoted}"),
)
EMPTY = Case(
    "models_folder.empty_file",
    "warning",
    ("{path} is empty", "{path} は空のファイルです"),
    ("a download or a copy that failed", "ダウンロードかコピーに失敗しています"),
    (
        "fetch it again: sekisho model pull; or: rm {quoted}",
        "取得し直すか、削除してください: sekisho model pull または rm {quoted}",
    ),
)
UNFINISHED = Case(
    "models_folder.unfinished",
    "warning",
    ("{path} was begun and not finished ({size})", "{path} はダウンロードの途中です（{size}）"),
    ("nothing has come for {hours:.0f} hours", "{hours:.0f} 時間、更新されていません"),
    (
        "go on with it: sekisho model pull; or: rm {quoted}",
        "続きを取得するか、削除してください: sekisho model pull または rm {quoted}",
    ),
)
UNDER_WAY = Case(
    "models_folder.under_way",
    "info",
    ("{path} is being fetched, or was until lately ({size})", "{path} は取得中か、直前まで取得していました（{size}）"),
)
BROKEN = Case(
    "models_folder.broken",
    "warning",
    ("{path} cannot be loaded", "{path} は読み込めません"),
    ("{why}", "{why}"),
    (
        "fetch it again: sekisho model pull; or: rm {quoted}",
        "取得し直すか、削除してください: sekisho model pull または rm {quoted}",
    ),
)

_PULL: Words = ("sekisho model pull, or correct the path", "sekisho model pull で取得するか、パスを直してください")
_AGAIN: Words = ("fetch it again: sekisho model pull", "取得し直してください: sekisho model pull")
_REINSTALL: Words = (
    "install Sekisho again: its built-in model is part of the package",
    "Sekisho を再インストールしてください（内蔵モデルはパッケージに含まれます）",
)


def check_models(patient: Patient) -> list[Finding]:
    local = [model for model in patient.models if model.engine == "llama_cpp"]
    return [finding for model in local for finding in check_model_files(model)]


def check_model_files(model: ModelConfig) -> list[Finding]:
    """The GGUF, its projector and its template: there, not a dangling link, and really what they should be."""
    gguf = str(builtin.path()) if model.path == "builtin" else model.path
    named = [("path", gguf, True), ("mmproj", model.mmproj, True), ("chat_template", model.chat_template, False)]
    findings = []
    for field, value, is_gguf in named:
        if value is None:
            continue
        fault = file_fault(Path(value).expanduser(), is_gguf)
        if fault is not None:
            why, fix = fault
            if field == "path" and model.path == "builtin":
                fix = _REINSTALL
            findings.append(BAD.found(model=model.name, field=field, path=value, why=why, fix=fix))
    return findings or [GOOD.found(model=model.name, path=gguf)]


def file_fault(path: Path, is_gguf: bool) -> tuple[Words, Words] | None:
    """Why a file will not do, and what to do; None where nothing is wrong with it."""
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)
        why = (f"a link to {target}, which is not there", f"リンク先 {target} がありません")
        return why, ("put the file there, or mend the link", "ファイルを置くか、リンクを直してください")
    if not path.exists():
        return ("no such file", "ファイルがありません"), _PULL
    if not path.is_file():
        return ("not a file", "ファイルではありません"), (
            "name the GGUF file itself",
            "GGUF ファイルを指定してください",
        )
    if not os.access(path, os.R_OK):
        command = f"chmod u+r {shlex.quote(str(path))}"
        return ("cannot be read", "読み取れません"), (command, command)
    if is_gguf and (missing := _missing_parts(path)):
        names = ", ".join(missing)
        return (f"other parts of it are missing: {names}", f"分割ファイルの一部がありません: {names}"), _AGAIN
    try:
        fault = gguf_header.problem(path) if is_gguf else None
    except OSError as error:
        words = error.strerror or str(error)
        return (words, words), ("check the disk", "ディスクを確認してください")
    return ((fault, fault), _AGAIN) if fault else None


def _missing_parts(path: Path) -> list[str]:
    """The parts of a split GGUF that do not lie beside its first one."""
    match = SPLIT.match(path.name)
    if match is None:
        return []
    count = int(match["parts"])
    names = [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    return [name for name in names if not (path.parent / name).exists()]


def check_folder(patient: Patient, now: float | None = None) -> list[Finding]:
    """What lies in the folder of models and is of no use: links to nothing, empty, half-fetched and broken files."""
    moment = time.time() if now is None else now
    findings = []
    for path in _entries(patient.home.models):
        found = _judge(path, moment)
        if found is not None:
            findings.append(found)
    return findings


def _judge(path: Path, now: float) -> Finding | None:
    told = {"path": path, "quoted": shlex.quote(str(path))}
    if path.is_symlink() and not path.exists():
        return LINK.found(target=os.readlink(path), **told)
    status = path.stat()
    if path.name.endswith(PARTIAL):
        size, age_s = f"{status.st_size / 2**20:.0f} MiB", now - status.st_mtime
        if age_s < FRESH_S:
            return UNDER_WAY.found(path=path, size=size)
        return UNFINISHED.found(size=size, hours=age_s / 3600, **told)
    if status.st_size == 0:
        return EMPTY.found(**told)
    if path.suffix.lower() != ".gguf" or _is_later_part(path):
        return None
    fault = file_fault(path, is_gguf=True)
    return BROKEN.found(why=fault[0], **told) if fault is not None else None


def _is_later_part(path: Path) -> bool:
    """Its first part is there, and tells of all of them."""
    match = SPLIT.match(path.name)
    if match is None or int(match["part"]) == 1:
        return False
    return (path.parent / f"{match['stem']}-00001-of-{match['parts']}.gguf").exists()


def _entries(folder: Path) -> Iterator[Path]:
    """Files and dangling links, not further down than `DEEPEST`; links to folders are not followed."""
    count = 0
    for place, folders, names in os.walk(folder):
        if len(Path(place).relative_to(folder).parts) >= DEEPEST:
            folders.clear()
        for name in names:
            path = Path(place) / name
            if path.is_file() or (path.is_symlink() and not path.exists()):
                yield path
                count += 1
                if count >= MOST_FILES:
                    return
