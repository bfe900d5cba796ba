"""The folder `rubric/` of a run: tasks.json, answers.json and a sheet per rater, `ratings-<rater>.json`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.core.errors import InvalidRequest, NotFound, StoreUnavailable
from sekisho.evaluate.rubric.answers import Answers
from sekisho.evaluate.rubric.sheets import Sheet, rater_name
from sekisho.evaluate.rubric.tasks import TaskSet
from sekisho.ops.home import write_atomically
from sekisho.ops.instance_lock import AlreadyRunning, InstanceLock

NAME: Final = "rubric"
_SHEET = "ratings-"
T = TypeVar("T")


class RubricFolder:
    """Every file is whole or as it was before, also after kill -9. Files are open to whom their folder is open to
    read, so that two raters can share one."""

    def __init__(self, run: Path) -> None:
        self.path = run / NAME

    def tasks(self) -> TaskSet:
        """Raises NotFound, or InvalidRequest for a damaged file."""
        return self._read("tasks.json", TaskSet)

    def answers(self) -> Answers:
        """Checked against the tasks and their own sums. Raises NotFound, or InvalidRequest for changed ones."""
        found = self._read("answers.json", Answers)
        found.check(self.tasks())
        return found

    def begun(self) -> tuple[TaskSet, Answers] | None:
        """Tasks and answers of a collection that may have been broken off; None where there is none."""
        if not (self.path / "answers.json").exists():
            return None
        return self.tasks(), self._read("answers.json", Answers)

    def keep_tasks(self, tasks: TaskSet) -> None:
        self._write("tasks.json", tasks)

    def keep_answers(self, answers: Answers) -> None:
        self._write("answers.json", answers)

    def raters(self) -> tuple[str, ...]:
        """Whoever has a sheet here, sorted."""
        return tuple(sorted(file.stem.removeprefix(_SHEET) for file in self.path.glob(f"{_SHEET}*.json")))

    def sheet(self, rater: str) -> Sheet | None:
        """None where this rater has none. Raises InvalidRequest for one that is damaged or renamed."""
        name = f"{_SHEET}{rater}.json"
        if not (self.path / name).exists():
            return None
        sheet = self._read(name, Sheet)
        if rater_name(sheet.rater) != rater_name(rater):
            raise InvalidRequest(f"{self.path / name} is the sheet of {sheet.rater}: give it its name back.")
        return sheet

    def keep(self, sheet: Sheet) -> None:
        self._write(f"{_SHEET}{sheet.rater}.json", sheet)

    @contextmanager
    def at_work(self, rater: str) -> Iterator[None]:
        """One window for each rater. Raises InvalidRequest where another one is open."""
        lock = InstanceLock(self.path / f".{_SHEET}{rater}.lock")
        try:
            lock.acquire()
        except AlreadyRunning as error:
            where = "another process" if error.pid is None else f"process {error.pid}"
            raise InvalidRequest(f"{rater} rates already ({where}): go on there, or end it first.") from error
        except OSError as error:
            raise self._trouble(lock.path, error) from error
        try:
            yield
        finally:
            lock.release()

    def _read(self, name: str, kind: type[T]) -> T:
        path = self.path / name
        try:
            return decoded(path.read_bytes(), kind)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{path} is not there: collect answers first with sekisho rubric collect.") from error
        except Undecodable as error:
            raise InvalidRequest(f"{path} is damaged ({error}): put it back from a backup.") from error
        except OSError as error:
            raise self._trouble(path, error) from error

    def _write(self, name: str, value: msgspec.Struct) -> None:
        path = self.path / name
        body = msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, body, 0o600 | (self.path.stat().st_mode & 0o044))
        except OSError as error:
            raise self._trouble(path, error) from error

    def _trouble(self, path: Path, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(f"{path}: {error.strerror or error}; nothing was lost, mend that and try again.")
