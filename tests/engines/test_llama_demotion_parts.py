"""The parts of demotion that are functions of values: slots, prompts, what answers say, folders and files."""

import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.engines import slot_file
from sekisho.engines.llama_demotion import folder, prompts, slots, transfer, waiting
from sekisho.engines.llama_demotion.counters import Counters
from sekisho.engines.llama_demotion.slots import Slots, as_tokens, common_prefix, worth_demoting
from sekisho.engines.llama_demotion.usage import Heard, Reading, StreamCorrection, corrected
from sekisho.engines.slot_file import Plane, SlotFile, SlotFileProblem

numbers = st.lists(st.integers(0, 3), max_size=12)


# --- slots ------------------------------------------------------------------------------------------------------------


@given(numbers, numbers)
def test_a_common_prefix_is_common_and_no_longer(one: list[int], other: list[int]) -> None:
    length = common_prefix(as_tokens(one), as_tokens(other))
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_what_is_worth_it_stays_so_with_more_to_read(rest: int, whole: int) -> None:
    """More that the keeper would have to read speaks for it, more that the reader would have to against it; below the
    least it is never worth it, and a long prompt that nobody holds always is."""
    if worth_demoting(rest, whole):
        assert rest >= slots.FEWEST
        assert worth_demoting(rest + 1, whole)
        assert worth_demoting(rest, max(0, whole - 1))
    assert worth_demoting(slots.FEWEST + rest, slots.FEWEST + rest)


async def test_a_prompt_gets_the_slot_that_holds_the_most_of_it() -> None:
    """What was said last counts where it would follow; a short beginning in common is no reason to lose a slot; among
    equals the one that was used longest ago."""
    kept, first, second = Slots(3), as_tokens(range(100)), as_tokens(range(1000, 1100))
    for tokens, said in ((first, 7), (second, 0)):
        async with kept.taken(tokens) as slot:
            slot.hold(tokens, said)
    assert [slot.number for slot in kept.all if len(slot.tokens)] == [0, 1]
    turn = np.concatenate([first, as_tokens(range(500, 520))])
    async with kept.taken(turn) as slot:
        assert (slot.number, slot.held(turn)) == (0, 107)
    for prompt, number in ((np.concatenate([first[:5], as_tokens(range(2000, 2100))]), 2), (second[:50], 1)):
        async with kept.taken(prompt) as slot:
            assert slot.number == number
            assert slot.held(prompt) == (0 if number == 2 else 49)
    kept.forget()
    assert {slot.held(second) for slot in kept.all} == {0}


async def test_who_waits_for_a_slot_is_served_in_order() -> None:
    """With one slot, whatever is cancelled meanwhile."""
    kept, order, prompt = Slots(1), list[int](), as_tokens(range(5))

    async def use(number: int) -> None:
        async with kept.taken(prompt):
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(use(number)) for number in range(6)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert order == [0, 1, 3, 4, 5]
    assert not kept.all[0].taken


# --- prompts ----------------------------------------------------------------------------------------------------------


class Keeper:
    """Answers as llama.cpp does, a token a character; notes what it was asked."""

    def __init__(self) -> None:
        self.asked = list[tuple[str, Any]]()

    async def __call__(self, path: str, body: bytes) -> bytes | None:
        said = msgspec.json.decode(body)
        self.asked.append((path, said))
        if path == "/apply-template":
            messages = said.get("messages")
            return msgspec.json.encode({"prompt": "".join(each["content"] for each in messages)}) if messages else None
        return msgspec.json.encode({"tokens": [1, *map(ord, said["content"])]})


async def test_a_chat_is_read_by_its_template_and_a_text_as_it_is() -> None:
    """With the opening token and with marks read as such; numbers are tokens already."""
    keeper = Keeper()
    body = b'{"messages": [{"role": "user", "content": "ab"}]}'
    found = await prompts.tokens("chat", body, keeper)
    assert found is not None
    assert found.tolist() == [1, 97, 98]
    assert keeper.asked == [
        ("/apply-template", msgspec.json.decode(body)),
        ("/tokenize", {"content": "ab", "add_special": True, "parse_special": True}),
    ]
    for prompt, tokens in (("ab", [1, 97, 98]), (["ab"], [1, 97, 98]), ([5, 6], [5, 6])):
        found = await prompts.tokens("raw", msgspec.json.encode({"prompt": prompt}), keeper)
        assert found is not None
        assert found.tolist() == tokens


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "n": 2}',
        b'{"prompt": "a", "id_slot": 1}',
        b'{"prompt": "a", "cache_prompt": false}',
        b'{"prompt": "a", "lora": [{"id": 0, "scale": 1}]}',
        b'{"prompt": ["a", "b"]}',
        b'{"prompt": [1, "b"]}',
        b'{"prompt": [99999999999]}',
        b'{"prompt": {"x": 1}}',
        b"{}",
    ],
)
async def test_what_is_not_one_prompt_for_any_slot_is_left_alone(body: bytes) -> None:
    """So is a chat that the template refuses."""
    assert await prompts.tokens("raw", body, Keeper()) is None
    assert await prompts.tokens("chat", b'{"messages": []}', Keeper()) is None


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), min_size=1), st.integers(0, 99))
def test_a_request_for_a_slot_says_all_that_it_said_before(body: dict[str, Any], number: int) -> None:
    body = {name: value for name, value in body.items() if name not in ("id_slot", "cache_prompt")} | {"prompt": "a"}
    for written in (msgspec.json.encode(body), b" \n" + msgspec.json.format(msgspec.json.encode(body), indent=2)):
        found = msgspec.json.decode(prompts.in_slot(written, number))
        assert found == body | {"id_slot": number, "cache_prompt": True}


# --- what answers say -------------------------------------------------------------------------------------------------

READING = Reading(whole=1000, remembered=100, ms=90.0)
TIMINGS = {"cache_n": 999, "prompt_n": 1, "prompt_ms": 10.0, "prompt_per_second": 100.0, "predicted_n": 7}
USAGE = {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 999}}


def test_what_was_read_just_now_is_not_told_as_remembered() -> None:
    """In both places; what the reading took is in the prompt's time; everything else stays."""
    body = msgspec.json.encode({"choices": [{"text": "\u3042"}], "usage": USAGE, "timings": TIMINGS})
    said = msgspec.json.decode(corrected(body, READING))
    assert said["usage"] == {"prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 100}}
    assert said["timings"] == TIMINGS | {
        "cache_n": 100,
        "prompt_n": 900,
        "prompt_ms": 100.0,
        "prompt_per_second": 9000.0,
        "prompt_per_token_ms": 100 / 900,
    }
    assert said["choices"] == [{"text": "\u3042"}]
    none_held = msgspec.json.encode({"timings": TIMINGS | {"cache_n": 0, "prompt_n": 1000}})
    assert msgspec.json.decode(corrected(none_held, READING))["timings"]["prompt_n"] == 1000


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": {"code": 400}}',
        b"not JSON \xff",
        b'{"usage":',
        msgspec.json.encode({"content": 'he said "usage": "timings":'}),
    ],
)
def test_what_says_nothing_of_the_prompt_stays_as_it_is(body: bytes) -> None:
    """Refusals, what is cut off, and texts that only speak of it."""
    assert corrected(body, READING) == body


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_a_stream_is_put_right_however_it_is_cut(cuts: list[int]) -> None:
    """Only the frame that tells of the prompt differs; comments, marks and what is cut off at the end stay."""
    last = msgspec.json.encode({"choices": [], "usage": USAGE})
    frames = [b'data: {"a":"x"}', b":", b"event: y\ndata: 1", b"data: " + last, b"data: [DONE]", b"data: {cut"]
    stream, put_right, pieces = b"\n\n".join(frames), StreamCorrection(READING), list[bytes]()
    while stream:
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(put_right.feed(stream[:size]))
        stream = stream[size:]
    found = (b"".join(pieces) + put_right.finish()).split(b"\n\n")
    assert [each for each in found if each not in frames] == [b"data: " + corrected(last, READING)]
    assert len(found) == len(frames)


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([b'data: {"delta":{"content":"a"}}\n\n', b'data: {"timings":{"predicted', b'_n":12,"x":1}}\n\n'], 12),
        ([b'data: {"delta":{"reasoning_content":"hm"}}\n\n', b" " * 9000, b'{"timings":{"predicted_n":12}}'], 0),
        ([b'data: {"delta":{"tool_calls":[]}}\n\n', b'{"timings":{"predicted_n":12}}'], 0),
        ([b'data: {"delta":{"content":"\\"predicted_n\\":5"}}\n\n'], 0),
        ([], 0),
    ],
)
def test_an_answers_length_is_heard_where_the_next_turn_repeats_it(pieces: list[bytes], said: int) -> None:
    """Not with thoughts or tool calls in it, and not of one that broke off."""
    heard = Heard()
    for piece in pieces:
        heard.feed(piece)
    assert heard.said == said


def test_counters_are_told_as_prometheus_reads_them() -> None:
    """Each with what it means; trouble once for each cause."""
    told = list[str]()
    counters = Counters(told.append)
    counters.stored(700, 1.5, 0.25)
    for cause in ("a", "b", "a"):
        counters.trouble(cause, "detail")
    lines = counters.lines().decode().splitlines()
    assert len(lines) == 3 * 6
    assert [line for line in lines if not line.startswith("#")] == [
        "sekisho_demotion_prompts_total 1",
        "sekisho_demotion_tokens_total 700",
        "sekisho_demotion_read_seconds_total 1.5",
        "sekisho_demotion_store_seconds_total 0.25",
        "sekisho_demotion_failed_total 3",
        "sekisho_demotion_reader_tokens 0",
    ]
    assert [line.partition(": ")[2].partition(": ")[2] for line in told] == ["a: detail", "b: detail"]


# --- while it loads ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how many connections nobody has taken yet")
def test_who_is_being_told_at_the_end_is_told_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded in the middle of a question: it is answered, and who comes later waits for the next one."""
    request = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"

    def untaken() -> int:
        backlog: int = struct.unpack_from("=I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)[0]
        return backlog

    class Child(subprocess.Popen[bytes]):
        def terminate(self) -> None:
            super().terminate()
            later.append(socket.create_connection(address, timeout=60))
            asker.sendall(request)

    monkeypatch.setattr(waiting.subprocess, "Popen", Child)
    later = list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with waiting.answering(listener):
            asker = socket.create_connection(address, timeout=60)
            while untaken():
                time.sleep(0.005)
        with asker, asker.makefile("rb") as told:
            assert told.read().startswith(b"HTTP/1.1 503 ")
        with later[0] as other, listener.accept()[0] as taken:
            assert taken.getpeername() == other.getsockname()


# --- folders and files ------------------------------------------------------------------------------------------------


def test_slot_files_lie_in_memory_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else, and where there is no such place, in the folder for temporary files."""
    shared, temporary = tmp_path / "shm", tmp_path / "tmp"
    shared.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert folder.open_folder(1, shared).parent == shared
    assert folder.open_folder(1 << 62, shared).parent == temporary
    found = folder.open_folder(1, tmp_path / "none")
    assert found.parent == temporary
    assert found.stat().st_mode & 0o777 == 0o700


def test_only_what_is_left_over_is_removed(tmp_path: Path) -> None:
    """Of workers that are gone, and of numbers that went to younger processes; nothing of those that run, nothing with
    another name."""
    mine, gone, younger, other, odd = (
        tmp_path / name
        for name in (
            f"{folder.PREFIX}{os.getpid()}-a",
            f"{folder.PREFIX}{2**22 + 1}-b",
            f"{folder.PREFIX}{os.getpid()}-c",
            "sekisho-slots-1",
            f"{folder.PREFIX}x-d",
        )
    )
    for each in (mine, gone, younger, other, odd):
        each.mkdir()
        (each / "0.saved").touch()
    os.utime(younger, (1_000_000, 1_000_000))
    folder.remove_leftovers((tmp_path, tmp_path / "none"))
    assert sorted(tmp_path.iterdir()) == sorted((mine, other, odd))


def made(rows: int = 3) -> SlotFile:
    cells = np.array([[at, 1, 0] for at in range(rows)], np.int32).tobytes()
    values = np.random.default_rng(1).normal(0, 1, (2, rows, 64)).astype(np.float16)
    planes = [Plane("f16", np.ascontiguousarray(each).view(np.uint8)) for each in values]
    head = b"qsgg\x04\x00\x00\x00\x00\x00\x00\x00"
    return SlotFile(head, 1, cells, (planes[0],), (planes[1],))


def test_a_slot_file_is_stored_anew_and_deleted(tmp_path: Path) -> None:
    """What is written is what `stored_at` makes, for as many streams as the keeper has; planes that keep their 16 bits
    survive the file they were in."""
    for kinds in (("q8_0", "q4_0"), ("f16", "q8_0")):
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(slot_file.write(made(), 1))
        transfer.store_anew(source, target, transfer.Storing(*kinds, 64, 64, 3))  # type: ignore[arg-type]
        assert not source.exists()
        wanted = slot_file.stored_at(made(), *kinds, 64, 64)  # type: ignore[arg-type]
        assert target.read_bytes() == slot_file.write(wanted, 3)
        target.unlink()


def test_an_empty_file_is_no_slot_file(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    storing = transfer.Storing("q8_0", "q8_0", 64, 64, 1)
    with pytest.raises(SlotFileProblem, match="is empty"):
        transfer.store_anew(tmp_path / "source", tmp_path / "target", storing)
