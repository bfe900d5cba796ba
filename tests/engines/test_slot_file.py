import asyncio
import importlib.util
import json
import os
import struct
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_port import kept_port

from sekisho.engines import lifeline, llama_worker
from sekisho.engines.config import ModelConfig
from sekisho.engines.slot_file import (
    Plane,
    SlotFile,
    SlotFileProblem,
    StoredType,
    hadamard,
    read,
    stored_at,
    write,
)

BENCH = Path(__file__).parents[2] / "bench"
PROMPT = "The keeper of the gate writes a letter, and the lamp burns through the night. " * 3


def made(cells: int = 5, width: int = 128, layers: int = 2, seed: int = 1) -> SlotFile:
    draw = np.random.default_rng(seed)
    head = struct.pack("<IIIii", 0x67677371, 4, 2, 7, 8)
    meta = np.array([[at, 1, 0] for at in range(cells)], np.int32).tobytes()
    planes = tuple(
        Plane("f16", draw.normal(0, 1, (cells, width)).astype(np.float16).view(np.uint8)) for _ in range(2 * layers)
    )
    return SlotFile(head, 1, meta, planes[:layers], planes[layers:])


def same(one: SlotFile, other: SlotFile) -> bool:
    planes = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    turns = (one.key_turn, one.value_turn) == (other.key_turn, other.value_turn)
    return turns and all(a.type == b.type and np.array_equal(a.rows, b.rows) for a, b in planes)


def unpacked(plane: Plane) -> Any:
    """Back to numbers, as llama.cpp's formats define them."""
    if plane.type == "f16":
        return plane.rows.view(np.float16).astype(np.float32)
    size = 34 if plane.type == "q8_0" else 18
    blocks = plane.rows.reshape(-1, size)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if plane.type == "q8_0":
        numbers = blocks[:, 2:].copy().view(np.int8).astype(np.float32)
    else:
        numbers = np.hstack([blocks[:, 2:] & 15, blocks[:, 2:] >> 4]).astype(np.float32) - 8
    return (numbers * scales).reshape(len(plane.rows), -1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**20))
def test_what_is_written_is_read_back(cells: int, streams: int, seed: int) -> None:
    """With any number of streams; at the streams that it came with, byte for byte."""
    slot = made(cells, seed=seed)
    body = write(slot, streams)
    back = read(body)
    assert same(slot, back)
    assert (back.streams, back.length) == (streams, cells)
    assert write(back, streams) == body


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["q8_0", "q4_0"]), st.sampled_from([32, 64, 128]), st.integers(0, 2**20))
def test_rounding_stays_within_half_a_step(kind: StoredType, head: int, seed: int) -> None:
    """Turned back, no value is further from the 16-bit one than its block's rounding allows."""
    slot = made(seed=seed)
    stored = stored_at(slot, kind, kind, head, head)
    assert stored.key_turn == (0 if head == 32 else head)
    assert stored.value_turn == (0 if head == 32 else 64)
    for before, after, turn in (
        (slot.keys[0], stored.keys[0], stored.key_turn),
        (slot.values[1], stored.values[1], stored.value_turn),
    ):
        wanted = unpacked(before)
        if turn:
            wanted = (wanted.reshape(-1, turn) @ hadamard(turn)).reshape(wanted.shape)
        blocks = np.abs(wanted.reshape(-1, 32)).max(axis=1, keepdims=True)
        # q4_0's last step on the side away from the furthest value is a whole one
        step = blocks / 127 * 0.51 if kind == "q8_0" else blocks / 8 * 1.01
        assert (np.abs((unpacked(after) - wanted).reshape(-1, 32)) <= step + 1e-3).all()


def test_hadamard_is_its_own_inverse() -> None:
    for size in (1, 2, 64, 128):
        assert hadamard(size) @ hadamard(size) == pytest.approx(np.eye(size), abs=1e-5)


def test_zeros_stay_zeros() -> None:
    """A block without anything in it has no scale to divide by."""
    empty = Plane("f16", np.zeros((3, 256), np.uint8))
    slot = msgspec.structs.replace(made(3), keys=(empty,), values=(empty,))
    for kind in ("q8_0", "q4_0"):
        stored = stored_at(slot, kind, kind, 64, 64)  # type: ignore[arg-type]
        assert not unpacked(stored.keys[0]).any()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_told(data: st.DataObject) -> None:
    """Whatever is cut off or changed, it is read or refused with a reason: nothing else is raised."""
    body = bytearray(write(made(3, 32, 1), 2))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if body:
            body[data.draw(st.integers(0, min(len(body), 120) - 1))] = data.draw(st.integers(0, 255))
    try:
        slot = read(bytes(body))
    except SlotFileProblem:
        return
    assert read(write(slot, slot.streams)).length == slot.length


def test_what_was_rounded_is_not_rounded_again() -> None:
    stored = stored_at(made(), "q8_0", "q8_0", 64, 64)
    with pytest.raises(SlotFileProblem, match="not at 16 bits"):
        stored_at(stored, "q4_0", "q4_0", 64, 64)


# --- with llama.cpp ---


@asynccontextmanager
async def worker(model: Path, key_type: str, value_type: str, slots: int, folder: Path) -> AsyncIterator[Any]:
    """Asks a llama.cpp that can save slots: `post(path, body)`."""
    config = ModelConfig("m", path=str(model), context=512, slots=slots, threads=1)
    config = msgspec.structs.replace(config, kv_type_k=key_type, kv_type_v=value_type)  # type: ignore[arg-type]
    number, key = kept_port(), llama_worker.new_key()
    order = [sys.executable, str(BENCH / "control_engine.py"), msgspec.json.encode(config).decode(), str(number)]
    environment = os.environ | llama_worker.environment(key) | lifeline.environment()
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*order, str(folder), stdin=pipe, env=environment)

    def ask(path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{number}{path}"
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60
        ) as said:
            answer: dict[str, Any] = json.load(said)
            return answer

    async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(ask, path, body)

    try:
        async with asyncio.timeout(100):
            while True:
                try:
                    await post("/tokenize", {"content": "a"})
                    break
                except OSError:
                    await asyncio.sleep(0.1)
        yield post
    finally:
        child.kill()
        await child.communicate()


def body(slot: int, tokens: int = 1) -> dict[str, Any]:
    fields = {"cache_prompt": True, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
    return {"prompt": PROMPT, "n_predict": tokens, "id_slot": slot, **fields}


@pytest.fixture(scope="module")
def sixty_four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers with heads of 64, which llama.cpp turns before it quantises them."""
    spec = importlib.util.spec_from_file_location("llama_shape", BENCH / "llama_shape.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["llama_shape"] = shapes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shapes)
    path = tmp_path_factory.mktemp("model") / "small.gguf"
    shapes.write(path, shapes.Shape(layers=2, width=128, heads=2, kv_heads=1, inner=256))
    return path


@pytest.mark.parametrize("kinds", [("q8_0", "q8_0"), ("q4_0", "q4_0"), ("q8_0", "q4_0")])
@pytest.mark.parametrize("model", ["builtin", "sixty_four"])
async def test_a_prompt_read_at_16_bits_goes_on_at_fewer(
    kinds: tuple[StoredType, StoredType], model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """What we store is what llama.cpp stores itself (first layer; but for what rounding to 16 bits moves); it takes
    it into one of three slots, and goes on without reading the prompt again."""
    from sekisho.engines import builtin

    path = builtin.path() if model == "builtin" else request.getfixturevalue(model)
    head = 32 if model == "builtin" else 64
    async with worker(path, "f16", "f16", 1, tmp_path) as post:
        await post("/completion", body(0))
        await post("/slots/0?action=save", {"filename": "sixteen.bin"})
    ours = stored_at(read((tmp_path / "sixteen.bin").read_bytes()), *kinds, head, head)
    async with worker(path, *kinds, 3, tmp_path) as post:
        await post("/completion", body(0))
        await post("/slots/0?action=save", {"filename": "theirs.bin"})
        theirs = read((tmp_path / "theirs.bin").read_bytes())
        assert (
            (ours.key_turn, ours.value_turn)
            == (theirs.key_turn, theirs.value_turn)
            == ((0, 0) if head == 32 else (64, 64))
        )
        for mine, other in ((ours.keys[0], theirs.keys[0]), (ours.values[0], theirs.values[0])):
            assert mine.type == other.type
            assert mine.rows.shape == other.rows.shape
            assert (mine.rows == other.rows).mean() > 0.95
            apart = np.abs(unpacked(mine) - unpacked(other))
            assert apart.mean() < 0.02 * np.abs(unpacked(other)).mean()
        (tmp_path / "ours.bin").write_bytes(write(ours, theirs.streams))
        assert (await post("/slots/2?action=restore", {"filename": "ours.bin"}))["n_restored"] == ours.length
        answer = await post("/completion", body(2, 8))
        assert answer["timings"]["prompt_n"] == 1
        assert answer["timings"]["cache_n"] == ours.length - 1
        assert len(answer["tokens"]) == 8
