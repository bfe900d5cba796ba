"""The home: its settings, and who can read and write what lies in it."""

import os
import shlex
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sekisho.ops.doctor.finding import Case, Finding, Patient
from sekisho.ops.home import Home

MOST_NAMED = 3
MOST_FILES = 20_000

SETTINGS_WRONG = Case(
    "settings.wrong",
    "error",
    ("the settings are wrong", "設定に誤りがあります"),
    ("{why}", "{why}"),
    ("mend {file}, then: sekisho config check", "{file} を直してから: sekisho config check"),
)
SETTINGS_GOOD = Case("settings.good", "ok", ("settings: {file}", "設定: {file}"))
SETTINGS_DEFAULT = Case("settings.default", "ok", ("settings: defaults, no file", "設定: ファイルなし（既定値）"))
HOME_GOOD = Case("home.good", "ok", ("home: {path}", "ホーム: {path}"))
HOME_MISSING = Case(
    "home.missing",
    "info",
    ("{path} is not there yet", "{path} はまだありません"),
    ("it is made at the first start", "最初の起動時に作られます"),
)
HOME_NO_FOLDER = Case(
    "home.no_folder",
    "error",
    ("{path} is not a folder", "{path} はフォルダーではありません"),
    fix=("move it away, or choose another --home", "別の場所へ移すか、別の --home を指定してください"),
)
HOME_NOT_WRITABLE = Case(
    "home.not_writable",
    "error",
    ("{folder} cannot be written", "{folder} に書き込めません"),
    fix=("chown -R $USER {path}", "chown -R $USER {path}"),
)
HOME_OPEN = Case(
    "home.open",
    "warning",
    ("{folder} is open to others", "{folder} は他のユーザーからも開けます"),
    (
        "other users of this machine can read keys' hashes and logs",
        "同じマシンの他の利用者がキーのハッシュやログを読めます",
    ),
    ("chmod 700 {folder}", "chmod 700 {folder}"),
)
SECRET_OPEN = Case(
    "files.secret_open",
    "error",
    ("others can read or change: {files}", "他のユーザーが読み書きできます: {files}"),
    (
        "with these, stored conversations and the book can be read, or forged",
        "これがあれば、保存された会話や監査記録を読んだり偽造したりできます",
    ),
    ("chmod go-rwx {all}", "chmod go-rwx {all}"),
)
FILE_OPEN = Case(
    "files.open",
    "warning",
    ("others can read or change: {files}", "他のユーザーが読み書きできます: {files}"),
    (
        "whoever changes the settings or the database decides what the server does",
        "設定やデータベースを書き換えられると、サーバーの動作を変えられます",
    ),
    ("chmod go-rwx {all}", "chmod go-rwx {all}"),
)
FILE_FOREIGN = Case(
    "files.foreign",
    "error",
    ("this user cannot use: {files}", "このユーザーでは使えません: {files}"),
    (
        "the owner is {owner}; a command was probably run as that user",
        "所有者は {owner} です。そのユーザーで実行されたようです",
    ),
    ("sudo chown -R $USER {home}", "sudo chown -R $USER {home}"),
)
FILES_GOOD = Case("files.good", "ok", ("files: readable by their owner alone", "ファイル: 所有者だけが読めます"))


def check_settings(patient: Patient) -> list[Finding]:
    file = patient.home.settings_file
    if patient.settings_problems:
        return [SETTINGS_WRONG.found(why=problem, file=file) for problem in patient.settings_problems]
    return [SETTINGS_GOOD.found(file=file) if file.exists() else SETTINGS_DEFAULT.found()]


def check_home(patient: Patient) -> list[Finding]:
    home = patient.home
    path = home.path
    if not path.exists():
        return [HOME_MISSING.found(path=path)]
    if not path.is_dir():
        return [HOME_NO_FOLDER.found(path=path)]
    findings = [
        HOME_NOT_WRITABLE.found(folder=folder, path=shlex.quote(str(path)))
        for folder in home.folders()
        if folder.is_dir() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    ]
    findings += [HOME_OPEN.found(folder=shlex.quote(str(folder))) for folder in home.open_to_others()]
    return findings or [HOME_GOOD.found(path=path)]


def check_files(patient: Patient) -> list[Finding]:
    """Files that others can get at, or that we cannot. A file with loose rights in a folder that is closed is no
    trouble."""
    home = patient.home
    if os.name != "posix" or not home.path.is_dir():
        return []
    secret: list[Path] = []
    plain: list[Path] = []
    foreign: list[Path] = []
    for path in islice(_files(home), MOST_FILES):
        try:
            mode = path.stat().st_mode
        except OSError:
            continue  # it went meanwhile
        if not os.access(path, os.R_OK | os.W_OK):
            foreign.append(path)
        elif _reachable(path, home.path, mode):
            (secret if path.parent == home.secrets else plain).append(path)
    findings = [case.found(**_named(paths)) for case, paths in ((SECRET_OPEN, secret), (FILE_OPEN, plain)) if paths]
    if foreign:
        names = _named(foreign)["files"]
        findings.append(FILE_FOREIGN.found(files=names, owner=_owner(foreign[0]), home=shlex.quote(str(home.path))))
    return findings or [FILES_GOOD.found()]


def _files(home: Home) -> Iterator[Path]:
    """What must be its owner's alone: settings, database and its journal, keys, the book, the guard's files."""
    yield from (path for path in home.path.glob("sekisho.*") if path.is_file())
    for folder in (home.secrets, home.audit, home.guard, home.spool, home.run):
        try:
            yield from (path for path in sorted(folder.rglob("*")) if path.is_file())
        except OSError:
            continue  # `check_home` tells of folders that cannot be read


def _reachable(path: Path, home: Path, mode: int) -> bool:
    """Whether the group or others can get to the file and do something with it."""
    folders = [folder for folder in path.parents if folder == home or home in folder.parents]
    for shift in (3, 0):  # the group, then others
        rights = mode >> shift & 0o7
        ways = (stat.S_IMODE(folder.stat().st_mode) >> shift & 0o1 for folder in folders)
        if rights & 0o6 and all(ways):
            return True
    return False


def _named(paths: list[Path]) -> dict[str, str]:
    more = f" … (+{len(paths) - MOST_NAMED})" if len(paths) > MOST_NAMED else ""
    return {
        "files": ", ".join(str(path) for path in paths[:MOST_NAMED]) + more,
        "all": " ".join(shlex.quote(str(path)) for path in paths[:20]),
    }


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return "?"
