"""Strict JSON: what is wrong is told by the path of the parameter."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.wire import jsonio


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    count: int
    names: list[str] = []


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: list[Inner] = []
    free: Any = None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=6), JSON, max_size=4))
def test_what_is_dumped_is_loaded_again(value: dict[str, Any]) -> None:
    """Any JSON object comes back the same, whole numbers beyond 64 bits included."""
    assert jsonio.load_object(jsonio.dump(value)) == value
    assert jsonio.load_object(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b'{"inner":[{"count":1},{"count":"1"}]}', "inner[1].count", "invalid_type"),
        (b'{"inner":[{"count":1,"names":["a",2]}]}', "inner[0].names[1]", "invalid_type"),
        (b'{"inner":[{}]}', "inner[0].count", "missing_required_parameter"),
        (b'{"inner":[{"count":1,"x":1}]}', "inner[0].x", "unknown_parameter"),
        (b'{"x":1}', "x", "unknown_parameter"),
        (b"[]", None, "invalid_type"),
        (b"null", None, "invalid_type"),
        (b"", None, "invalid_json"),
        (b'{"free":NaN}', None, "invalid_json"),
        (b'{"free":"\xff"}', None, "invalid_json"),
        (b'{"free":' + b"[" * 10_000 + b"]" * 10_000 + b"}", None, "invalid_json"),
        (b'{"free":1} {}', None, "invalid_json"),
    ],
)
def test_errors_name_the_place(body: bytes, param: str | None, code: str) -> None:
    """Parameter path and code, and no word of the parser's own notation."""
    with pytest.raises(InvalidRequest) as caught:
        jsonio.load(body, Outer)
    assert (caught.value.param, caught.value.error_code) == (param, code)
    assert "$" not in caught.value.message
    assert "`" not in caught.value.message


def test_a_strange_key_is_told_short_and_on_one_line() -> None:
    """A caller's own key cannot fill an error message or break a log line."""
    with pytest.raises(InvalidRequest) as caught:
        jsonio.load(json.dumps({"a\nb" * 10_000: 1}).encode(), Outer)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200
    assert caught.value.error_code == "unknown_parameter"


def test_a_byte_order_mark_is_passed_over() -> None:
    """Some Windows clients write one."""
    assert jsonio.load_object(b'\xef\xbb\xbf{"a":1}') == {"a": 1}


def test_a_parsed_value_is_checked_in_its_place() -> None:
    """`convert` puts its path before the place inside the value."""
    assert jsonio.convert({"count": 1}, Inner) == Inner(1)
    with pytest.raises(InvalidRequest) as caught:
        jsonio.convert({"count": "x"}, Inner, "items[3]")
    assert caught.value.param == "items[3].count"


def test_what_is_too_deep_to_be_written_is_the_callers_mistake() -> None:
    """A value that could be read but not written again is refused, not a crash."""
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidRequest):
        jsonio.dump(value)
    while isinstance(value, list):  # taken apart here: freeing it at once would go as deep
        value = value.pop()
