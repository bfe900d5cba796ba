"""Prompts that are read at 16 bits and kept with fewer, in a real worker with the built-in model."""

import asyncio
import os
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from demotion_harness import KEY, PLAIN, Worker, asked, chat, demoting, folders, letter, process, ready

from sekisho.engines import builtin, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.engines.llama_worker import WorkerError, check_demotion

pytestmark = pytest.mark.skipif(not builtin.path().is_file(), reason="the built-in model is not there: run `make mini`")
CHAT, RAW = "/v1/chat/completions", "/v1/completions"
PROMPTS, TOKENS, FAILED = (f"sekisho_demotion_{name}_total" for name in ("prompts", "tokens", "failed"))
READ_BY_THE_KEEPER = "llamacpp:prompt_tokens_total"


def cached(answer: dict[str, Any]) -> int:
    """The same in both places where an answer says it."""
    count = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert answer["timings"]["cache_n"] == count
    assert answer["timings"]["cache_n"] + answer["timings"]["prompt_n"] == answer["usage"]["prompt_tokens"]
    assert isinstance(count, int)
    return count


def top(answer: dict[str, Any]) -> dict[str, float]:
    """The likeliest first tokens of an answer."""
    (choice,) = answer["choices"]
    first = choice["logprobs"]["content"][0]
    return {each["token"]: each["logprob"] for each in first["top_logprobs"]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A worker that demotes to eight bits, for all tests here."""
    with process(demoting(), tmp_path_factory.mktemp("kept") / "log") as made:
        yield made


@pytest.fixture
async def running(kept: tuple[subprocess.Popen[bytes], str]) -> AsyncIterator[Worker]:
    async with asked(kept[1]) as worker:
        yield worker


@pytest.mark.parametrize(("kind", "tolerance"), [("q8_0", 0.2), ("q4_0", 1.5)])
async def test_a_long_prompt_is_read_once_and_answered_as_if_read_directly(
    kind: Any, tolerance: float, tmp_path: Path
) -> None:
    """The keeper reads one token of it. The likeliest next tokens differ from a plain worker's, of the same types, by
    no more than what rounding after instead of while reading makes; the first word is the same."""
    config = msgspec.structs.replace(PLAIN, kv_type_k=kind, kv_type_v=kind)
    body = chat(letter("Somebody") + "What burns?", logprobs=True, top_logprobs=5)
    with process(demoting(config), tmp_path / "log") as (child, root):
        async with asked(root) as worker:
            answer = await worker.post(CHAT, body)
            whole = answer["usage"]["prompt_tokens"]
            assert whole > 256
            assert await worker.figure(READ_BY_THE_KEEPER) == 1
            assert (await worker.figure(PROMPTS), await worker.figure(FAILED)) == (1, 0)
            assert await worker.figure(TOKENS) == whole
            assert cached(answer) == 0
        (folder,) = folders(child)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert list(folder.iterdir()) == []
    with process(config, tmp_path / "log") as (_, root):
        async with asked(root) as direct:
            other = await direct.post(CHAT, body)
    ours, theirs = top(answer), top(other)
    assert max(ours, key=ours.__getitem__) == max(theirs, key=theirs.__getitem__)
    shared = set(ours) & set(theirs)
    assert len(shared) >= 4
    assert max(abs(ours[each] - theirs[each]) for each in shared) < tolerance


async def test_a_next_turn_goes_on_in_its_slot(running: Worker) -> None:
    """Also with another conversation between: what the slot holds of the first, answer included, is not read again, by
    neither of the two."""
    question = letter("A mother")
    first = await running.post(CHAT, chat(question))
    await running.post(CHAT, chat(letter("数える人")))
    assert await running.figure(PROMPTS) == 2
    read = await running.figure(READ_BY_THE_KEEPER)
    said = first["choices"][0]["message"]["content"]
    second = await running.post(CHAT, chat(question, said, "And then?"))
    assert await running.figure(PROMPTS) == 2
    assert cached(second) >= first["usage"]["prompt_tokens"] - 1
    assert await running.figure(READ_BY_THE_KEEPER) - read == second["timings"]["prompt_n"] < 40


async def test_what_the_reader_remembers_counts_as_cached(running: Worker) -> None:
    """Two prompts with the same beginning: that part was not read again, and the answer says so."""
    first = await running.post(RAW, {"prompt": letter("A father"), "max_tokens": 1})
    prompt = letter("A father", 10) + letter("His brother")
    answer = await running.post(RAW, {"prompt": prompt, "max_tokens": 1})
    assert await running.figure(PROMPTS) == 2
    both = first["usage"]["prompt_tokens"] + answer["usage"]["prompt_tokens"]
    assert await running.figure(TOKENS) == both - cached(first) - cached(answer)
    assert await running.figure("sekisho_demotion_reader_tokens") == answer["usage"]["prompt_tokens"]
    assert 150 < cached(answer) < answer["usage"]["prompt_tokens"] - 256


@pytest.mark.parametrize("path", [CHAT, RAW])
async def test_a_stream_says_the_same_as_a_whole_answer(running: Worker, path: str) -> None:
    """Piece by piece, and its last event tells what was read, as the whole answer does."""
    text = letter(f"Whoever asks {path}")
    body = chat(text) if path == CHAT else {"prompt": text, "temperature": 0, "max_tokens": 8}
    events = await running.stream(path, body)
    assert await running.figure(PROMPTS) == 1
    assert cached(events[-1]) < 10
    assert events[-1]["timings"]["prompt_ms"] > 0
    whole = await running.post(path, body)
    assert cached(whole) == whole["usage"]["prompt_tokens"] - 1
    choices = [choice for event in events for choice in event["choices"]]
    if path == CHAT:
        said = "".join(choice["delta"].get("content") or "" for choice in choices)
        assert said == whole["choices"][0]["message"]["content"]
    else:
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]


async def test_short_prompts_and_what_cannot_be_told_are_passed_on(running: Worker) -> None:
    """Nothing is stored for them; the answers and refusals are llama.cpp's own."""
    assert cached(await running.post(CHAT, chat("hello"))) < 10
    await running.post(RAW, {"prompt": ["two prompts", "at once"], "max_tokens": 1})
    await running.post("/completion", {"prompt": letter("An aunt"), "n_predict": 1})
    async with running.session.post(running.root + CHAT, data=b'{"messages": ') as answer:
        assert answer.status in (400, 500)
        assert "error" in await answer.json()
    too_long = {"prompt": letter("An uncle", 200), "max_tokens": 1}
    async with running.session.post(running.root + RAW, json=too_long) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["type"] == "exceed_context_size_error"
    async with running.session.get(running.root + "/nothing") as answer:
        assert answer.status == 404
    assert (await running.figure(PROMPTS), await running.figure(FAILED), await running.busy()) == (0, 0, 0)


async def test_nobody_gets_work_done_without_the_key(running: Worker) -> None:
    """llama.cpp refuses, and no prompt was read before it did."""
    async with aiohttp.ClientSession() as stranger:
        for path in ("/v1/models", "/slots", "/metrics"):
            async with stranger.get(running.root + path) as answer:
                assert answer.status == 401, path
                assert b"sekisho" not in await answer.read()
        async with stranger.post(running.root + CHAT, json=chat(letter("A stranger"))) as answer:
            assert answer.status == 401
    assert await running.figure(PROMPTS) == 0


async def test_more_requests_than_slots_are_all_answered(running: Worker) -> None:
    """Four long prompts at once in two slots: each is stored for itself and none gets another's answer."""
    prompts = [chat(letter(f"Number {number}")) for number in ("one", "two", "three", "four")]
    one_by_one = [await running.post(CHAT, prompt) for prompt in prompts]
    together = await asyncio.gather(*(running.post(CHAT, prompt) for prompt in prompts))
    texts = [[answer["choices"][0]["message"]["content"] for answer in each] for each in (one_by_one, together)]
    assert texts[0] == texts[1]
    assert await running.figure(PROMPTS) > 4
    assert (await running.figure(FAILED), await running.busy()) == (0, 0)


async def test_a_client_that_leaves_frees_its_slot(running: Worker) -> None:
    """In the middle of an answer, which would go on for long: llama.cpp sees it and stops."""
    prompt = letter("Whoever leaves")
    for _ in range(3):
        async with running.session.post(running.root + CHAT, json=chat(prompt, tokens=1000, stream=True)) as answer:
            await answer.content.readany()
    async with asyncio.timeout(30):
        while await running.busy():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    assert cached(await running.post(CHAT, chat(prompt))) > 256
    assert await running.figure(PROMPTS) == 1


async def test_the_folder_goes_with_the_worker(tmp_path: Path, kept: tuple[subprocess.Popen[bytes], str]) -> None:
    """On a signal it is removed at once. After kill -9 it stays until the next worker starts, of whatever settings; the
    folder of one that runs is left alone."""
    await ready(kept[1])
    with process(demoting(), tmp_path / "log") as (child, root):
        await ready(root)
        (first,) = folders(child)
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, 60) == -signal.SIGTERM
    assert not first.exists()
    with process(demoting(), tmp_path / "log") as (child, root):
        await ready(root)
        (left,) = folders(child)
        (left / "0.saved").write_bytes(b"what somebody wrote")
        child.kill()
        # Dead, but not waited for: until then no worker that another test starts takes its folder for left over.
        await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert left.exists()
    with process(PLAIN, tmp_path / "log") as (_, root):
        await ready(root)
    assert not left.exists()
    assert len(folders(kept[0])) == 1


async def test_while_it_loads_it_says_so(tmp_path: Path) -> None:
    """Like a plain worker: 503, never a connection that hangs."""
    seen = set()
    with process(demoting(), tmp_path / "log") as (_, root):
        async with aiohttp.ClientSession() as session, asyncio.timeout(60):
            while 200 not in seen:
                try:
                    async with session.get(root + "/health") as answer:
                        seen.add(answer.status)
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.005)
    assert seen <= {200, 503}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kv_type_k": "f16", "kv_type_v": "f16"}, "keys and values are at 16 bits already"),
        ({"kv_type_k": "q5_0"}, "f16, q8_0, q4_0 only, not at q5_0"),
        ({"embeddings": True}, "does not go together with embeddings"),
        ({"mmproj": "x.gguf"}, "does not go together with mmproj"),
        ({"options": {"demote_after_prefill": "yes"}}, "must be true or false, is 'yes'"),
    ],
)
def test_settings_that_it_does_not_go_with_are_refused(fields: dict[str, Any], said: str) -> None:
    """With the reason; off, it goes with everything."""
    config = msgspec.structs.replace(demoting(), **fields)
    with pytest.raises(WorkerError, match=rf"options\.demote_after_prefill: .*{said}") as refused:
        check_demotion(config)
    assert refused.value.final
    assert not check_demotion(msgspec.structs.replace(config, options={"demote_after_prefill": False}))
    assert check_demotion(demoting())


def test_a_worker_refuses_before_it_loads(tmp_path: Path) -> None:
    """In one line, with the exit code that says that starting again cannot help."""
    with process(demoting(ModelConfig("m", path="builtin", context=512)), tmp_path / "log") as (child, _):
        assert child.wait(60) == llama_worker.EXIT_CONFIGURATION
    assert (tmp_path / "log").read_text().splitlines()[-1].startswith("error: options.demote_after_prefill: keys and")
    assert KEY not in (tmp_path / "log").read_text().split()
