"""A cache that was saved is the cache, and nothing else is taken for one."""

import os
import stat
import warnings
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
pytest.importorskip("safetensors", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

import hypothesis.strategies as st
import msgspec
from hypothesis import HealthCheck, given, settings
from rows_shadow import CPU, Shadow, shadow
from safetensors.torch import load_file, save_file

from sekisho.kv import storage
from sekisho.kv.attention import Call, decode
from sekisho.kv.kernels.reference import decode_attention
from sekisho.kv.policy import KVPolicy
from sekisho.kv.rows import HeadShape, TieredRows
from sekisho.kv.statistics import statistics
from sekisho.kv.storage import Damaged, NotACache, OtherShape, OtherVersion, StorageError, load, save

pytestmark = pytest.mark.kv

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def lived(policy: KVPolicy, dtype: "torch.dtype" = torch.float16, window: int | None = None, seed: int = 0) -> Shadow:
    """Rows that have been through something: ragged, forked, cropped, looked at."""
    shade = shadow(policy, HeadShape(2, 16, dtype, CPU), window, seed)
    shade.add_rows(2)
    shade.extend(600, [0, 200], known=True)
    shade.select([0, 1, 0])
    shade.observe()
    shade.extend(70, [0, 5, 60])
    shade.drop_last(30)
    shade.apply(msgspec.structs.replace(policy, recent_window=32))
    return shade


def look(rows: TieredRows, seed: int) -> "torch.Tensor":
    """One step of decoding, which also stores a token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, rows.batch, 2, 1, 16, generator=generator).to(rows.shape.dtype)
    query = torch.randn(rows.batch, 4, 1, 16, generator=generator).to(rows.shape.dtype)
    return look_at(rows, query, *tokens)


def look_at(rows: TieredRows, query: "torch.Tensor", keys: "torch.Tensor", values: "torch.Tensor") -> "torch.Tensor":
    return decode(rows, query, keys, values, Call(0.25), decode_attention)


def same_views(one: TieredRows, other: TieredRows, slots: bool = True) -> None:
    """Whether kernels would see the same. `slots`: also in the same places of the pools."""
    query = torch.randn(one.batch, 4, 16, generator=torch.Generator().manual_seed(1))
    first, second = one.view(query, 0.5), other.view(query, 0.5)
    names = ("rotated_query", "key_bias", "formats", "page_count", "first_visible", *(["slots"] if slots else []))
    for name in names:
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    for mine, theirs in ((first.sinks, second.sinks), (first.recent, second.recent)):
        assert torch.equal(mine.length, theirs.length)
        assert mine.keys.shape == theirs.keys.shape
    assert first.pools.keys() == second.pools.keys()
    for mine, theirs in zip(one.materialise(), other.materialise(), strict=True):
        assert torch.equal(mine, theirs)


@given(
    budget=st.sampled_from([None, 0.1, 0.3]),
    evict=st.booleans(),
    host_copy=st.booleans(),
    sinks=st.sampled_from([0, 16]),
    dtype=st.sampled_from(DTYPES),
    window=st.sampled_from([None, 120]),
)
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
def test_a_saved_cache_is_itself_again(
    tmp_path_factory: pytest.TempPathFactory,
    budget: float | None,
    evict: bool,
    host_copy: bool,
    sinks: int,
    dtype: "torch.dtype",
    window: int | None,
) -> None:
    """Same views, same statistics, same policy, same attention now and in the steps after, bit for bit; slots and
    copies are held as they were, so that the loaded rows live on as any others."""
    policy = KVPolicy(budget=budget, evict=evict, host_copy=host_copy, sinks=sinks)
    path = tmp_path_factory.mktemp("saved") / "cache"
    shades = [lived(policy, dtype, each, seed) for seed, each in enumerate((None, window))]
    tiers = [shade.rows for shade in shades]
    before = statistics(tiers)
    save(path, tiers, tiers[0].policy, 640)
    assert statistics(tiers) == before
    found = load(path, CPU)
    assert (found.policy, found.seen) == (tiers[0].policy, 640)
    assert statistics(found.tiers) == before
    for mine, theirs in zip(tiers, found.tiers, strict=True):
        assert (mine.shape, mine.window, mine.policy, mine.lengths) == (
            theirs.shape,
            theirs.window,
            theirs.policy,
            theirs.lengths,
        )
        same_views(mine, theirs)
        for step in range(3):
            assert torch.equal(look(mine, step), look(theirs, step))
        same_views(mine, theirs, slots=False)
    found.tiers[0].apply(policy)
    found.tiers[0].select([])
    assert found.tiers[0].allocated_bytes == 0


def test_an_empty_cache_can_be_saved(tmp_path: Path) -> None:
    """No layers; a layer without rows; rows without tokens."""
    bare, waiting = shadow(KVPolicy(sinks=3)), shadow(KVPolicy(sinks=3))
    waiting.add_rows(2)
    for tiers in ([], [bare.rows], [waiting.rows]):
        save(tmp_path / "cache", tiers, KVPolicy(), 0)
        found = load(tmp_path / "cache", CPU)
        assert [rows.lengths for rows in found.tiers] == [rows.lengths for rows in tiers]
    assert found.tiers[0].sink_room == 3
    same_views(found.tiers[0], waiting.rows)


def test_shared_pages_are_stored_once_and_shared_again(tmp_path: Path) -> None:
    """Three forks of a prompt take little more of a disk than one, and share their pages when they are loaded."""
    sizes = []
    for forks in (1, 3):
        shade = shadow(KVPolicy(budget=0.6), HeadShape(2, 64, torch.float16, CPU))
        shade.add_rows(1)
        shade.extend(3000)
        shade.select([0] * forks)
        save(tmp_path / "cache", [shade.rows], shade.rows.policy, 3000)
        sizes.append((tmp_path / "cache").stat().st_size)
        shade.rows = load(tmp_path / "cache", CPU).tiers[0]
        shade.check()
    assert sizes[1] < 1.3 * sizes[0]


def test_a_loaded_prefix_serves_several_continuations(tmp_path: Path) -> None:
    """A prompt that was saved once is loaded and forked; each fork goes its own way, exactly as if it had been alone,
    whatever the others add, take back or forget."""
    policy = KVPolicy(budget=0.3)
    prompt = shadow(policy)
    prompt.add_rows(1)
    prompt.extend(500, known=True)
    save(tmp_path / "prompt", [prompt.rows], policy, 500)
    together = load(tmp_path / "prompt", CPU).tiers[0]
    together.select([0, 0, 0])
    alone = [load(tmp_path / "prompt", CPU).tiers[0] for _ in range(3)]
    generator = torch.Generator().manual_seed(3)
    for step in range(140):
        tokens = torch.randn(2, 3, 2, 1, 16, generator=generator)
        query = torch.randn(3, 4, 1, 16, generator=generator)
        found = look_at(together, query, *tokens)
        for row, rows in enumerate(alone):
            mine = look_at(rows, *(each[row : row + 1] for each in (query, *tokens)))
            assert torch.allclose(found[row], mine[0], atol=1e-5), (step, row)
    together.select([1])
    for mine, theirs in zip(together.materialise(), alone[1].materialise(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    again = load(tmp_path / "prompt", CPU).tiers[0]
    same_views(again, prompt.rows)


def test_half_a_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where writing fails, what was there stays, and nothing is left beside it."""
    path = tmp_path / "cache"
    save(path, [lived(KVPolicy()).rows], KVPolicy(), 1)
    before = path.read_bytes()

    def full(tensors: object, name: Path, header: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(path, [lived(KVPolicy()).rows], KVPolicy(), 1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """Keys and values can be turned back into what somebody wrote."""
    previous = os.umask(0)
    try:
        save(tmp_path / "cache", [lived(KVPolicy()).rows], KVPolicy(), 1)
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o600


def test_what_was_taken_back_is_not_in_the_file(tmp_path: Path) -> None:
    """Tokens that no row has any more are in the rows' memory perhaps, in the file they are not."""
    shade = shadow(KVPolicy())
    shade.add_rows(1)
    shade.extend(40)
    secret = torch.full((1, 2, 3, 16), 1234.5)
    shade.rows.extend(secret, secret)
    shade.rows.drop_last(3)
    save(tmp_path / "cache", [shade.rows], KVPolicy(), 40)
    assert secret[0, 0, 0].numpy().tobytes() not in (tmp_path / "cache").read_bytes()


def test_a_strange_file_is_refused(tmp_path: Path) -> None:
    """Nothing, noise, somebody else's safetensors file: none of them is a cache; a file that is not there is no
    StorageError."""
    path = tmp_path / "cache"
    for content in (b"", b"x", b"\x08" + bytes(7) + b"not json", bytes(range(256)) * 40, b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(NotACache, match="is not a saved cache"):
            load(path, CPU)
    for header in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, path, header)
        with pytest.raises(NotACache, match="is not a saved cache"):
            load(path, CPU)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing", CPU)


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names both versions."""
    monkeypatch.setattr(storage, "VERSION", 7)
    save(tmp_path / "cache", [], KVPolicy(), 0)
    monkeypatch.undo()
    with pytest.raises(OtherVersion, match=r"version 7 .* version 1"):
        load(tmp_path / "cache", CPU)


def test_a_file_from_before_modes_were_presets_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first files name a mode beside all the fields, which alone count; an unknown field is damage."""
    path, policy = tmp_path / "cache", KVPolicy(recent_window=32, budget=0.6)
    plain, rows = msgspec.to_builtins, lived(policy).rows
    for more in ({"mode": "quality_optimized"}, {"mode": "dynamic"}, {"fashion": 1}):
        monkeypatch.setattr(storage.msgspec, "to_builtins", lambda each, more=more: more | plain(each))
        save(path, [rows], policy, 1)
        monkeypatch.undo()
        if "mode" in more:
            assert load(path, CPU).policy == policy
        else:
            with pytest.raises(Damaged, match="fashion"):
                load(path, CPU)


@pytest.mark.parametrize(
    "shape",
    [
        HeadShape(1, 16, torch.float16, CPU),
        HeadShape(2, 32, torch.float16, CPU),
        HeadShape(2, 16, torch.bfloat16, CPU),
        None,
    ],
    ids=["heads", "numbers", "type", "layers"],
)
def test_a_cache_of_another_model_is_refused(tmp_path: Path, shape: HeadShape | None) -> None:
    """Where heads, their numbers, their type or the layers differ, the error says what is there and what is wanted."""
    path = tmp_path / "cache"
    save(path, [lived(KVPolicy()).rows], KVPolicy(), 1)
    fits = HeadShape(2, 16, torch.float16, CPU)
    assert load(path, CPU, [fits]).seen == 1
    with pytest.raises(OtherShape, match="the model has"):
        load(path, CPU, [shape] if shape else [fits, fits])


@given(cut=st.floats(0, 0.9999))
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_a_file_that_was_cut_off_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    """Wherever it ends."""
    path = tmp_path_factory.mktemp("cut") / "cache"
    shade = shadow(KVPolicy())
    shade.add_rows(1)
    shade.extend(200)
    save(path, [shade.rows], KVPolicy(), 1)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(StorageError, match=r"cut off|damaged"):
        load(path, CPU)


@given(where=st.floats(0, 0.9999), bit=st.integers(0, 7))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_a_bit_that_flipped_is_noticed(tmp_path_factory: pytest.TempPathFactory, where: float, bit: int) -> None:
    """Anywhere in the file: an accident never loads as another content."""
    path = tmp_path_factory.mktemp("flip") / "cache"
    shade = shadow(KVPolicy(host_copy=True))
    shade.add_rows(1)
    shade.extend(200)
    save(path, [shade.rows], KVPolicy(), 1)
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(StorageError):
        load(path, CPU)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.slots", lambda each: each + 1000),
        ("0.slots", lambda each: each - 1000),
        ("0.slots", lambda each: each[:, :, 1:]),
        ("0.slots", lambda each: each.long()),
        ("0.formats", lambda each: each * 0 + 5),
        ("0.formats", lambda each: each * 0 + 99),
        ("0.copies", lambda each: each + 500),
        ("0.recent.keys", lambda each: each[:, :, :5]),
        ("0.recent.keys", lambda each: each[..., :8]),
        ("0.recent.keys", lambda each: each.repeat(1, 1, 50, 1)),
        ("0.means.values", lambda each: each.flatten()),
        ("0.hits", None),
        ("0.hits", lambda each: each.float()),
        ("0.pool.host.pages", None),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, name: str, change: object) -> None:
    """A file whose tables point out of its pools, or whose shapes disagree, never reaches a kernel."""
    path = tmp_path / "cache"
    save(path, [lived(KVPolicy(host_copy=True)).rows], KVPolicy(), 1)
    with storage.safe_open(path, "pt") as stored:
        header = stored.metadata()
    tensors = load_file(path)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name]).contiguous()  # type: ignore[operator]
    # Whoever writes a file of their own can write its digest.
    header["sekisho.kv.digest"] = storage._digest(header["sekisho.kv.facts"], tensors)
    save_file(tensors, path, header)
    with pytest.raises(Damaged, match="damaged in layer 0"):
        load(path, CPU)
