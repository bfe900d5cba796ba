"""Amounts and dates as people type them."""

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.cli import quantities
from sekisho.cli.failure import USAGE, CommandFailed

NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2M", ("tokens", 2_000_000)),
        ("500k tokens", ("tokens", 500_000)),
        ("1.5m", ("tokens", 1_500_000)),
        ("1,000", ("tokens", 1000)),
        ("20usd", ("cost_micros", 20_000_000)),
        ("$0.25", ("cost_micros", 250_000)),
        ("3k USD", ("cost_micros", 3_000_000_000)),
    ],
)
def test_budgets(text: str, expected: tuple[str, int]) -> None:
    """Tokens with k, M, G; money with its currency, in millionths."""
    assert quantities.budget(text, "USD") == expected


@pytest.mark.parametrize("text", ["", "M", "-5", "0.5", "20eur", "¥300", "$3jpy", "2Mx", "1e9", "20 us dollars"])
def test_what_is_no_budget(text: str) -> None:
    """Fractions of a token, foreign currencies and nonsense are usage errors, never a wrong number."""
    with pytest.raises(CommandFailed) as caught:
        quantities.budget(text, "USD")
    assert caught.value.exit_code == USAGE


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 10**15), st.sampled_from(["JPY", "USD"]))
def test_money_is_exact(amount: int, currency: str) -> None:
    """Every amount with up to six decimals becomes exactly its millionths."""
    text = f"{amount // 1_000_000}.{amount % 1_000_000:06d}{currency.lower()}"
    assert quantities.budget(text, currency) == ("cost_micros", amount)


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=12))
def test_any_text_is_an_amount_or_a_usage_error(text: str) -> None:
    """No text gives another exception."""
    for parse in (
        lambda: quantities.budget(text, "USD"),
        lambda: quantities.expiry(text, NOW),
        lambda: quantities.grace(text),
    ):
        try:
            parse()
        except CommandFailed as error:
            assert error.exit_code == USAGE  # noqa: PT017  # both outcomes are right; the code is the fact


def test_expiry() -> None:
    """Ages count from now; a date means to its end in UTC; a moment with its zone is that moment."""
    assert quantities.expiry("30d", NOW) == NOW + 30 * 86_400
    assert quantities.expiry("12h", NOW) == NOW + 43_200
    day_after = datetime.datetime(2027, 4, 1, tzinfo=datetime.UTC).timestamp()
    assert quantities.expiry("2027-03-31", NOW) == day_after
    assert quantities.expiry("2027-04-01T09:00+09:00", NOW) == day_after
    for text in ("2020-01-01", "0d", "9999-12-31", "999999w"):
        with pytest.raises(CommandFailed, match=text):
            quantities.expiry(text, NOW)


def test_month() -> None:
    """A month is its UTC bounds, over the end of a year too; without one it is the month of now."""
    name, since, until = quantities.month("2026-12", NOW)
    assert (name, since) == ("2026-12", datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC).timestamp())
    assert until == datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC).timestamp()
    name, since, until = quantities.month(None, NOW)
    assert since <= NOW < until
    assert name == "2026-09"
    for text in ("2026", "2026-13", "26-01", "november"):
        with pytest.raises(CommandFailed):
            quantities.month(text, NOW)


def test_grace() -> None:
    """Seconds without a unit, or with one."""
    assert [quantities.grace(text) for text in ("0", "90", "15m", "2h", "7d")] == [0, 90, 900, 7200, 604_800]
