"""Sealed reasoning."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.gateway.seal import Sealer, load_or_create_key

SEALER = Sealer(bytes(32))
SEALED = SEALER.seal("thought", "key_1")


@given(st.text(), st.text(min_size=1))
def test_only_the_owner_reads_it_back(text: str, owner: str) -> None:
    """What was sealed for one key comes back for that key and for no other."""
    sealed = SEALER.seal(text, owner)
    assert SEALER.unseal(sealed, owner) == text
    assert SEALER.unseal(sealed, owner + "x") is None
    assert Sealer(b"x" * 32).unseal(sealed, owner) is None


@given(st.data())
def test_any_change_is_noticed(data: st.DataObject) -> None:
    """One changed character, or any other text, opens nothing and raises nothing."""
    place = data.draw(st.integers(0, len(SEALED) - 1))
    other = data.draw(st.sampled_from("AQgwBz-_=+ é\n"))
    changed = SEALED[:place] + other + SEALED[place + 1 :]
    assert SEALER.unseal(changed, "key_1") == ("thought" if changed == SEALED else None)
    assert SEALER.unseal(data.draw(st.text()), "key_1") is None


def test_the_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    """The second caller reads the first one's key; the file is for its owner alone; a wrong file is refused."""
    path = tmp_path / "secrets" / "seal.key"
    assert load_or_create_key(path) == load_or_create_key(path)
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="not a 32-byte key"):
        load_or_create_key(path)
