"""Sequences that come, run together and go: round by round, in this process, with a tiny random model."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch", reason="needs the extra kv: pip install 'sekisho[kv]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that transformers loads where it finds them
    pytest.importorskip("transformers.cache_utils", reason="needs the extra kv: pip install 'sekisho[kv]'")

from sekisho.engines.config import ModelConfig
from sekisho.engines.torch_worker import model, tiers
from sekisho.engines.torch_worker.admission import idle_bytes, sequence_bytes
from sekisho.engines.torch_worker.batch import Answers
from sekisho.engines.torch_worker.model import Loaded
from sekisho.engines.torch_worker.refusal import CONTEXT, Refused
from sekisho.engines.torch_worker.requests import Ask
from sekisho.engines.torch_worker.runner import Runner
from sekisho.engines.torch_worker.sampling import SamplingSettings
from sekisho.engines.torch_worker.sequence import End, News, Piece, Sequence
from sekisho.kv import KVPolicy, LevelThresholds

pytestmark = pytest.mark.kv

DENSE = KVPolicy(budget=None, level_thresholds=LevelThresholds(0, 0, 0))
SMALL = KVPolicy(recent_window=16, sinks=4, budget=0.25)
GREEDY = SamplingSettings(temperature=0)


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Iterator[Loaded]:
    threads = torch.get_num_threads()
    yield model.load(ModelConfig("m", engine="torch", path=str(tiny_folder), threads=1, devices="cpu"), DENSE)
    torch.set_num_threads(threads)


class Stage:
    """A runner without a thread: `play` runs it round by round."""

    def __init__(self, loaded: Loaded, policy: KVPolicy = DENSE, **limits: int) -> None:
        chosen = {"slots": 8, "limit_bytes": 2**30, "chunk": 512} | limits
        self.runner = Runner(loaded, policy, publish=self._heard, **chosen)
        self.news: dict[Sequence, list[News]] = {}
        self.most_running = 0

    def _heard(self, answers: Answers) -> None:
        for sequence, news in answers:
            self.news[sequence] += news

    def enter(self, ask: Ask) -> Sequence:
        sequence = self.runner.plan(ask)
        self.news[sequence] = []
        self.runner.submit(sequence)
        return sequence

    def play(self, rounds: int | None = None) -> None:
        """To the end, or so many rounds. In each, what is allocated stays below what is reserved and allowed."""
        while self.busy if rounds is None else rounds > 0:
            self.runner.round()
            state = tiers.state(self.runner)
            self.most_running = max(self.most_running, state["running"])
            assert state["cache"]["bytes_allocated"] <= self.runner.reserved_bytes <= self.runner.limit_bytes
            rounds = None if rounds is None else rounds - 1

    @property
    def busy(self) -> bool:
        runner = self.runner
        return bool(runner._inbox or runner.waiting or runner.admitted)

    def text(self, sequence: Sequence) -> str:
        *_, end = self.news[sequence]
        assert isinstance(end, End), end
        return "".join(each.text for each in self.news[sequence] if isinstance(each, Piece))


def asked(prompt: int, most: int | None = 24, *, sampling: SamplingSettings = GREEDY, **fields: Any) -> Ask:
    """A prompt of so many tokens, another one for each number."""
    ids = [6 + (each * each + prompt) % 250 for each in range(prompt)]
    return Ask(ids, sampling, most, **{"stop": (), "ignore_end": True, "logprobs": None, **fields})


def alone(loaded: Loaded, ask: Ask, policy: KVPolicy = DENSE) -> str:
    stage = Stage(loaded, policy)
    sequence = stage.enter(ask)
    stage.play()
    return stage.text(sequence)


def test_a_sequence_says_what_the_model_says_without_us(loaded: Loaded) -> None:
    """Greedy, in full precision, prompt in portions: the tokens that transformers' own cache and attention give."""
    ask = asked(300, 40)
    reference = type(loaded.model)(loaded.model.config)
    reference.load_state_dict(loaded.model.state_dict())
    reference.set_attn_implementation("eager")
    ids = torch.tensor([ask.prompt])
    settings = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None}
    try:
        said = reference.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, 300:].tolist()
    finally:
        loaded.model.set_attn_implementation("sekisho")  # both models share the configuration
    stage = Stage(loaded, chunk=64)
    sequence = stage.enter(ask)
    stage.play()
    assert stage.text(sequence) == loaded.decoder.decode(said, skip_special_tokens=True)


def test_eight_together_say_what_each_says_alone(loaded: Loaded) -> None:
    """Prompts from 1 to 700 tokens, answers of different lengths, coming one after the other and leaving when they
    end: greedy, in full precision, each text is the one that it is alone."""
    asks = [asked(prompt, 20 + 7 * at) for at, prompt in enumerate((1, 700, 2, 64, 65, 333, 17, 150))]
    stage = Stage(loaded, chunk=100)
    sequences = []
    for ask in asks:
        sequences.append(stage.enter(ask))
        stage.play(2)
    stage.play()
    assert stage.most_running > 4
    assert [stage.text(each) for each in sequences] == [alone(loaded, ask) for ask in asks]
    ends = [stage.news[each][-1] for each in sequences]
    assert ends == [End("length", len(ask.prompt), ask.max_tokens or 0) for ask in asks]


def test_running_streams_go_on_while_a_prompt_is_read(loaded: Loaded) -> None:
    """A prompt of ten portions: in each of those rounds, who runs already gets a token."""
    stage = Stage(loaded, chunk=50)
    first = stage.enter(asked(5, 60))
    stage.play(3)
    said = first.position
    stage.enter(asked(500))
    stage.play(10)
    assert first.position == said + 10
    assert len(stage.runner.batch.running) == 2


def test_a_cancelled_sequence_frees_its_memory_in_one_round(loaded: Loaded) -> None:
    """Running, reading its prompt or waiting: one round later it holds nothing, and the others say what they would."""
    stage = Stage(loaded, chunk=100, slots=3)
    asks = [asked(300, 30), asked(200, 50), asked(400, 30), asked(10, 30)]
    kept, *gone = [stage.enter(ask) for ask in asks]
    stage.play(8)
    runner = stage.runner
    assert [len(each) for each in (runner.batch.running, runner.prefilling, runner.waiting)] == [2, 1, 1]
    for each in gone:
        runner.cancel(each)
    runner.round()
    assert runner.admitted == [kept]
    assert not runner.waiting
    assert all(tier.batch == 1 for tier in runner.batch.cache.tiers)
    stage.play()
    assert stage.text(kept) == alone(loaded, asks[0])
    assert runner.batch.cache is None
    assert tiers.state(runner)["tokens"] == 0


def test_only_as_many_run_as_memory_holds(loaded: Loaded) -> None:
    """With room for two, five run two at a time in the order of their coming, and each says what it says alone."""
    cost = sequence_bytes(loaded.layers, DENSE, 320)
    stage = Stage(loaded, limit_bytes=idle_bytes(loaded.layers, DENSE) + 2 * cost)
    asks = [asked(300 + number, 20 - number) for number in range(5)]
    sequences = [stage.enter(ask) for ask in asks]
    came: list[Sequence] = []
    while stage.busy:
        stage.play(1)
        assert len(stage.runner.admitted) <= 2
        came += [each for each in sequences if each in stage.runner.admitted and each not in came]
    assert came == sequences
    assert stage.most_running == 2
    assert [stage.text(each) for each in sequences] == [alone(loaded, ask) for ask in asks]


def test_what_can_never_fit_is_refused_at_once(loaded: Loaded) -> None:
    """Asked for more than memory could ever hold is an error of the context; what names no length gets what fits."""
    limit = idle_bytes(loaded.layers, SMALL) + sequence_bytes(loaded.layers, SMALL, 400)
    stage = Stage(loaded, SMALL, limit_bytes=limit)
    context = stage.runner.context
    assert 400 <= context < 600
    for ask in (asked(300, 600), asked(context), asked(5000)):
        with pytest.raises(Refused) as caught:
            stage.runner.plan(ask)
        assert (caught.value.status, caught.value.code) == (400, CONTEXT)
    sequence = stage.enter(asked(300, None))
    stage.play()
    assert stage.news[sequence][-1] == End("length", 300, context - 300)


def test_a_policy_changes_under_open_streams(loaded: Loaded) -> None:
    """A smaller budget takes memory from what runs, at once; all streams go on to their ends."""
    stage = Stage(loaded, DENSE, chunk=128)
    sequences = [stage.enter(asked(600 + each, 60)) for each in range(3)]
    stage.play(18)
    before = tiers.state(stage.runner)
    assert (before["running"], set(before["cache"]["formats"])) == (3, {"dense"})
    stage.runner.change(msgspec.structs.replace(DENSE, budget=0.25, level_thresholds=LevelThresholds()))
    after = tiers.state(stage.runner)
    assert after["cache"]["bytes_used"] < before["cache"]["bytes_used"] * 0.6
    assert "dense" not in after["cache"]["formats"]
    assert after["reserved_bytes"] < before["reserved_bytes"]
    late = stage.enter(asked(100, 10))
    stage.play()
    assert all(isinstance(stage.news[each][-1], End) for each in (*sequences, late))


def test_a_policy_that_does_not_fit_is_refused_whole(loaded: Loaded) -> None:
    """More bytes than memory holds for what runs, or other sinks: refused by name, and nothing has changed."""
    limit = idle_bytes(loaded.layers, DENSE) + 2 * sequence_bytes(loaded.layers, SMALL, 700)
    stage = Stage(loaded, SMALL, limit_bytes=limit)
    sequences = [stage.enter(asked(600, 60)) for _ in range(2)]
    stage.play(6)
    for change, field in (({"budget": 1.0}, "budget"), ({"sinks": 8}, "sinks")):
        with pytest.raises(Refused) as caught:
            stage.runner.change(msgspec.structs.replace(SMALL, **change))
        assert caught.value.param == field
    assert stage.runner.policy == SMALL
    stage.play()
    assert all(stage.text(each) for each in sequences)


def test_who_waits_for_what_no_longer_fits_is_told(loaded: Loaded) -> None:
    """A waiting sequence that a new policy leaves no room for is refused and holds up nobody."""
    limit = idle_bytes(loaded.layers, DENSE) + sequence_bytes(loaded.layers, SMALL, 1000)
    stage = Stage(loaded, SMALL, limit_bytes=limit, slots=1)
    first, waiting, after = stage.enter(asked(40, 30)), stage.enter(asked(900, 90)), stage.enter(asked(30, 5))
    stage.play(3)
    stage.runner.change(msgspec.structs.replace(SMALL, budget=1.0))
    stage.play()
    assert [each.code for each in stage.news[waiting] if isinstance(each, Refused)] == [CONTEXT]
    assert stage.text(first)
    assert stage.text(after)


def test_a_seed_gives_the_same_text_in_any_company(loaded: Loaded) -> None:
    """Sampled with a seed, a text is the same alone, beside others, and again; another seed gives another one."""

    def seeded(seed: int) -> Ask:
        return asked(80, 40, sampling=SamplingSettings(temperature=0.9, top_p=0.95, top_k=50, seed=seed))

    texts = [alone(loaded, seeded(seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    stage = Stage(loaded)
    others = [stage.enter(asked(30 * each, 10 * each, sampling=SamplingSettings(seed=each))) for each in (1, 2, 3)]
    stage.play(3)
    again = stage.enter(seeded(1))
    stage.play()
    assert stage.text(again) == texts[0]
    assert all(stage.text(each) for each in others)


def test_a_stop_string_cuts_the_text_wherever_it_stands(loaded: Loaded) -> None:
    """Every part of the model's own text, as a stop string: the text ends before it, no piece shows a bit of it, and
    the logprobs that come are those of tokens that are shown."""
    whole = alone(loaded, asked(50, 30))
    for start in range(0, len(whole), 3):
        for length in (1, 2, 5, 9):
            stop = whole[start : start + length]
            stage = Stage(loaded)
            sequence = stage.enter(asked(50, 30, stop=("never said", stop), logprobs=0))
            stage.play()
            assert stage.text(sequence) == whole[: whole.index(stop)]
            end = stage.news[sequence][-1]
            assert isinstance(end, End)
            assert (end.reason, end.stop) == ("stop", stop)
            noted = [each for piece in stage.news[sequence] if isinstance(piece, Piece) for each in piece.logprobs]
            assert len(noted) <= end.completion_tokens
            if not stage.text(sequence):
                assert not noted


def test_an_end_token_ends_and_is_not_shown(loaded: Loaded) -> None:
    """The model's own end is a stop, unless the request says to pass over it."""
    bias = SamplingSettings(temperature=0, logit_bias={1: 100.0})
    stage = Stage(loaded)
    ended, ignored = stage.enter(asked(9, 8, sampling=bias, ignore_end=False)), stage.enter(asked(9, 8, sampling=bias))
    stage.play()
    assert stage.news[ended] == [End("stop", 9, 1)]
    assert stage.news[ignored] == [End("length", 9, 8)]


def test_every_token_has_its_logprob(loaded: Loaded) -> None:
    """As many as tokens, the alternatives best first, and a greedy token is the best of them."""
    stage = Stage(loaded)
    sequence = stage.enter(asked(20, 12, logprobs=3))
    stage.play()
    noted = [each for piece in stage.news[sequence] if isinstance(piece, Piece) for each in piece.logprobs]
    assert len(noted) == 12
    for each in noted:
        assert len(each.best) == 3
        assert each.best[0] == (each.token, each.logprob)
        assert [value for _, value in each.best] == sorted((value for _, value in each.best), reverse=True)


def test_an_error_ends_only_what_it_befell(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that breaks the model is told 500; who runs goes on. A broken step ends who runs; the next is served."""
    stage = Stage(loaded)
    first = stage.enter(asked(30, 30))
    stage.play(4)
    step = Loaded.step

    def broken(self: Loaded, cache: Any, tokens: Any, starts: Any) -> Any:
        if len(tokens[0]) > 1:
            raise RuntimeError("out of memory")
        return step(self, cache, tokens, starts)

    monkeypatch.setattr(Loaded, "step", broken)
    second = stage.enter(asked(40, 10))
    stage.play()
    assert [each.status for each in stage.news[second] if isinstance(each, Refused)] == [500]
    assert stage.text(first) == alone_text(loaded, monkeypatch, step)
    monkeypatch.setattr(Loaded, "step", step)
    third = stage.enter(asked(30, 30))
    stage.play(4)
    monkeypatch.setattr(Loaded, "step", lambda *_: [][0])
    stage.play()
    assert isinstance(stage.news[third][-1], Refused)
    monkeypatch.setattr(Loaded, "step", step)
    fourth = stage.enter(asked(30, 30))
    stage.play()
    assert stage.text(fourth) == stage.text(first)


def alone_text(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, step: Any) -> str:
    with monkeypatch.context() as patched:
        patched.setattr(Loaded, "step", step)
        return alone(loaded, asked(30, 30))
