from hypothesis import given
from hypothesis import strategies as st

from sekisho.guard.beyond_ascii import beyond_ascii


@given(st.text(st.characters(exclude_categories=[])))
def test_what_is_not_ascii_stays_in_order(text: str) -> None:
    """For any text, lone surrogates too."""
    assert beyond_ascii(text) == "".join(letter for letter in text if ord(letter) > 127)
