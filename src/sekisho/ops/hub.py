"""Fetches GGUF files from the Hugging Face hub over plain HTTPS: resumable, checked, and put in place in one step."""

import asyncio
import errno
import hashlib
import ipaddress
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from sekisho.core.file_lock import try_lock
from sekisho.ops.home import write_atomically
from sekisho.ops.hub_listing import (
    AccessDenied,
    HubError,
    HubFile,
    HubTrouble,
    NoNetwork,
    NoSpace,
    NoSuchModel,
    WrongContent,
    parse_tree,
)

DEFAULT_ENDPOINT = "https://huggingface.co"
CHUNK_BYTES = 1 << 20
SPARE_BYTES = 256 << 20
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class Progress(msgspec.Struct, frozen=True):
    """`resumed_bytes` were on disk already. `state`: checking is hashing what is there."""

    file: str
    done_bytes: int
    total_bytes: int
    resumed_bytes: int = 0
    state: str = "downloading"


Report = Callable[[Progress], None]


class Patience(msgspec.Struct, frozen=True):
    """`retries`: failures in a row without a new byte before giving up; the pause doubles from `backoff_s`."""

    retries: int = 6
    connect_retries: int = 2
    backoff_s: float = 1.0
    backoff_limit_s: float = 30.0
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        return float(min(self.backoff_limit_s, self.backoff_s * 2 ** max(0, failures - 1)))


class _Partial(msgspec.Struct, frozen=True):
    """Stands beside a `.part` file: whose bytes these are."""

    size_bytes: int
    sha256: str | None
    etag: str | None


class Hub:
    """One hub. Use as `async with Hub.open(...)`. The token is sent to the endpoint itself only, and never in clear."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: str, token: str | None, patience: Patience) -> None:
        self._session = session
        self._endpoint = endpoint.rstrip("/")
        self._token = token if token and _is_private(URL(endpoint)) else None
        self._patience = patience

    @staticmethod
    @asynccontextmanager
    async def open(environment: Mapping[str, str], patience: Patience | None = None) -> AsyncIterator["Hub"]:
        """HF_ENDPOINT and HF_TOKEN are honoured, and the usual proxy variables."""
        patience = patience or Patience()
        endpoint = environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        if URL(endpoint).scheme not in ("http", "https") or not URL(endpoint).host:
            raise HubTrouble(f"HF_ENDPOINT is not a web address: {endpoint}")
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect_timeout_s, sock_read=patience.read_timeout_s
        )
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True, auto_decompress=False) as session:
            yield Hub(session, endpoint, environment.get("HF_TOKEN") or None, patience)

    async def files(self, repository: str, revision: str = "main") -> list[HubFile]:
        """All files of a repository. Raises HubError."""
        if not REPOSITORY.fullmatch(repository):
            raise NoSuchModel(f"{repository!r} is not a repository name (owner/name)")
        url: str | None = f"{self._endpoint}/api/models/{repository}/tree/{quote(revision, safe='')}?recursive=true"
        found: list[HubFile] = []
        while url is not None:
            body, url = await self._listing(url, repository)
            found += parse_tree(body)
        return found

    async def _listing(self, url: str, what: str) -> tuple[bytes, str | None]:
        failures = 0
        while True:
            try:
                async with self._session.get(URL(url, encoded=True), headers=self._headers()) as response:
                    _raise_for_status(response.status, what)
                    link = response.links.get("next")
                    return await response.read(), self._same_hub(link.get("url") if link else None)
            except (aiohttp.ClientError, TimeoutError, _TryAgain) as error:
                failures += 1
                await self._pause(failures, error)

    def _same_hub(self, url: object) -> str | None:
        """A page that lies elsewhere is not followed."""
        return str(url) if url is not None and URL(str(url)).origin() == URL(self._endpoint).origin() else None

    async def fetch(self, repository: str, file: HubFile, target: Path, report: Report, revision: str = "main") -> bool:
        """Brings the file to `target`; answers False when it was there already and is right. Raises HubError.

        Bytes gather in `target` + `.part`, and survive failures and kill -9; only one process may fetch a target.
        """
        if await _is_complete(target, file, report):
            return False
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = target.with_name(target.name + ".part")
        url = f"{self._endpoint}/{repository}/resolve/{quote(revision, safe='')}/{quote(file.path)}"
        download = _Download(self, url, file, part, report)
        with _only_one(part):
            failures = 0
            while True:
                before = _size(part)
                try:
                    await download.attempt()
                    break
                except (aiohttp.ClientError, TimeoutError, _TryAgain) as error:
                    failures = 1 if _size(part) > before else failures + 1
                    await self._pause(failures, error)
                except OSError as error:
                    raise _disk_trouble(error, part.parent) from error
            os.replace(part, target)
        _note_path(part).unlink(missing_ok=True)
        return True

    async def _pause(self, failures: int, error: Exception) -> None:
        unreachable = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        if failures > (self._patience.connect_retries if unreachable else self._patience.retries):
            if unreachable:
                raise NoNetwork(f"{self._endpoint} cannot be reached: {error}") from error
            raise HubTrouble(f"gave up after {failures} failures: {error or type(error).__name__}") from error
        wait_s = error.retry_after_s if isinstance(error, _TryAgain) and error.retry_after_s else 0.0
        await asyncio.sleep(max(wait_s, self._patience.pause_s(failures)))

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "sekisho"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers


class _TryAgain(Exception):
    """The hub asks for patience, or what arrived so far is of no use."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Download:
    """One file on its way. Each attempt goes on where the last one broke off, if the hub still has the same bytes."""

    def __init__(self, hub: Hub, url: str, file: HubFile, part: Path, report: Report) -> None:
        self._hub, self._url, self._file, self._part, self._report = hub, url, file, part, report
        self._restarted = False

    async def attempt(self) -> None:
        """Ends when `.part` holds all bytes and they are right. Raises _TryAgain, client errors, OSError, HubError."""
        digest, offset, etag = await self._resume()
        _require_space(self._part.parent, self._file.size_bytes - offset)
        resumed = offset
        if offset < self._file.size_bytes or not self._part.exists():
            headers = self._hub._headers()
            if offset:
                headers["Range"] = f"bytes={offset}-"
                if etag is not None:
                    headers["If-Range"] = etag
            async with self._hub._session.get(URL(self._url, encoded=True), headers=headers) as response:
                if response.status == 416:
                    self._forget()
                    raise _TryAgain("the hub has fewer bytes than this machine")
                _raise_for_status(response.status, self._file.path, response.headers.get("Retry-After"))
                if response.status != 206 or not _continues_at(response.headers.get("Content-Range"), offset):
                    digest, resumed = hashlib.sha256(), 0
                self._note(response.headers.get("ETag"))
                await self._receive(response.content, digest, resumed)
        self._verify(digest, resumed)

    async def _resume(self) -> tuple["hashlib._Hash", int, str | None]:
        """What is on disk already: its running hash, its length and the validator to ask with."""
        digest = hashlib.sha256()
        size = _size(self._part)
        note = _read_note(self._part)
        same = note is not None and (note.size_bytes, note.sha256) == (self._file.size_bytes, self._file.sha256)
        strong = note is not None and note.etag is not None and not note.etag.startswith("W/")
        if size == 0 or size > self._file.size_bytes or not same or not (strong or self._file.sha256):
            self._forget()
            return digest, 0, None
        await asyncio.to_thread(_hash_file, self._part, digest, self._checking)
        return digest, size, note.etag if strong and note is not None else None

    async def _receive(self, content: aiohttp.StreamReader, digest: "hashlib._Hash", offset: int) -> None:
        done = offset
        with self._part.open("r+b" if offset else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            async for chunk in content.iter_chunked(CHUNK_BYTES):
                done += len(chunk)
                if done > self._file.size_bytes:
                    raise WrongContent(f"{self._file.path}: the hub sends more than the announced bytes")
                file.write(chunk)
                digest.update(chunk)
                self._report(Progress(self._file.name, done, self._file.size_bytes, offset))
            file.flush()
            os.fsync(file.fileno())
        if done < self._file.size_bytes:
            raise _TryAgain("the connection ended early")

    def _verify(self, digest: "hashlib._Hash", resumed: int) -> None:
        if self._file.sha256 is None or digest.hexdigest() == self._file.sha256:
            return
        self._forget()
        if resumed and not self._restarted:
            self._restarted = True
            raise _TryAgain("the resumed file has a wrong checksum; starting over")
        raise WrongContent(
            f"{self._file.path}: SHA-256 is {digest.hexdigest()}, the hub announced {self._file.sha256}; removed"
        )

    def _checking(self, done: int) -> None:
        self._report(Progress(self._file.name, done, self._file.size_bytes, done, "checking"))

    def _note(self, etag: str | None) -> None:
        note = _Partial(self._file.size_bytes, self._file.sha256, etag)
        write_atomically(_note_path(self._part), msgspec.json.encode(note))

    def _forget(self) -> None:
        if self._part.exists():
            os.truncate(self._part, 0)
        _note_path(self._part).unlink(missing_ok=True)


async def _is_complete(target: Path, file: HubFile, report: Report) -> bool:
    if file.size_bytes != _size(target):
        return False
    if file.sha256 is None:
        return True
    digest = hashlib.sha256()
    total = file.size_bytes
    await asyncio.to_thread(
        _hash_file, target, digest, lambda done: report(Progress(file.name, done, total, done, "checking"))
    )
    return digest.hexdigest() == file.sha256


def _hash_file(path: Path, digest: "hashlib._Hash", tell: Callable[[int], None]) -> None:
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            tell(done)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_note(part: Path) -> _Partial | None:
    try:
        return msgspec.json.decode(_note_path(part).read_bytes(), type=_Partial)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # without its note a part cannot be trusted: the download begins anew


def _continues_at(content_range: str | None, offset: int) -> bool:
    return content_range is not None and content_range.startswith(f"bytes {offset}-")


def _is_private(url: URL) -> bool:
    """TLS, or an address that never leaves this machine."""
    if url.scheme == "https" or url.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.host or "").is_loopback
    except ValueError:
        return False


def _raise_for_status(status: int, what: str, retry_after: str | None = None) -> None:
    if status < 400:
        return
    if status in (401, 403):
        raise AccessDenied(f"{what}: the hub answers {status}; accept the model's terms there and set HF_TOKEN")
    if status == 404:
        raise NoSuchModel(f"{what}: the hub does not know it")
    if status in (408, 425, 429) or status >= 500:
        wait_s = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
        raise _TryAgain(f"the hub answers {status}", wait_s)
    raise HubTrouble(f"{what}: the hub answers {status}")


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise NoSpace(
            f"{folder} has {free / 2**30:.1f} GiB free, {(needed_bytes + SPARE_BYTES) / 2**30:.1f} are needed"
        )


def _disk_trouble(error: OSError, folder: Path) -> HubError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(f"{folder}: {error.strerror}; what arrived so far is kept")
    return HubTrouble(f"{folder}: {error.strerror or error}")


@contextmanager
def _only_one(part: Path) -> Iterator[None]:
    """Holds a lock on the part, so that two processes do not write into it."""
    with part.open("ab") as file:
        if not try_lock(file.fileno()):
            raise HubTrouble(f"another process is fetching {part.name.removesuffix('.part')}")
        yield
