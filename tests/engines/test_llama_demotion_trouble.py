"""When demotion cannot be had, a prompt is read directly: a front in this process before a real keeper, and readers
that are gone, refuse, hang, or save what cannot be used."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from demotion_harness import KEY, PLAIN, Worker, asked, chat, letter, process, ready
from kept_port import kept_port

from sekisho.engines import builtin, kv_size
from sekisho.engines.llama_demotion.serving import assembled

pytestmark = pytest.mark.skipif(not builtin.path().is_file(), reason="the built-in model is not there: run `make mini`")
CHAT = "/v1/chat/completions"
Front = Callable[[str], contextlib.AbstractAsyncContextManager[Worker]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A worker that does not demote: it saves no slots either."""
    with process(PLAIN, tmp_path_factory.mktemp("plain") / "log") as made:
        yield made


@contextlib.asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
def told() -> list[str]:
    """The lines that would stand on standard error."""
    return []


@pytest.fixture
def front(plain: tuple[subprocess.Popen[bytes], str], told: list[str], tmp_path: Path) -> Front:
    """Opens a front before that worker and a reader at an address."""
    shape = kv_size.shape(builtin.path())
    assert isinstance(shape, kv_size.KvShape)

    @contextlib.asynccontextmanager
    async def opened(reader: str) -> AsyncIterator[Worker]:
        await ready(plain[1])
        made = assembled(PLAIN, shape, tmp_path, plain[1], reader, KEY, told.append)
        async with served(made.application()) as root, asked(root) as worker:
            yield worker

    return opened


class Reader:
    """A reader that reads at once, or at `hangs` when it may `go_on`; `saved` is what its slot file holds."""

    def __init__(self, folder: Path, saved: bytes = b"") -> None:
        self.hangs, self.saved, self._folder = "", saved, folder
        self.begun, self.left, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        if request.path == self.hangs:
            self.begun.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.left.set()
                raise
        if request.path == "/completion":
            self.length = len(body["prompt"])
            return web.json_response({"timings": {"cache_n": 0, "prompt_n": self.length}})
        await asyncio.to_thread((self._folder / body["filename"]).write_bytes, self.saved)
        return web.json_response({"n_saved": self.length, "n_written": len(self.saved)})

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/{path:.*}", self.answer)
        return app


def files(folder: Path) -> list[Path]:
    """Slot files that are left."""
    return list(folder.iterdir())


async def failed(worker: Worker) -> float:
    return await worker.figure("sekisho_demotion_failed_total")


async def test_a_reader_that_is_gone_costs_no_request(front: Front, told: list[str]) -> None:
    """Each prompt is counted, the reason is told once, and the answer says truly that nothing was remembered."""
    async with front(f"http://127.0.0.1:{kept_port()}") as worker:
        for subject in ("A clerk", "A judge"):
            answer = await worker.post(CHAT, chat(letter(subject)))
            assert answer["usage"]["completion_tokens"] == 8
            assert answer["timings"]["prompt_n"] > 256
        assert await failed(worker) == 2
    assert len(told) == 1
    assert "the servers cannot be asked: NotConnected" in told[0]


async def test_a_reader_that_cannot_save_costs_no_request(
    front: Front, told: list[str], plain: tuple[subprocess.Popen[bytes], str], tmp_path: Path
) -> None:
    """Here a real one that was started without a folder for slots."""
    async with front(plain[1]) as worker:
        await worker.post(CHAT, chat(letter("A baker")))
        assert await failed(worker) == 1
    assert len(told) == 1
    assert told[0].startswith("warning: a prompt is read with fewer bits: the reader did not save its slot: 501 ")
    assert files(tmp_path) == []


@pytest.mark.parametrize("saved", [b"", b"something else", b"qsgg\x09\x00\x00\x00"])
async def test_files_that_are_not_known_end_it_for_good(
    saved: bytes, front: Front, told: list[str], tmp_path: Path
) -> None:
    """Of another version, or another layout: the next prompt would fare no better, and is not read twice."""
    async with served(Reader(tmp_path, saved).application()) as reader, front(reader) as worker:
        for subject in ("A potter", "A weaver"):
            await worker.post(CHAT, chat(letter(subject)))
        assert await failed(worker) == 1
    assert len(told) == 1
    assert "no prompt is read at 16 bits any more: the reader's slot file" in told[0]
    assert files(tmp_path) == []


async def test_a_full_disk_is_told_and_may_pass(front: Front, told: list[str], tmp_path: Path) -> None:
    """Fewer bytes than were written: the next prompt is tried again."""
    fake = Reader(tmp_path, b"half")

    async def half(request: web.Request) -> web.Response:
        answer = await fake.answer(request)
        said = msgspec.json.decode(answer.body or b"")
        return web.json_response(said | ({"n_written": 100} if "n_written" in said else {}))

    app = web.Application()
    app.router.add_post("/{path:.*}", half)
    async with served(app) as reader, front(reader) as worker:
        for subject in ("A tailor", "A smith"):
            await worker.post(CHAT, chat(letter(subject)))
        assert await failed(worker) == 2
    assert [line.partition("did not save its slot: ")[2].partition("tokens, ")[2] for line in told] == [
        "4 of 100 bytes"
    ]


async def test_clients_that_leave_while_prompts_are_read_free_everything(front: Front, tmp_path: Path) -> None:
    """The reader sees the one leave whose prompt it reads; slots and turns of those who waited are free for others."""
    fake = Reader(tmp_path)
    fake.hangs = "/completion"
    async with served(fake.application()) as reader, front(reader) as worker:
        leaving = [asyncio.create_task(worker.post(CHAT, chat(letter(f"{number} monks")))) for number in range(4)]
        await fake.begun.wait()
        for task in leaving:
            task.cancel()
        await asyncio.wait_for(fake.left.wait(), 60)
        fake.hangs = ""
        answers = await asyncio.gather(*(worker.post(CHAT, chat(letter(f"{number} nuns"))) for number in range(3)))
        assert {answer["usage"]["completion_tokens"] for answer in answers} == {8}
        assert all(task.cancelled() for task in leaving)
    assert files(tmp_path) == []


async def test_a_transfer_that_has_begun_is_ended_before_its_slot_is_free(front: Front, tmp_path: Path) -> None:
    """The client is gone and the reader still writes: what it writes is removed, and the next has its turn after."""
    fake = Reader(tmp_path, b"what somebody wrote")
    fake.hangs = "/slots/0"
    async with served(fake.application()) as reader, front(reader) as worker:
        leaving = asyncio.create_task(worker.post(CHAT, chat(letter("A sailor"))))
        await fake.begun.wait()
        leaving.cancel()
        await asyncio.wait((leaving,))
        following = asyncio.create_task(worker.post(CHAT, chat(letter("A fisher"))))
        assert not fake.left.is_set()
        fake.go_on.set()
        assert (await following)["usage"]["completion_tokens"] == 8
        assert not fake.left.is_set()
    assert files(tmp_path) == []


async def test_a_keeper_that_is_gone_is_told(front: Front, tmp_path: Path) -> None:
    """503 in llama.cpp's own form, for what is passed on and for what would have been read first."""
    shape = kv_size.shape(builtin.path())
    assert isinstance(shape, kv_size.KvShape)
    nobody = f"http://127.0.0.1:{kept_port()}"
    made = assembled(PLAIN, shape, tmp_path, nobody, nobody, KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with served(made.application()) as root, aiohttp.ClientSession(headers=headers) as session:
        for method, path, body in (("GET", "/metrics", None), ("GET", "/slots", None), ("POST", CHAT, chat("hello"))):
            async with session.request(method, root + path, json=body) as answer:
                said: dict[str, Any] = await answer.json()
                assert (answer.status, said["error"]["code"]) == (503, 503)
                assert "does not answer" in said["error"]["message"]
