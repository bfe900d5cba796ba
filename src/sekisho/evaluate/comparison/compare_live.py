"""Two arms asked for real: items that can be judged without people, the asking, and the comparison's own page."""

import csv
import random
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.behaviour.continuity import SET, Language
from sekisho.evaluate.behaviour.gate import CHAT, run_gates
from sekisho.evaluate.behaviour.keywords import keyword
from sekisho.evaluate.client.answer import Expected
from sekisho.evaluate.client.answer_apis import read
from sekisho.evaluate.client.asking import Question, send
from sekisho.evaluate.client.exchange import Connections
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.comparison.compare import Comparison, Sample, forest
from sekisho.evaluate.comparison.compare_plan import Item, Observation, is_speed
from sekisho.evaluate.comparison.compare_verdict import MetricResult
from sekisho.evaluate.comparison.compare_words import NAMES
from sekisho.evaluate.figures import Figures
from sekisho.evaluate.paired import Decision
from sekisho.evaluate.report.data import Comparison as ComparisonPart
from sekisho.evaluate.report.data import ComparisonRow, ForestChart, Outcome, Ratio, State, VerdictPart
from sekisho.evaluate.speed.bench_tables import read_csv
from sekisho.evaluate.speed.prompts import prompts
from sekisho.evaluate.speed.samples import Sample as BenchSample
from sekisho.evaluate.verdict.criterion import Words

KEYWORDS = 80  # a margin of 5 % of correct answers needs 73
KEYWORD_TOKENS = 64
_STATES: dict[Decision, State] = {"adopt": "pass", "limited": "open", "reject": "fail"}
_OUTCOMES: dict[Decision, Outcome] = {"adopt": "adopt", "limited": "undecided", "reject": "reject"}
_DECISIONS: dict[Decision, Words] = {
    "adopt": ("no worse than its margin", "許容幅を超えて劣らない"),
    "limited": ("not shown", "未確定"),
    "reject": ("worse than its margin", "許容幅を超えて劣る"),
}
_LANGUAGES: tuple[Language, ...] = ("ja", "en")


def built_in_items(seed: int, max_tokens: int = 256) -> tuple[Item, ...]:
    """The benchmark's prompts, for speed, and keywords to be repeated, which are right or wrong without a judge."""
    chance = random.Random(seed)
    items = [Item(f"speed-{each.id}", each.text, max_tokens) for each in prompts().prompts]
    for number in range(KEYWORDS):
        word = keyword(chance, "ascii", number)
        text = SET[_LANGUAGES[number % 2]].format(keyword=word)
        items.append(Item(f"keyword-{number:02d}", text, KEYWORD_TOKENS, word))
    return tuple(items)


def read_items(path: Path) -> tuple[Item, ...]:
    """JSONL of {"id", "prompt", "max_tokens", "expected"}; `expected` must stand in a right answer. Raises
    InvalidRequest with the line."""
    items = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                items.append(msgspec.json.decode(line, type=Item))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidRequest(f"{path}:{number}: {error}", param="items") from error
    return tuple(items)


class LiveArms:
    """Asks the arms, each on kept connections of its own. `correct` is whether the expected text stands in the answer;
    None where an item expects none. `tok_s` is over the whole answer: what stands before an engine may hold text back,
    so that the decode window is not seen."""

    def __init__(self, arms: Mapping[str, Connections]) -> None:
        self._arms = arms

    async def ask(self, arm: str, item: Item) -> Observation:
        connections = self._arms[arm]
        question = Question(
            api="chat", said=(("user", item.prompt),), max_tokens=item.max_tokens, stream=True, more={"temperature": 0}
        )
        exchange = await send(connections, question)
        answer = read("chat", exchange, Expected((connections.target.model,), True, item.max_tokens))
        tokens = answer.completion_tokens
        return Observation(
            ok=answer.ok,
            faults=tuple(fault.kind for fault in answer.faults),
            ttft_ms=answer.first_text_ms,
            total_ms=answer.total_ms,
            tok_s=tokens / answer.total_ms * 1e3 if tokens and answer.total_ms > 0 else None,
            correct=item.expected in answer.text if item.expected else None,
        )


async def gates_open(target: Target) -> bool:
    """Whether the chat gates let the candidate pass: what fails them is not adopted, however fast it is."""
    results = await run_gates(target, ("models", *CHAT))
    return all(result.passed is not False for result in results)


def gates_passed(folder: Path) -> bool:
    """Whether every gate that a finished evaluation tried at its outermost address was passed."""
    figures = msgspec.json.decode((folder / "figures.json").read_bytes(), type=Figures)
    tried = [found for place in ("public", "gateway", "engine") if (found := figures.under(f"gate.{place}"))]
    return bool(tried) and all(figure.value is not False for figure in tried[0])


def samples_of_run(folder: Path) -> tuple[Sample, ...]:
    """What a finished evaluation has that can be paired: its benchmark's requests at the outermost place, and its
    conversations as right or wrong. Raises InvalidRequest where it has neither."""
    samples: list[Sample] = []
    if (folder / "bench.csv").exists():
        benched = read_csv((folder / "bench.csv").read_text("utf-8"))
        outermost = "public" if any(each.place == "public" for each in benched) else "gateway"
        places = {each.place for each in benched}
        place = outermost if outermost in places else "engine"
        samples += [_of_bench(each) for each in benched if each.place == place and each.loop == "closed"]
    for mode in ("chat", "responses"):
        samples += _of_conversations(folder / f"continuity_{mode}.csv", mode)
    if not samples:
        raise InvalidRequest(f"{folder} has nothing that could be compared: let it end first", param="runs")
    return tuple(samples)


def _of_bench(each: BenchSample) -> Sample:
    observation = Observation(ok=each.ok, faults=each.faults, ttft_ms=each.ttft_ms, total_ms=each.total_ms)
    return Sample(f"p{each.parallel}.t{each.tokens}.{each.index}.{each.prompt}", observation)


def _of_conversations(path: Path, mode: str) -> list[Sample]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Sample(f"{mode}-{row['conv_id']}", Observation(ok=_went_well(row), correct=row["continued"] == "1"))
            for row in csv.DictReader(file)
        ]


def _went_well(row: dict[str, str]) -> bool:
    return all(status.startswith("2") for status in (row["http1"], row["http2"], row["http3"]))


def verdict_part(found: Comparison) -> VerdictPart:
    """The first thing on the page: the sentence, and what is said of each metric."""
    first, *others = found.reasons or (("", ""),)
    told = [reason for result in found.metrics for reason in result.reasons[1:]]  # the first one repeats the figure
    return VerdictPart(outcome=_OUTCOMES[found.verdict], sentence=first, reasons=(*others, *told))


def comparison_part(found: Comparison) -> ComparisonPart:
    """For the report: a row a metric, and the forest plot."""
    first = found.reasons[0] if found.reasons else ("", "")
    method: Words = (
        f"{found.blocks} interleaved blocks of four requests (ABBA or BAAB, by a coin); margins set beforehand.",
        f"4 要求ずつの交互ブロック {found.blocks} 個（ABBA、順序は乱数）。許容幅は開始前に固定。",
    )
    if not found.interleaved:
        method = (
            "Two runs, one after the other: what can be paired is; speed is shown and not judged.",
            "順に行った 2 つの実行。対応づけられるものだけを対で比べ、速度は参考値とします。",
        )
    return ComparisonPart(
        a=found.arms[0],
        b=found.arms[1],
        sentence=first,
        state=_STATES[found.verdict],
        rows=tuple(_row(result) for result in found.metrics),
        method=method,
        charts=(_forest(found),),
    )


def _row(result: MetricResult) -> ComparisonRow:
    ratio = is_speed(result.metric)
    estimate = (
        "—" if result.estimate is None else f"{result.estimate:.3f}" if ratio else f"{100 * result.estimate:+.1f}"
    )
    what = "B/A = " if ratio else "B − A = "
    unit = ("", "") if ratio else (" points", " ポイント")
    interval = ("", "")
    if result.interval is not None:
        low, high = result.interval.low, result.interval.high
        told = f"[{low:.3f}, {high:.3f}]" if ratio else f"[{100 * low:+.1f}, {100 * high:+.1f}]"
        interval = (told, told)
    margin = f"{100 * result.margin:g} %" if ratio else f"{100 * result.margin:g}"
    return ComparisonRow(
        name=NAMES[result.metric],
        a=_arm(result.a.value, ratio),
        b=_arm(result.b.value, ratio),
        difference=(f"{what}{estimate}{unit[0]}", f"{what}{estimate}{unit[1]}"),
        interval=interval,
        margin=(f"{margin}{unit[0]}", f"{margin}{unit[1]}"),
        n=result.n,
        decision=_DECISIONS[result.verdict],
        state=_STATES[result.verdict],
    )


def _arm(value: float | None, ratio: bool) -> str:
    if value is None:
        return "—"
    return f"{value:.4g}" if ratio else f"{100 * value:.1f} %"


def _forest(found: Comparison) -> ForestChart:
    """To the right B is better."""
    rows = forest(found)
    return ForestChart(
        id="compare",
        title=("B against A, with the margin", "A に対する B と許容幅"),
        ratios=tuple(
            Ratio(name=row.name, value=row.estimate, low=row.low, high=row.high, margin=-row.margin) for row in rows
        ),
        scale="share",
        below=("B is worse", "B が劣る"),
        above=("B is better", "B が優れる"),
    )
