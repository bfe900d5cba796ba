"""Amounts, dates and months as people type them."""

import datetime
import re
from decimal import Decimal, InvalidOperation
from typing import Literal

from sekisho.cli.failure import USAGE, CommandFailed

MULTIPLES = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000, "g": 1_000_000_000}
AMOUNT = re.compile(r"(?P<number>[0-9][0-9_,]*(?:\.[0-9]+)?)\s*(?P<multiple>[kmbg]?)\s*(?P<unit>[a-z¥$€]*)", re.I)
SIGNS = {"$": "USD", "¥": "JPY", "€": "EUR", "円": "JPY"}
AGE = re.compile(r"([0-9]{1,6})([mhdw])")
AGES = {"m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
LAST_EXPIRY = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC).timestamp()

Budget = tuple[Literal["tokens", "cost_micros"], int]


def budget(text: str, currency: str) -> Budget:
    """`2M`, `500k tokens` -> tokens; `20usd`, `$20`, `3000jpy` -> millionths of the team's currency.

    Raises CommandFailed for another currency: nothing here knows exchange rates.
    """
    sign = next((code for symbol, code in SIGNS.items() if symbol in text), None)
    bare = "".join(character for character in text if character not in SIGNS).strip()
    match = AMOUNT.fullmatch(bare)
    if match is None:
        raise _wrong("--budget", text, "as in 2M, 500k tokens, 20usd or 3000jpy")
    unit = match["unit"].lower()
    number = _number(match["number"]) * MULTIPLES[match["multiple"].lower()]
    if sign is None and unit in ("", "token", "tokens", "t", "tok"):
        if number != int(number):
            raise _wrong("--budget", text, "tokens are whole")
        return "tokens", int(number)
    code = sign or unit.upper()
    if (sign is not None and unit and unit.upper() != sign) or not re.fullmatch(r"[A-Z]{3}", code):
        raise _wrong("--budget", text, "as in 2M, 500k tokens, 20usd or 3000jpy")
    if code != currency:
        raise _wrong("--budget", text, f"prices here are in {currency} (`gateway.currency`)")
    return "cost_micros", int(number * 1_000_000)


def _number(text: str) -> Decimal:
    try:
        return Decimal(text.replace(",", "").replace("_", ""))
    except InvalidOperation as error:  # pragma: no cover  # the pattern lets only numbers through
        raise _wrong("--budget", text, "a number is needed") from error


def expiry(text: str, now: float) -> float:
    """`30d`, `12h`, `2027-03-31` (its end, UTC) or `2027-03-31T18:00+09:00` -> seconds since 1970."""
    seconds = now + int(age[1]) * AGES[age[2]] if (age := AGE.fullmatch(text.lower())) else _instant(text)
    if seconds <= now:
        raise _wrong("--expires", text, "that is in the past")
    if seconds >= LAST_EXPIRY:  # no date can be shown for it, here or by any client
        raise _wrong("--expires", text, "that is too far away; leave it out for a key that never expires")
    return seconds


def _instant(text: str) -> float:
    """The end of a day in UTC, or a moment; in seconds since 1970."""
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise _wrong("--expires", text, "as in 30d, 12h, 2027-03-31 or 2027-03-31T18:00+09:00") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    day_s = AGES["d"] if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) else 0
    return moment.timestamp() + day_s


def past(option: str, text: str, now: float) -> float:
    """`30m`, `2h`, `7d` (that long ago), `2026-11-20` (its beginning, UTC) or a date and time -> seconds since 1970."""
    if age := AGE.fullmatch(text.lower()):
        return now - int(age[1]) * AGES[age[2]]
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise _wrong(option, text, "as in 2h (ago), 7d, 2026-11-20 or 2026-11-20T18:00+09:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def grace(text: str) -> float:
    """`0`, `90`, `15m`, `2h`, `7d` -> seconds."""
    match = re.fullmatch(r"([0-9]{1,7})([smhdw]?)", text.lower())
    if match is None:
        raise _wrong("--grace", text, "as in 0, 15m, 2h or 7d")
    return float(int(match[1]) * {**AGES, "s": 1, "": 1}[match[2]])


def month(text: str | None, now: float) -> tuple[str, float, float]:
    """`2026-11` (None: this month, UTC) -> the month and its first second and the one after its last."""
    try:
        first = datetime.datetime.fromtimestamp(now, datetime.UTC) if text is None else _month_start(text)
    except ValueError as error:
        raise _wrong("--month", str(text), "as in 2026-11") from error
    first = first.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = (first + datetime.timedelta(days=32)).replace(day=1)
    return first.strftime("%Y-%m"), first.timestamp(), following.timestamp()


def _month_start(text: str) -> datetime.datetime:
    if not re.fullmatch(r"(?:19[7-9]|2\d\d)\d-\d{2}", text):
        raise ValueError(text)
    return datetime.datetime.strptime(text, "%Y-%m").replace(tzinfo=datetime.UTC)


def moment(seconds: float | None) -> str | None:
    """`2026-11-20 21:30 UTC`."""
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def gibibytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 2**30:.1f} GiB"


def names(text: str | None) -> list[str]:
    """A list with commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _wrong(option: str, text: str, advice: str) -> CommandFailed:
    return CommandFailed(f"{option}: {text!r} is not understood", hint=advice, exit_code=USAGE)
