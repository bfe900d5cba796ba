"""The incident bundle: what somebody who looks into an incident needs, as a tar.gz, and no key among it.

manifest.json   when, which span, which parts are missing and why
book.jsonl      the records of the span, signed; verify.json: the verifier's report; anchors/: the anchors
logs/…          through the redactor once more
settings.json, status.json, doctor.json, tickets.json, emergency.json, versions.json
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sekisho.cli.book import reader_keys
from sekisho.cli.failure import operational
from sekisho.cli.output import plain

if TYPE_CHECKING:
    from sekisho.audit import Query, ReaderKeys
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

LONGEST_PAGE = 500


class Incident:
    """What lies in `names` and what is `missing` (and why) is known once `packed` has ended."""

    def __init__(self, place: "Home", recovery: Path | None, begin: float, end: float) -> None:
        self._place = place
        self._recovery = recovery
        self._begin, self._end = begin, end
        self.names: list[str] = []
        self.missing: dict[str, str] = {}

    def packed(self) -> Iterator[bytes]:
        """The bytes of the tar.gz, made while they are asked for: nothing of it lies in a file of its own."""
        settings = self._part("settings.json", self._settings)
        sink = _Sink()
        with tarfile.open(mode="w|gz", fileobj=sink) as tar:
            if settings is not None:
                self._add(tar, "settings.json", _json(masked_settings(settings)))
                if self._book(tar, settings):
                    yield sink.taken()
                self._anchors(tar, settings)
                self._values(tar, "verify.json", lambda: self._report(settings))
                self._values(tar, "tickets.json", lambda: _tickets(self._place, settings))
                self._values(tar, "doctor.json", lambda: _findings(self._place, settings))
            self._values(tar, "status.json", lambda: _status(self._place))
            self._values(tar, "emergency.json", lambda: _emergency(self._place))
            self._values(tar, "versions.json", versions)
            for path in sorted(self._place.logs.glob("*")):
                if path.is_file() and path.stat().st_mtime >= self._begin:
                    self._part(f"logs/{path.name}", lambda path=path: self._log(tar, path))  # type: ignore[misc]
                    yield sink.taken()
            self._add(tar, "manifest.json", _json(self._manifest()))
        yield sink.taken()

    def _part(self, name: str, work: Callable[[], Any]) -> Any:
        """What the work gives; None where it fails as operations may, and then the bundle says so."""
        try:
            return work()
        except Exception as error:
            failure = operational(error)
            if failure is None:
                raise
            self.missing[name] = failure.message
            return None

    def _values(self, tar: tarfile.TarFile, name: str, work: Callable[[], Any]) -> None:
        found = self._part(name, work)
        if name not in self.missing:
            self._add(tar, name, _json(found))

    def _add(self, tar: tarfile.TarFile, name: str, body: bytes) -> None:
        self._stream(tar, name, len(body), io.BytesIO(body))

    def _stream(self, tar: tarfile.TarFile, name: str, size: int, body: IO[bytes]) -> None:
        entry = tarfile.TarInfo(f"incident/{name}")
        entry.size, entry.mtime, entry.mode = size, int(self._end), 0o600
        tar.addfile(entry, body)
        self.names.append(name)

    def _settings(self) -> "Settings":
        from sekisho import settings

        return settings.load(self._place)

    def _keys(self) -> "ReaderKeys":
        return reader_keys(self._place, self._recovery)

    def _book(self, tar: tarfile.TarFile, settings: "Settings") -> bool:
        """In two passes, the first of which only measures: the records of a bad day need not fit into memory."""

        def size() -> int:
            return sum(map(len, self._records()))

        measured = self._part("book.jsonl", size)
        if measured is None:
            return False
        self._stream(tar, "book.jsonl", measured, _Lines(self._records()))  # type: ignore[arg-type]
        return True

    def _records(self) -> Iterator[bytes]:
        from sekisho.audit import Reader
        from sekisho.audit.export import export_lines, signing_key
        from sekisho.audit.writer import timestamp

        keys = self._keys()
        entries = Reader(self._place.audit, keys).search(self._span())
        return export_lines(entries, keys.book, timestamp(self._end), signing_key(self._place.secrets))

    def _span(self) -> "Query":
        from sekisho.audit import Query
        from sekisho.audit.writer import timestamp

        return Query(since=timestamp(self._begin), until=timestamp(self._end))

    def _report(self, settings: "Settings") -> Any:
        from sekisho.audit import anchor_folder, verify

        report = verify(self._place.audit, self._keys(), [anchor_folder(self._place.audit, settings.audit.anchor)])
        return {**plain(report), "first": plain(report.first)}

    def _anchors(self, tar: tarfile.TarFile, settings: "Settings") -> None:
        from sekisho.audit import anchor_folder

        folder = anchor_folder(self._place.audit, settings.audit.anchor)
        for path in sorted(folder.glob("*.anchors.jsonl")):
            body = self._part(f"anchors/{path.name}", path.read_bytes)
            if body is not None:
                self._add(tar, f"anchors/{path.name}", body)

    def _log(self, tar: tarfile.TarFile, path: Path) -> None:
        """Logs are written without personal data and secrets; old ones may be from a version that let one through."""
        import gzip

        from sekisho.guard.personal import LineRedactor

        redactor = LineRedactor()
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            body = b"".join(map(redactor.redact, file))
        self._add(tar, f"logs/{path.name.removesuffix('.gz')}", body)

    def _manifest(self) -> dict[str, Any]:
        from sekisho.audit.writer import timestamp

        return {
            "made": timestamp(self._end),
            "since": timestamp(self._begin),
            "until": timestamp(self._end),
            "parts": self.names,
            "missing": self.missing,
        }


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Lines:
    """Lines as a file to read from."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (line := next(self._lines, None)) is not None:
            self._rest += line
        part, self._rest = self._rest[:size], self._rest[size:]
        return part


def _json(value: Any) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(plain(value)), indent=2) + b"\n"


def masked_settings(settings: "Settings") -> Any:
    """Settings hold names of secrets, not secrets; an address of a database may hold a password, and is masked."""
    from sekisho.cli.configuration import masked

    return masked(plain(settings))


def _status(place: "Home") -> Any:
    from sekisho.cli.server import probe
    from sekisho.ops.children_file import read_children
    from sekisho.ops.home import running

    state = running(place)
    if state is None:
        return {"running": False}
    code, body = probe(state.url + "/readyz")
    return {"running": True, "state": plain(state), "readyz": [code, body], "children": plain(read_children(place.run))}


def _findings(place: "Home", settings: "Settings") -> Any:
    import asyncio

    from sekisho.ops.doctor import Patient, examine
    from sekisho.serve import database_url

    gateway = settings.gateway
    patient = Patient(
        home=place,
        host=gateway.host,
        port=gateway.port,
        models=settings.models,
        allow_networks=gateway.allow_networks,
        database=database_url(place, settings),
    )
    return plain(asyncio.run(examine(patient)))


def _tickets(place: "Home", settings: "Settings") -> Any:
    """Who was asked what kind of thing and who decided, without the words."""
    from sekisho.cli.keys import with_store

    tickets = with_store(place, settings, lambda store: store.list_tickets(None, None, None, LONGEST_PAGE))
    words = ("question", "answer", "reason", "version", "told_version")
    return [{name: value for name, value in plain(ticket).items() if name not in words} for ticket in tickets]


def _emergency(place: "Home") -> Any:
    from sekisho.guard.emergency import emergency_file, read_emergency

    return plain(read_emergency(emergency_file(place.guard)))


def versions() -> dict[str, str]:
    """Of Sekisho, Python, the system, and every package that Sekisho needs."""
    import platform
    import re
    from importlib import metadata

    from sekisho import __version__

    found = {"sekisho": __version__, "python": platform.python_version(), "system": platform.platform()}
    for line in metadata.requires("sekisho") or ():
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
