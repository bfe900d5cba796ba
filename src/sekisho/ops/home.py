"""The home folder: everything that one Sekisho keeps on disk, and the note of who serves from it right now."""

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import platformdirs
import psutil

from sekisho.core.decoding import Undecodable, decoded
from sekisho.ops import process_tree

SAME_START_S = 1.5  # process start times are told in clock ticks, and rounded differently by each reader


class Home(msgspec.Struct, frozen=True):
    """Where things lie. Making the value touches nothing; `create` makes the folders."""

    path: Path

    @staticmethod
    def find(option: str | Path | None = None, environment: Mapping[str, str] | None = None) -> "Home":
        """`--home` first, then SEKISHO_HOME, then the platform's data folder."""
        values = os.environ if environment is None else environment
        chosen = option or values.get("SEKISHO_HOME") or platformdirs.user_data_dir("sekisho", appauthor=False)
        return Home(Path(os.path.abspath(Path(chosen).expanduser())))

    @property
    def settings_file(self) -> Path:
        return self.path / "sekisho.yaml"

    @property
    def database(self) -> Path:
        return self.path / "sekisho.db"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def spool(self) -> Path:
        return self.path / "spool"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def audit(self) -> Path:
        """The book."""
        return self.path / "audit"

    @property
    def guard(self) -> Path:
        """The team's own rules and thresholds, and whether an emergency is on."""
        return self.path / "guard"

    @property
    def native_engines(self) -> Path:
        """Engines built for this very machine."""
        return self.path / "engines" / "native"

    @property
    def state_file(self) -> Path:
        return self.run / "state.json"

    @property
    def children_file(self) -> Path:
        return self.run / "children.json"

    def folders(self) -> tuple[Path, ...]:
        return (
            self.path,
            self.models,
            self.logs,
            self.run,
            self.spool,
            self.runs,
            self.secrets,
            self.audit,
            self.guard,
        )

    def create(self) -> "Home":
        """Makes missing folders, readable by their owner alone. Raises OSError. May be called again."""
        for folder in self.folders():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self

    def open_to_others(self) -> tuple[Path, ...]:
        """Existing folders that other users of the machine can enter or read."""
        if os.name != "posix":
            return ()  # Windows keeps the data folder under the user's profile, guarded by its own rules
        return tuple(f for f in self.folders() if f.is_dir() and stat.S_IMODE(f.stat().st_mode) & 0o077)


class RunState(msgspec.Struct, frozen=True):
    """Written by the supervisor. `started_at` is its process start time (seconds since 1970) and `birth` the same as
    `process_tree.birth` tells it, so that a process number that was given to somebody else later is not taken for it.
    `birth` decides where it is known: `started_at` moves when the wall clock is corrected."""

    pid: int
    started_at: float
    url: str
    version: str
    birth: str | None = None

    @staticmethod
    def of_this_process(url: str, version: str) -> "RunState":
        process = psutil.Process()
        return RunState(process.pid, process.create_time(), url, version, process_tree.birth(process.pid))

    def alive(self) -> bool:
        """True while this very process runs."""
        try:
            process = psutil.Process(self.pid)
            if self.birth is not None:
                same = process_tree.birth(self.pid) == self.birth
            else:  # written by an older version
                same = abs(process.create_time() - self.started_at) <= SAME_START_S
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def read_state(home: Home) -> RunState | None:
    """The note as it stands, alive or not. None when there is none or it is not readable as one."""
    try:
        return decoded(home.state_file.read_bytes(), RunState)
    except FileNotFoundError:
        return None
    except Undecodable:
        return None  # only a torn write of something else than `write_state` makes this; nothing runs by it


def running(home: Home) -> RunState | None:
    """The note of a server that really runs from this home."""
    state = read_state(home)
    return state if state is not None and state.alive() else None


def write_state(home: Home, state: RunState) -> None:
    write_atomically(home.state_file, msgspec.json.format(msgspec.json.encode(state)) + b"\n")


def clear_state(home: Home) -> None:
    """Removes the note; nothing happens when it is gone already."""
    home.state_file.unlink(missing_ok=True)


def write_atomically(path: Path, body: bytes, mode: int = 0o600) -> None:
    """Readers see the old file or the new one, never a part. A link stays a link: its target is replaced."""
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
