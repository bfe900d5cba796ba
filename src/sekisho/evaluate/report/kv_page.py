"""The page of `sekisho kv bench`: one file, no scripts, in one language. Takes the results as plain JSON values, so
that it can be made where PyTorch is not."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sekisho.evaluate.definitions import Language, Words, pick, plain_number
from sekisho.evaluate.report.kv_charts import Point, tradeoff
from sekisho.evaluate.report.page import POLICY, STYLES
from sekisho.evaluate.report.text import visible

Row = Mapping[str, Any]
_DASH: Final = "—"
_FAMILIES: Final[dict[str, Words]] = {
    "tiered": ("tiered (ours)", "階層キャッシュ（本製品）"),
    "kivi": ("KIVI style", "KIVI 方式"),
    "uniform": ("one width for all", "一律の幅"),
    "transformers": ("transformers' quantised cache", "transformers の量子化キャッシュ"),
    "evicting": ("dropping tokens (SnapKV, H2O)", "トークンを捨てる方式（SnapKV、H2O）"),
}
WORDS: Final[dict[str, Words]] = {
    "title": ("KV caches compared", "KV キャッシュの比較"),
    "quality": ("What the model still says", "モデルの出力がどれだけ保たれるか"),
    "quality_note": (
        "Perplexity and next-token distributions of the last part of long texts, against full precision on the same "
        "positions. In brackets: 95 % bootstrap over blocks of text.",
        "長い文章の最後の部分での、パープレキシティと次トークン分布。同じ位置の全精度と比べる。括弧内は文章のブロックによる"
        "ブートストラップの 95 % 区間。",
    ),
    "needles": ("Facts found again", "埋めた事実を見つけられるか"),
    "memory": ("Memory, measured", "メモリ（実測）"),
    "speed": ("Speed of a decode step", "デコード 1 ステップの速さ"),
    "cache": ("cache", "キャッシュ"),
    "share": ("bytes, % of 16 bits", "バイト数（16 ビット比 %）"),
    "delta": ("Δ perplexity, %", "Δ パープレキシティ（%）"),
    "mean": ("mean KL", "平均 KL"),
    "p99": ("p99 KL", "p99 KL"),
    "agreement": ("same next token, %", "次トークン一致（%）"),
    "asked": ("asked", "質問の位置"),
    "recall": ("found", "発見"),
    "full": ("full precision", "全精度"),
    "shape": ("model", "モデル"),
    "tokens": ("tokens", "トークン"),
    "batch": ("sequences at once", "同時の系列数"),
    "layers": ("layers measured", "計測した層"),
    "megabytes": ("MiB", "MiB"),
    "step": ("ms", "ミリ秒"),
    "relative": ("times as fast as", "速度比の基準"),
    "absent": ("Not measured", "未計測"),
    "environment": ("Where", "環境"),
}


def render(results: Row, language: Language = "en") -> str:
    """`results` as `sekisho.kv.bench.run.Results` in JSON."""
    template = _environment().from_string(_asset("kv.html.j2"))
    points = [point for row in results["quality"] if (point := _point(row)) is not None]
    return template.render(
        language=language,
        policy=POLICY,
        style=Markup("\n".join(map(_asset, STYLES))),
        words={key: pick(both, language) for key, both in WORDS.items()},
        picture=Markup(tradeoff(points, language)) if points else None,
        quality=[quality_cells(row) for row in results["quality"]],
        needles=[needle_cells(row) for row in results["needles"]],
        memory=[memory_cells(row) for row in results["memory"]],
        speed=[speed_cells(row) for row in results["speed"]],
        absent=results["absent"],
        environment=results["environment"],
        plan={name: value for name, value in results["plan"].items() if not isinstance(value, Mapping)},
    )


def name_of(row: Row) -> str:
    """`kivi-2bit-g32 at 25 %`."""
    entry = row["entry"]
    return entry["name"] if entry["target"] is None else f"{entry['name']} at {entry['target'] * 100:g} %"


def quality_cells(row: Row) -> list[str]:
    """Name, share, ΔPPL, mean and p99 KL, agreement; what is missing says why in the first of them."""
    return [
        name_of(row),
        _told(row["share"], 100),
        _told(row["delta_perplexity"], 100, signed=True, interval=True),
        _told(row["mean_divergence"], interval=True),
        _told(row["p99_divergence"]),
        _told(row["agreement"], 100),
    ]


def needle_cells(row: Row) -> list[str]:
    return [name_of(row), row["asked"], _told(row["share"], 100), _counted(row["recall"]), _counted(row["full"])]


def memory_cells(row: Row) -> list[str]:
    bytes_held = dict(row["bytes"])
    if bytes_held["value"] is not None:
        bytes_held["value"] /= 2**20
    layers = f"{row['layers_measured']} / {row['layers']}"
    return [name_of(row), row["shape"], f"{row['tokens']:,}", layers, _told(row["share"], 100), _told(bytes_held)]


def speed_cells(row: Row) -> list[str]:
    layers = f"{row['layers_measured']} / {row['layers']}"
    relative = _told(row["relative"], interval=True)
    against = f"{relative} × {row['reference']}" if row["relative"]["value"] is not None else relative
    size = [f"{row['tokens']:,}", str(row["batch"]), layers]
    return [name_of(row), row["subject"], *size, _told(row["step_ms"]), against]


def _point(row: Row) -> Point | None:
    share, divergence, name = row["share"]["value"], row["mean_divergence"]["value"], row["entry"]["name"]
    if share is None or divergence is None or name == "full":
        return None  # full precision against itself would only press the others together
    kind = "evicting" if name in ("snapkv", "h2o") else name.partition("-")[0]
    return Point(name_of(row), _FAMILIES.get(kind, (name, name)), share, divergence)


def _told(figure: Row, times: float = 1.0, *, signed: bool = False, interval: bool = False) -> str:
    """A figure with its interval, or why there is none."""
    if figure["value"] is None:
        return visible(figure["reason"] or _DASH)
    told = _number(figure["value"] * times, signed)
    if interval and figure["low"] is not None:
        told += f" [{_number(figure['low'] * times, signed)}, {_number(figure['high'] * times, signed)}]"
    return told


def _number(value: float, signed: bool) -> str:
    return ("+" if signed and value > 0 else "") + plain_number(value)


def _counted(figure: Row) -> str:
    if figure["value"] is None:
        return visible(figure["reason"] or _DASH)
    return f"{round(figure['value'] * figure['n'])} / {figure['n']}"


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@cache
def _asset(name: str) -> str:
    return (resources.files("sekisho.evaluate.report") / name).read_text(encoding="utf-8")
