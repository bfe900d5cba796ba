import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.store.keys import SCOPES, KeySpec, checked, hash_secret, mask, new_secret


@given(st.text())
def test_any_string_hashes(secret: str) -> None:
    """A header can hold anything; hashing never raises and gives 64 hex digits."""
    assert re.fullmatch("[0-9a-f]{64}", hash_secret(secret))


def test_a_lone_surrogate_hashes() -> None:
    """Even what is no Unicode text has a hash."""
    assert hash_secret("\ud800") != hash_secret("\ud801")


def test_secrets_have_the_promised_form_and_differ() -> None:
    """`sk-sekisho-` and 43 URL-safe characters, never twice the same."""
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"sk-sekisho-[A-Za-z0-9_-]{43}", secret) for secret in made)


@given(st.text())
def test_a_mask_shows_four_characters_at_most(text: str) -> None:
    """What is masked can be logged: four characters of a secret of ours, nothing of any other string."""
    shown = mask(text)
    assert shown.startswith("sk-…")
    assert len(shown) <= 8
    if not text.startswith("sk-sekisho-") and len(text) != 4:
        assert shown == "sk-…"


def test_a_mask_is_the_same_for_a_secret_and_its_last_four() -> None:
    """List and log name a key alike."""
    assert mask("sk-sekisho-" + "x" * 39 + "abcd") == mask("abcd") == "sk-…abcd"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("name", ""),
        ("name", " taro"),
        ("name", "a\0b"),
        ("name", "a\nb"),
        ("name", "x" * 65),
        ("name", "key_taro"),
        ("scopes", frozenset()),
        ("scopes", frozenset({"chat", "root"})),
        ("models", frozenset()),
        ("models", frozenset({""})),
        ("rpm", 0),
        ("rpm", -1),
        ("tpm", -5),
        ("tpm", 1.5),
        ("parallel", True),
        ("parallel", 2**63),
        ("budget_tokens", -1),
        ("budget_cost_micros", -1),
        ("networks", ("10.0.0.0/33",)),
        ("networks", ("10.0.0.1/8",)),
        ("networks", ("example.com",)),
        ("expires_at", 999.0),
        ("expires_at", float("nan")),
        ("expires_at", float("inf")),
    ],
)
def test_a_bad_wish_names_its_parameter(param: str, value: object) -> None:
    """Each fault in a spec is a 400 that says which parameter is at fault."""
    spec = msgspec.structs.replace(KeySpec(name="taro"), **{param: value})
    with pytest.raises(InvalidRequest) as caught:
        checked(spec, now=1000.0)
    assert caught.value.param == param


def test_a_good_wish_passes_unchanged_but_for_canonical_networks() -> None:
    """Everything a key may do is kept; an address becomes the network of that one address."""
    spec = KeySpec(
        name="太郎",
        scopes=SCOPES,
        models=frozenset({"mini"}),
        rpm=1,
        tpm=2,
        parallel=3,
        budget_tokens=0,
        budget_cost_micros=0,
        networks=("10.0.0.0/8", "192.168.1.7", "FD00::/8"),
        expires_at=1001.0,
    )
    expected = msgspec.structs.replace(spec, networks=("10.0.0.0/8", "192.168.1.7/32", "fd00::/8"))
    assert checked(spec, now=1000.0) == expected
