"""A day in the life of a cache: a policy change each minute, and all that happens between them."""

import random
import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")


from rows_shadow import CPU, Row, Shadow, shadow

from sekisho.kv.attention import Call, decode
from sekisho.kv.formats import EVICTED, PAGE
from sekisho.kv.kernels.reference import decode_attention
from sekisho.kv.policy import KVPolicy, LevelThresholds
from sekisho.kv.rows import HeadShape
from sekisho.kv.statistics import recount, statistics

pytestmark = pytest.mark.kv

MINUTES = 24 * 60
LADDERS = (KVPolicy().ladder, ((8, 8),), ((4, 4), (2, 2)), ((8, 4), (4, 3), (3, 2)), ((2, 2),))
MOST_ROWS, MOST_TOKENS = 4, 420
HEADS, GROUP, HEAD_DIM = 2, 2, 16


class Day:
    """Two layers, of which one sees only a window, live through the same events; all of them follow from the seed."""

    def __init__(self, seed: int, dtype: "torch.dtype") -> None:
        self.chance = random.Random(seed)
        shape = HeadShape(HEADS, HEAD_DIM, dtype, CPU)
        self.layers = [shadow(KVPolicy(), shape, window, seed + 1) for seed, window in enumerate((None, 150))]
        for layer in self.layers:
            layer.thorough = False
        self.outputs = 0

    @property
    def lengths(self) -> list[int]:
        return [row.length for row in self.layers[0].truth]

    def minute(self) -> None:
        """Some traffic, then another policy, after which everything is counted again."""
        self.traffic()
        for _ in range(self.chance.randint(0, 2)):
            self.decode()
        policy = self.policy()
        for layer in self.layers:
            layer.apply(policy)
        tiers = [layer.rows for layer in self.layers]
        assert statistics(tiers) == recount(tiers)

    def policy(self) -> KVPolicy:
        chance = self.chance
        high, middle, low = sorted((chance.random() for _ in range(3)), reverse=True)
        return KVPolicy(
            recent_window=chance.choice((16, 32, 64, 128, 512)),
            level_thresholds=chance.choice((LevelThresholds(), LevelThresholds(high, middle, low))),
            sinks=chance.choice((0, 16, 64)),
            budget=chance.choice((None, 0.1, 0.2, 0.25, 0.5, 1.0)),
            ladder=chance.choice(LADDERS),
            evict=chance.random() < 0.2,
            host_copy=chance.random() < 0.3,
            hysteresis=chance.choice((0.0, 0.05, 0.2)),
        )

    def traffic(self) -> None:
        rows = len(self.lengths)
        fits = [row for row, length in enumerate(self.lengths) if length < MOST_TOKENS]
        if len(fits) < rows:
            self.each("select", fits)
        match self.chance.choice(("arrive", "arrive", "leave", "fork", "crop", "wait", "wait", "close")):
            case "arrive" if len(fits) < MOST_ROWS:
                self.each("add_rows", 1)
                prompt = self.chance.choice((1, 20, 100, 200, 330))
                self.each("extend", prompt, [prompt] * len(fits) + [0], self.chance.random() < 0.8)
            case "leave" if fits:
                self.each("select", [row for row in range(len(fits)) if self.chance.random() < 0.7])
            case "fork" if 0 < len(fits) < MOST_ROWS:
                self.each("select", [*range(len(fits)), self.chance.randrange(len(fits))])
            case "crop" if fits:
                self.each("drop_last", self.chance.choice((1, 5, 70, 200)))
            case "close" if self.chance.random() < 0.1:
                self.close()

    def each(self, step: str, *arguments: object) -> None:
        for layer in self.layers:
            getattr(layer, step)(*arguments)

    def decode(self) -> None:
        for layer in self.layers:
            rows = len(layer.truth)
            if not rows:
                continue
            keys, values = layer.tokens(rows, 1)
            query = torch.randn(rows, HEADS * GROUP, 1, HEAD_DIM, generator=layer.generator).to(keys.dtype)
            output = decode(layer.rows, query, keys, values, Call(HEAD_DIM**-0.5), decode_attention)
            assert bool(output.isfinite().all())
            self.outputs += rows
            layer.truth = [
                Row(torch.cat((row.keys, key), 1), torch.cat((row.values, value), 1))
                for row, key, value in zip(layer.truth, keys, values, strict=True)
            ]

    def look_closely(self) -> None:
        """Every number against the shadow, and attention against a plain softmax over what the rows hold."""
        for layer in self.layers:
            layer.thorough = True
            layer.check()
            layer.thorough = False
            for row in range(len(layer.truth)):
                self.attention(layer, row)

    @staticmethod
    def attention(layer: Shadow, place: int) -> None:
        rows, length = layer.rows, layer.truth[place].length
        if length == 0:
            return
        query = torch.randn(rows.batch, HEADS * GROUP, HEAD_DIM, generator=layer.generator)
        partial = decode_attention(rows.view(query, 0.25))
        found = (partial.output + rows.restored(partial.rotated_output, partial.rotated_mass))[place]
        keys, values = (each[place, :, -length:].float().repeat_interleave(GROUP, 0) for each in rows.materialise())
        logits = torch.einsum("hd,htd->ht", query[place], keys) * 0.25
        gone = torch.zeros(HEADS, length, dtype=torch.bool)
        paged, sinks = rows.table.counts[place], rows.sink_lengths[place]
        formats = rows.table.formats[place, :, :paged]
        gone[:, sinks : sinks + paged * PAGE] = (formats == EVICTED).repeat_interleave(PAGE, 1)
        if rows.window is not None:
            gone[:, : max(0, length - rows.window)] = True
        weights = logits.masked_fill(gone.repeat_interleave(GROUP, 0), -torch.inf).softmax(-1).nan_to_num(0.0)
        expected = torch.einsum("ht,htd->hd", weights, values)
        tolerance = 0.05 if rows.shape.dtype == torch.bfloat16 else 0.01
        assert torch.allclose(found, expected, atol=tolerance, rtol=tolerance)

    def close(self) -> None:
        """Everybody leaves: nothing is held any more, on the device or on the host."""
        self.each("select", [])
        for layer in self.layers:
            assert layer.rows.allocated_bytes == 0
            assert layer.rows.table.host_bytes == 0


def live(minutes: int, seed: int, dtype: "torch.dtype") -> Day:
    day = Day(seed, dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these tensors are too small for more
    try:
        for minute in range(minutes):
            day.minute()
            if minute % 30 == 7:
                day.look_closely()
        day.close()
    finally:
        torch.set_num_threads(threads)
    return day


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_hour(dtype: "torch.dtype") -> None:
    """Sixty changes of policy among arrivals, forks, crops and decoding: attention is finite and right, nothing leaks,
    and the statistics are those of a recount at every change."""
    assert live(60, 1, dtype).outputs > 60


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0])
def test_a_day(seed: int) -> None:
    """The same for 24 hours of simulated time, 1,440 changes of policy."""
    assert live(MINUTES, seed, torch.float16).outputs > MINUTES
