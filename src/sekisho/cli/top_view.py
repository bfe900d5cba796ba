"""What `sekisho top` shows, as lines of text: a pure function of the agent's answers, made for 80 × 24."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

SPARKS = "▁▂▃▄▅▆▇█"
LEVEL_STYLES = {"L0": "cyan", "L1": "green", "L2": "yellow", "L3": "red"}
STATE_STYLES = {"healthy": "green", "degraded": "yellow", "failing": "red"}
OUTCOME_STYLES = {"applied": "green", "partly": "yellow", "failed": "red", "advised": "magenta", "nothing": "dim"}

WORDS: Mapping[str, tuple[str, str]] = {
    "policy": ("policy", "ポリシー"),
    "throughput": ("Throughput", "処理量"),
    "requests": ("requests", "要求"),
    "running": ("running", "実行中"),
    "waiting": ("waiting", "待機"),
    "latency": ("Latency", "応答時間"),
    "first": ("First token", "最初の語"),
    "kv": ("KV memory", "KV メモリー"),
    "hits": ("kept", "保持"),
    "devices": ("Devices", "装置"),
    "quality": ("Quality", "品質"),
    "limit": ("limit", "上限"),
    "decisions": ("Last decisions", "直近の判断"),
    "none": ("none yet", "まだありません"),
    "keys": ("q quit · p pause", "q 終了 · p 一時停止"),
    "paused": ("paused", "一時停止中"),
    "unmeasured": ("not measured", "未測定"),
    "silent": ("the agent does not answer", "エージェントが応答しません"),
}


def word(key: str, language: str) -> str:
    return WORDS[key][language == "ja"]


def frame(
    answers: Mapping[str, Any], rates: Sequence[float], *, width: int, height: int, language: str, paused: bool = False
) -> list[Text]:
    """Lines of at most `width` cells, at most `height` of them. `answers`: `health`, `metrics`, `policy`, `decisions`,
    or `error`. `rates`: tokens per second of the last looks, oldest first."""
    lines = [_head(answers, width, language, paused)]
    if "error" in answers:
        lines.append(Text(f" {word('silent', language)}: {answers['error']}", style="red"))
    if "metrics" in answers:
        lines += _figures(answers["metrics"], rates, language)
        lines += _memory(answers["metrics"], width, language)
        lines += _devices(answers["metrics"], width, language)
        lines += _quality(answers["metrics"], language)
    room = max(2, height - len(lines) - 1)
    lines += _decisions(answers.get("decisions") or (), room, language)
    foot = Text(f" {word('keys', language)}", style="dim")
    lines = [*lines[: max(1, height - 1)], foot]
    return [_cut(line, width) for line in lines]


def _cut(line: Text, width: int) -> Text:
    if cell_len(line.plain) > width:
        line.truncate(width, overflow="ellipsis")
    return line


def _head(answers: Mapping[str, Any], width: int, language: str, paused: bool) -> Text:
    health = answers.get("health") or {}
    status = str(health.get("status", "?"))
    policy = answers.get("policy") or {}
    kv = policy.get("kv") or {}
    line = Text(" Sekisho ", style="bold reverse")
    line.append(f" {status} ", style=STATE_STYLES.get(status, "red"))
    if policy:
        line.append(f"· {word('policy', language)} {policy.get('version', '?')} {kv.get('mode', '')} ")
    if paused:
        line.append(f"· {word('paused', language)} ", style="yellow")
    clock = time.strftime("%H:%M:%S")
    line.append(" " * max(1, width - cell_len(line.plain) - len(clock) - 1) + clock, style="dim")
    return line


def _figures(metrics: Mapping[str, Any], rates: Sequence[float], language: str) -> list[Text]:
    throughput, latency = metrics.get("throughput") or {}, metrics.get("latency") or {}
    first = metrics.get("first_token_latency") or {}
    top = _label("throughput", language)
    top.append(f"{number(throughput.get('tokens_per_second'))} tok/s  ", style="bold")
    top.append(sparkline(rates, 20), style="cyan")
    top.append(f"  {number(throughput.get('requests_per_second'), 2)} {word('requests', language)}/s")
    counts = Text("              ")
    for engine in metrics.get("engines") or ():
        counts.append(
            f"{engine.get('model')}: {number(engine.get('running'), 0)} {word('running', language)}, "
            f"{number(engine.get('waiting'), 0)} {word('waiting', language)}  "
        )
    return [top, counts, _spread("latency", latency, language), _spread("first", first, language)]


def _spread(name: str, figures: Mapping[str, Any], language: str) -> Text:
    line = _label(name, language)
    for label, key in (("p50", "median_ms"), ("p95", "p95_ms"), ("p99", "p99_ms")):
        line.append(f"{label} {milliseconds(figures.get(key))}  ")
    line.append(f"n {number(figures.get('n'), 0)}", style="dim")
    return line


def _memory(metrics: Mapping[str, Any], width: int, language: str) -> list[Text]:
    lines: list[Text] = []
    for engine in metrics.get("engines") or ():
        kv = engine.get("kv") or {}
        line = _label("kv", language) if not lines else Text("              ")
        used, limit = kv.get("used_bytes"), kv.get("limit_bytes")
        if used is None:
            line.append(f"{engine.get('model')}: {word('unmeasured', language)}", style="dim")
            lines.append(line)
            continue
        levels = kv.get("levels") or {"L0": used}
        line.append_text(_levels(levels, 12))
        line.append(f" {size(used)}" + (f" / {size(limit)}" if limit else ""))
        if kv.get("hit_rate") is not None:
            line.append(f"  {word('hits', language)} {percent(kv['hit_rate'])}")
        total = sum(levels.values())
        for name, count in levels.items():
            if count:
                line.append(f" {name} {percent(count / total)}", style=LEVEL_STYLES.get(name))
        lines.append(line)
    return lines[:4]


def _levels(levels: Mapping[str, int], cells: int) -> Text:
    """One bar of all levels, each in its colour."""
    total = sum(levels.values())
    bar = Text()
    for name, count in levels.items():
        share = count / total if total else 0.0
        bar.append("█" * round(share * cells), style=LEVEL_STYLES.get(name))
    bar.append("·" * max(0, cells - len(bar.plain)), style="dim")
    bar.truncate(cells)
    return bar


def _devices(metrics: Mapping[str, Any], width: int, language: str) -> list[Text]:
    lines: list[Text] = []
    for device in metrics.get("devices") or ():
        line = _label("devices", language) if not lines else Text("              ")
        line.append(set_cell_size(str(device.get("name", ""))[:24], 24))
        if not device.get("present", True):
            line.append(" ✗", style="red")
        share = device.get("utilisation")
        used, total = device.get("used_bytes"), device.get("total_bytes")
        shown = share if share is not None else used / total if used is not None and total else None
        line.append(" " + gauge(shown, 16))
        line.append(f" {percent(shown)}")
        if used is not None and total:
            line.append(f"  {size(used)} / {size(total)}", style="dim")
        if device.get("temperature_c") is not None:
            line.append(f"  {device['temperature_c']:.0f} °C")
        lines.append(line)
    return lines[:5]


def _quality(metrics: Mapping[str, Any], language: str) -> list[Text]:
    quality = metrics.get("quality") or {}
    estimate = quality.get("delta_ppl_est") or {}
    line = _label("quality", language)
    delta = estimate.get("delta")
    if delta is None:
        line.append(f"ΔPPL {word('unmeasured', language)}", style="dim")
    else:
        limit = quality.get("max_delta_ppl")
        bad = limit is not None and delta > limit
        line.append(f"ΔPPL {delta:+.3f}", style="red bold" if bad else "green")
        line.append(f"  ({word('limit', language)} {number(limit, 2)})", style="dim")
    rate = (quality.get("accept_rate") or {}).get("current")
    if rate is not None:
        line.append(f"  n-gram {percent(rate)}")
    return [line]


def _decisions(decisions: Sequence[Mapping[str, Any]], room: int, language: str) -> list[Text]:
    lines = [Text(f" {word('decisions', language)}", style="bold")]
    if not decisions:
        lines.append(Text(f"   {word('none', language)}", style="dim"))
    for decision in list(decisions)[-(room - 1) :][::-1] if room > 1 else ():
        outcome = str(decision.get("outcome", ""))
        line = Text(f"   {time.strftime('%H:%M:%S', time.localtime(decision.get('at', 0)))} ")
        line.append(f"{outcome:<8}", style=OUTCOME_STYLES.get(outcome))
        line.append(f" {decision.get('rule')}: {decision.get('action')}")
        if decision.get("why"):
            line.append(f" — {decision['why']}", style="dim")
        lines.append(line)
    return lines


def _label(key: str, language: str) -> Text:
    return Text(" " + set_cell_size(word(key, language), 13), style="bold")


def number(value: Any, digits: int = 1) -> str:
    """A dash for what is not measured."""
    return "—" if not isinstance(value, int | float) else f"{value:,.{digits}f}"


def percent(value: Any) -> str:
    return "—" if not isinstance(value, int | float) else f"{value:.0%}"


def milliseconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return "—"
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.0f} ms"


def size(count: float) -> str:
    """Bytes in units of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def gauge(share: float | None, cells: int) -> str:
    """A bar of 0 to 1."""
    full = 0 if share is None else round(min(1.0, max(0.0, share)) * cells)
    return "█" * full + "·" * (cells - full)


def sparkline(values: Sequence[float], cells: int) -> str:
    """The last values as bars, the highest of them full."""
    shown = list(values)[-cells:]
    top = max(shown, default=0.0)
    return "".join(SPARKS[round(value / top * (len(SPARKS) - 1))] if top > 0 else SPARKS[0] for value in shown)
