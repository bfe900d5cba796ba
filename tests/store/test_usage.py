import calendar
import time
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from sekisho.store import UsageRecord
from sekisho.store.usage import LARGEST_COUNT, LARGEST_TIME, day_of, month_of, storable

ANY_RECORD = st.builds(
    UsageRecord,
    request_id=st.text(),
    key_id=st.text(),
    model=st.text(max_size=1000),
    protocol=st.text(max_size=10),
    started_at=st.floats(),
    duration_ms=st.floats(),
    status=st.sampled_from(["completed", "failed", "cancelled", "refused"]),
    http_status=st.integers(),
    user=st.none() | st.text() | st.just("\ud800\0"),
    ttft_ms=st.none() | st.floats(),
    input_tokens=st.none() | st.integers(),
    output_tokens=st.none() | st.integers(),
    cached_tokens=st.integers(),
    reasoning_tokens=st.integers(),
    estimated=st.booleans(),
    cost_micros=st.integers(),
    error_id=st.none() | st.text(),
    error_code=st.none() | st.text(),
)


@given(ANY_RECORD)
def test_what_is_storable_is_within_bounds_and_stays_as_it_is(record: UsageRecord) -> None:
    """Cleaning once is enough, and what comes out every database takes."""
    kept = storable(record)
    assert storable(kept) == kept
    assert 0 <= (kept.input_tokens or 0) <= LARGEST_COUNT
    assert 0 <= kept.started_at <= LARGEST_TIME
    assert "\0" not in (kept.user or "")
    assert len(kept.model.encode()) <= 4 * 512


def test_a_sound_record_is_not_touched(usage: Callable[..., UsageRecord]) -> None:
    """Ordinary records, Japanese names among them, pass as they are."""
    for record in (usage("r1"), usage("r2", user="太郎", model="大きい")):
        assert storable(record) is record


@given(st.floats(0, LARGEST_TIME))
def test_day_and_month_are_utc(moment: float) -> None:
    """A record belongs to the UTC day in which it began, to the last microsecond."""
    day = calendar.timegm(time.strptime(day_of(moment), "%Y-%m-%d"))
    assert day <= moment < day + 86_400
    assert day_of(moment).startswith(month_of(moment) + "-")
