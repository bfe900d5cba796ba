"""Downloads against a real local server that has a bad day."""

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sekisho.ops import hub as hub_module
from sekisho.ops.hub import Hub, Patience, Progress
from sekisho.ops.hub_listing import AccessDenied, HubFile, HubTrouble, NoNetwork, NoSpace, NoSuchModel, WrongContent

BODY = bytes(os.urandom(3_000_000))
SHA = hashlib.sha256(BODY).hexdigest()
FILE = HubFile("sub/m.gguf", len(BODY), SHA)
QUICK = Patience(retries=3, connect_retries=1, backoff_s=0.001, connect_timeout_s=60, read_timeout_s=60)


@dataclass
class Host:
    """A hub in one process: what it serves, how it fails, and what it was asked."""

    body: bytes = BODY
    sha256: str = SHA
    etag: str = '"v1"'
    break_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    requests: list[dict[str, str]] = field(default_factory=list)
    change_after_break: bytes | None = None
    redirect_to: str | None = None
    url: str = ""

    async def tree(self, request: web.Request) -> web.Response:
        self.requests.append(dict(request.headers))
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        entry: dict[str, Any] = {"type": "file", "path": "sub/m.gguf", "size": 1}
        entry["lfs"] = {"oid": self.sha256, "size": len(self.body), "pointerSize": 1}
        if "cursor" in request.query:
            return web.json_response([{"type": "file", "path": "README.md", "size": 3}])
        following = f'<{self.url}{request.path}?recursive=true&cursor=a%2Fb>; rel="next"'
        return web.json_response([entry], headers={"Link": following})

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(dict(request.headers))
        if self.redirect_to:
            raise web.HTTPFound(self.redirect_to)
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        start, status = 0, 200
        asked = request.headers.get("Range")
        if asked and self.ranges and request.headers.get("If-Range", self.etag) == self.etag:
            start, status = int(asked.removeprefix("bytes=").removesuffix("-")), 206
        if status == 206 and start >= len(self.body):
            return web.Response(status=416)
        response = web.StreamResponse(status=status, headers={"ETag": self.etag})
        if status == 206:
            response.headers["Content-Range"] = f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
        response.content_length = len(self.body) - start
        await response.prepare(request)
        end = start + self.break_after.pop(0) if self.break_after else len(self.body)
        await response.write(self.body[start:end])
        if end < len(self.body):
            if self.change_after_break is not None:
                self.body, self.etag = self.change_after_break, '"v2"'
            assert request.transport is not None
            request.transport.close()
        return response


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    application = web.Application()
    application.router.add_get("/api/models/{owner}/{name}/tree/{revision}", host.tree)
    application.router.add_get("/{owner}/{name}/resolve/{revision}/{path:.+}", host.resolve)
    runner = web.AppRunner(application, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield host
    await runner.cleanup()


async def fetch(host: Host, target: Path, file: HubFile = FILE, **environment: str) -> tuple[bool, list[Progress]]:
    reports: list[Progress] = []
    async with Hub.open({"HF_ENDPOINT": host.url, **environment}, QUICK) as hub:
        fetched = await hub.fetch("owner/name", file, target, reports.append)
    return fetched, reports


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_lists_all_pages(host: Host) -> None:
    """The list goes on where the hub names a next page, and size and checksum come with it."""
    async with Hub.open({"HF_ENDPOINT": host.url}, QUICK) as hub:
        assert await hub.files("owner/name") == [FILE, HubFile("README.md", 3)]


async def test_fetches_checks_and_leaves_nothing_else(host: Host, tmp_path: Path) -> None:
    """A download ends as the right file alone, and the progress ends at its size."""
    fetched, reports = await fetch(host, tmp_path / "m.gguf")
    assert fetched
    assert (tmp_path / "m.gguf").read_bytes() == BODY
    assert leftovers(tmp_path) == ["m.gguf"]
    assert reports[-1].done_bytes == reports[-1].total_bytes == len(BODY)


async def test_present_file_is_checked_and_not_fetched_again(host: Host, tmp_path: Path) -> None:
    """A right file is left alone without asking for its bytes; a wrong one of the same size is replaced."""
    target = tmp_path / "m.gguf"
    target.write_bytes(BODY)
    assert (await fetch(host, target))[0] is False
    assert host.requests == []
    target.write_bytes(BODY[:-1] + bytes([BODY[-1] ^ 1]))
    assert (await fetch(host, target))[0] is True
    assert target.read_bytes() == BODY


@pytest.mark.parametrize("breaks", [[1], [500_000, 700_000], [2_999_999]])
async def test_resumes_after_broken_connections(host: Host, tmp_path: Path, breaks: list[int]) -> None:
    """However often the connection breaks, the file is whole, and later requests ask for the rest only."""
    host.break_after = list(breaks)
    await fetch(host, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == BODY
    assert len(host.requests) == len(breaks) + 1
    assert all(asked["If-Range"] == '"v1"' and "Range" in asked for asked in host.requests[1:])


async def test_resumes_in_a_later_run(host: Host, tmp_path: Path) -> None:
    """A run that gave up leaves its bytes; the next run goes on after them and re-hashes what was there."""
    host.break_after = [1_000_000, 0, 0, 0, 0]
    target = tmp_path / "m.gguf"
    with pytest.raises(HubTrouble):
        await fetch(host, target)
    assert leftovers(tmp_path) == ["m.gguf.part", "m.gguf.part.json"]
    held = (tmp_path / "m.gguf.part").stat().st_size
    assert 0 < held <= 1_000_000
    host.requests.clear()
    host.break_after = []
    _, reports = await fetch(host, target)
    assert target.read_bytes() == BODY
    assert host.requests[0]["Range"] == f"bytes={held}-"
    assert reports[0].state == "checking"


async def test_changed_content_starts_over(host: Host, tmp_path: Path) -> None:
    """When the hub's bytes change in the middle, the old beginning is never joined to the new end."""
    other = bytes(byte ^ 255 for byte in BODY[:1000]) + BODY[1000:]
    host.break_after, host.change_after_break = [10_000], other
    file = HubFile("sub/m.gguf", len(other), hashlib.sha256(other).hexdigest())
    await fetch(host, tmp_path / "m.gguf", file)
    assert (tmp_path / "m.gguf").read_bytes() == other


async def test_damaged_part_is_noticed(host: Host, tmp_path: Path) -> None:
    """Bytes that went bad on disk between two runs cost a second download, not a wrong model."""
    target = tmp_path / "m.gguf"
    host.break_after = [1_000_000, 0, 0, 0, 0]
    with pytest.raises(HubTrouble):
        await fetch(host, target)
    part = tmp_path / "m.gguf.part"
    part.write_bytes(b"\x00" * part.stat().st_size)
    host.break_after = []
    await fetch(host, target)
    assert target.read_bytes() == BODY


async def test_server_without_ranges(host: Host, tmp_path: Path) -> None:
    """A server that answers a resume with the whole file is taken at its word."""
    host.ranges, host.break_after = False, [1_000_000]
    await fetch(host, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == BODY


async def test_wrong_checksum_is_never_put_in_place(host: Host, tmp_path: Path) -> None:
    """Bytes that do not hash to what the hub announced are thrown away, and the error names both hashes."""
    with pytest.raises(WrongContent, match="0" * 64):
        await fetch(host, tmp_path / "m.gguf", HubFile("sub/m.gguf", len(BODY), "0" * 64))
    assert not (tmp_path / "m.gguf").exists()
    assert (tmp_path / "m.gguf.part").stat().st_size == 0


async def test_more_bytes_than_announced(host: Host, tmp_path: Path) -> None:
    """A server that sends more than it announced cannot fill the disk."""
    with pytest.raises(WrongContent):
        await fetch(host, tmp_path / "m.gguf", HubFile("sub/m.gguf", 1000, SHA))


async def test_busy_hub_is_asked_again(host: Host, tmp_path: Path) -> None:
    """503 and 429 are answered with patience."""
    host.statuses = [503, 429]
    await fetch(host, tmp_path / "m.gguf")
    assert len(host.requests) == 3


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessDenied), (403, AccessDenied), (404, NoSuchModel), (400, HubTrouble)]
)
async def test_refusals_are_told_apart(host: Host, tmp_path: Path, status: int, error: type[Exception]) -> None:
    """A refusal is final at once, and of the kind that tells what to do."""
    host.statuses = [status]
    with pytest.raises(error):
        await fetch(host, tmp_path / "m.gguf")
    assert len(host.requests) == 1


async def test_unreachable_hub(tmp_path: Path, unused_tcp_port: int) -> None:
    """Nobody at the address: NoNetwork, after the retries, with nothing but an empty part left."""
    host = Host(url=f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(NoNetwork):
        await fetch(host, tmp_path / "m.gguf")
    async with Hub.open({"HF_ENDPOINT": host.url}, QUICK) as hub:
        with pytest.raises(NoNetwork):
            await hub.files("owner/name")


async def test_full_disk(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little free space is told before the first byte is asked for; a disk that fills up on the way, too."""
    with pytest.raises(NoSpace):
        await fetch(host, tmp_path / "a.gguf", HubFile("sub/m.gguf", 2**60, SHA))
    assert host.requests == []

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_module.os, "fsync", full)
    with pytest.raises(NoSpace):
        await fetch(host, tmp_path / "b.gguf")


async def test_token_goes_to_the_hub_alone(host: Host, tmp_path: Path) -> None:
    """The token is sent to the endpoint, and not to another origin that the endpoint points to."""
    elsewhere: list[dict[str, str]] = []

    async def store(request: web.Request) -> web.Response:
        elsewhere.append(dict(request.headers))
        return web.Response(body=BODY)

    application = web.Application()
    application.router.add_get("/cdn", store)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host.redirect_to = f"http://127.0.0.1:{runner.addresses[0][1]}/cdn"
    await fetch(host, tmp_path / "m.gguf", HF_TOKEN="hf_secret")
    await runner.cleanup()
    assert host.requests[0]["Authorization"] == "Bearer hf_secret"
    assert "Authorization" not in elsewhere[0]


async def test_second_process_is_refused(host: Host, tmp_path: Path) -> None:
    """Two downloads of one target do not write into each other's part."""
    part = tmp_path / "m.gguf.part"
    with hub_module._only_one(part), pytest.raises(HubTrouble, match="another process"):
        await fetch(host, tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["../etc", "a/b/c", "noslash", "a/..?x=/", ""])
async def test_only_repository_names_are_asked_for(host: Host, name: str) -> None:
    """A name that is no owner/name never becomes a request."""
    async with Hub.open({"HF_ENDPOINT": host.url}, QUICK) as hub:
        with pytest.raises(NoSuchModel):
            await hub.files(name)
    assert host.requests == []
