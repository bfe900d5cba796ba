"""Records per second into the audit book, and how long each append waits: group commit beside a sync per record.

    python bench/book.py [--folder DIR] [--rounds N] [--seconds S]

Every cell writes a fresh book in DIR (a real disk: a tmpfs has no sync to wait for). The ways alternate within a round.
"""

import argparse
import asyncio
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from report import load_average, machine, percentile
from sekisho.audit import AuditConfig, Book, VerdictRecord
from sekisho.core.verdict import Finding

APPENDERS = (1, 32, 256)
TEXT = "来週の会議の議事録を三行でまとめてください。参加者は営業部と開発部です。" * 6
RECORD = VerdictRecord(
    request_id="req_0123456789abcdef01234567",
    user_id="user_0123456789ab",
    input=TEXT,
    decision="ALLOW",
    rationale="一般的な業務の依頼です。",
    model_version="sekisho-mini 1",
    processing_time_ms=0.71,
    confidence_score=0.97,
    threshold=0.62,
    findings=(Finding("rule", "ja-office-1", "none", "allow", "none", "messages[0]"),),
    policy_version="2026-11-28",
    key_id="key_0123456789ab",
    protocol="chat",
    model="sekisho-mini",
    request_hash="0" * 64,
)
WAYS = {
    "a sync per record": AuditConfig(group_records=1, compress=False),
    "group commit": AuditConfig(compress=False),
    "group commit, handed over": AuditConfig(compress=False),
}
Cell = tuple[float, float, float]  # records/s, p50 ms, p99 ms


async def measure(folder: Path, way: str, appenders: int, seconds: float) -> Cell:
    """Each appender waits for its record before it sends the next."""
    config = WAYS[way]
    book = Book.open(folder / "audit", folder / "secrets", config)
    send = book.hand_over if way.endswith("handed over") else book.append
    waits: list[float] = []
    until = time.perf_counter() + seconds

    async def appender() -> None:
        while (start := time.perf_counter()) < until:
            await send(RECORD)
            waits.append(time.perf_counter() - start)

    begin = time.perf_counter()
    await asyncio.gather(*(appender() for _ in range(appenders)))
    took = time.perf_counter() - begin
    await asyncio.to_thread(book.close)
    p50, p99 = percentile(waits, 50), percentile(waits, 99)
    return len(waits) / took, (p50 or 0) * 1000, (p99 or 0) * 1000


def cell(parent: Path, way: str, appenders: int, seconds: float) -> Cell:
    folder = Path(tempfile.mkdtemp(prefix="book-", dir=parent))
    try:
        return asyncio.run(measure(folder, way, appenders, seconds))
    finally:
        shutil.rmtree(folder)


def show(values: list[float]) -> str:
    def one(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

    return f"{one(median(values))} ({one(min(values))} … {one(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    results: dict[tuple[str, int], list[Cell]] = {}
    busiest = 0.0
    for number in range(options.rounds):
        for appenders in APPENDERS:
            for way in WAYS:
                got = cell(options.folder, way, appenders, options.seconds)
                results.setdefault((way, appenders), []).append(got)
                busiest = max(busiest, load_average())
                print(
                    f"round {number + 1}, {way}, {appenders}: {got[0]:,.0f}/s {got[1]:.2f} {got[2]:.2f}",
                    file=sys.stderr,
                )
    print("| way | appenders | records/s | wait p50, ms | wait p99, ms |\n|---|---|---|---|---|")
    for (way, appenders), cells in sorted(results.items(), key=lambda item: (item[0][1], list(WAYS).index(item[0][0]))):
        columns = [show([each[place] for each in cells]) for place in range(3)]
        print(f"| {way} | {appenders} | {' | '.join(columns)} |")
    print(f"\n- median (lowest … highest) of {options.rounds} rounds of {options.seconds:g} s")
    print(f"- {machine()['cpu']}, {platform.system()} {platform.release()}, Python {platform.python_version()}")
    print(f"- cryptography {version('cryptography')}, msgspec {version('msgspec')}")
    print(f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load average up to {busiest:.1f}")


if __name__ == "__main__":
    main()
