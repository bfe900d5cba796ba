"""The clock: budgets, expiry, TLS and the book's times go by it."""

import datetime
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sekisho.core.clock import Clock, SystemClock
from sekisho.ops.doctor.finding import Case, Finding, Patient
from sekisho.ops.hardware import try_probe
from sekisho.ops.home import Home

CLOCK_FLOOR = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
JUMP_S = 60.0
SKEW_S = 60.0
BAD_SKEW_S = 300.0
MOST_FILES = 20_000
PROBE_TIMEOUT_S = 3.0

GOOD = Case("clock.good", "ok", ("clock: {now} UTC", "時計: {now} UTC"))
TOO_EARLY = Case(
    "clock.too_early",
    "error",
    ("the clock says {now}", "時計が {now} を指しています"),
    ("budgets, expiry and TLS go by the clock", "予算・有効期限・TLS は時計に従います"),
    ("set the clock: timedatectl set-ntp true", "時計を合わせてください: timedatectl set-ntp true"),
)
WENT_BACK = Case(
    "clock.went_back",
    "error",
    (
        "the clock is behind what was written: it says {now}, {file} is from {newest}",
        "時計が記録より遅れています: 現在 {now}、{file} は {newest}",
    ),
    (
        "it was set back; until it has caught up, keys may live too long and records are out of order",
        "時計が戻されました。追い付くまで、キーが期限を過ぎても使えたり記録の順序が乱れたりします",
    ),
    (
        "set the clock: timedatectl set-ntp true; if it is right, the file was written by a wrong one",
        "時計を合わせてください: timedatectl set-ntp true（正しいなら、ファイルが誤った時計で書かれています）",
    ),
)
NOT_SYNCED = Case(
    "clock.not_synced",
    "warning",
    ("the clock is not synchronised", "時計が同期されていません"),
    ("timedatectl says NTPSynchronized=no ({ntp})", "timedatectl の表示は NTPSynchronized=no です（{ntp}）"),
    ("timedatectl set-ntp true", "timedatectl set-ntp true"),
)
SKEW = Case(
    "clock.skew",
    "warning",
    ("the clock is {seconds:.0f} s {way} that of {where}", "時計が {where} より {seconds:.0f} 秒{way}います"),
    ("one of the two is wrong: the answer's Date says {date}", "どちらかが誤っています（応答の Date は {date}）"),
    ("timedatectl set-ntp true on both machines", "両方のマシンで timedatectl set-ntp true"),
)
BAD_SKEW = Case("clock.far_off", "error", SKEW.what, SKEW.why, SKEW.fix)


def check_clock(patient: Patient, clock: Clock | None = None) -> list[Finding]:
    now = (clock or SystemClock()).now()
    if now < CLOCK_FLOOR:
        return [TOO_EARLY.found(now=f"{_moment(now):%Y-%m-%d}")]
    findings = []
    newest = newest_record(patient.home)
    if newest is not None and newest[0] > now + JUMP_S:
        times = {"now": f"{_moment(now):%Y-%m-%d %H:%M:%S}", "newest": f"{_moment(newest[0]):%Y-%m-%d %H:%M:%S} UTC"}
        findings.append(WENT_BACK.found(file=newest[1], **times))
    synced = ntp_synced()
    if synced is not None and not synced[0]:
        findings.append(NOT_SYNCED.found(ntp=synced[1]))
    return findings or [GOOD.found(now=f"{_moment(now):%Y-%m-%d %H:%M}")]


def newest_record(home: Home) -> tuple[float, Path] | None:
    """When the newest of the home's own records was last written, by the clock of that moment, and which it is."""
    newest: tuple[float, Path] | None = None
    for path in islice(_records(home), MOST_FILES):
        try:
            written = path.stat().st_mtime
        except OSError:
            continue  # it went meanwhile
        if newest is None or written > newest[0]:
            newest = written, path
    return newest


def _records(home: Home) -> Iterator[Path]:
    yield from home.path.glob("sekisho.db*")
    for folder in (home.audit, home.spool, home.logs, home.run):
        try:
            yield from folder.rglob("*")
        except OSError:
            continue  # `files` tells of folders that cannot be read


def ntp_synced() -> tuple[bool, str] | None:
    """Whether the system keeps the clock, and its words; None where it does not tell, as in most containers."""
    probe = try_probe(["timedatectl", "show", "--property=NTP", "--property=NTPSynchronized"], PROBE_TIMEOUT_S)
    if probe is None or probe.code != 0:
        return None
    told = dict(line.split("=", 1) for line in probe.output.splitlines() if "=" in line)
    if "NTPSynchronized" not in told:
        return None
    return told["NTPSynchronized"] == "yes", f"NTP={told.get('NTP', '?')}"


def check_skew(where: str, date: str | None, now: float) -> list[Finding]:
    """Against the `Date` of an answer that has just come, which is exact to a second. Empty where they agree, or where
    no date can be read."""
    import email.utils

    try:
        theirs = email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError):
        return []
    skew = now - theirs
    if abs(skew) < SKEW_S:
        return []
    way = ("ahead of", "進んで") if skew > 0 else ("behind", "遅れて")
    case = BAD_SKEW if abs(skew) >= BAD_SKEW_S else SKEW
    return [case.found(seconds=abs(skew), way=way, where=where, date=date)]


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
