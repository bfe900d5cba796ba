"""Addresses and keys: what is taken, what is refused, and that a key shows itself nowhere."""

import json
import logging
import pickle
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.client.target import DEFAULT_KEY_ENV, Key, Target, read_key

SECRET = "sk-sekisho-0123456789abcdefghij"


@pytest.mark.parametrize(
    ("given_url", "url", "host", "port", "tls", "path"),
    [
        ("http://127.0.0.1:7010", "http://127.0.0.1:7010", "127.0.0.1", 7010, False, "/v1/models"),
        ("http://127.0.0.1:7010/", "http://127.0.0.1:7010", "127.0.0.1", 7010, False, "/v1/models"),
        ("http://127.0.0.1:7010/v1", "http://127.0.0.1:7010", "127.0.0.1", 7010, False, "/v1/models"),
        ("http://127.0.0.1:7010/v1/", "http://127.0.0.1:7010", "127.0.0.1", 7010, False, "/v1/models"),
        ("localhost:8080", "http://localhost:8080", "localhost", 8080, False, "/v1/models"),
        ("https://llm.example.com", "https://llm.example.com", "llm.example.com", 443, True, "/v1/models"),
        ("http://example.com/llm/v1", "http://example.com/llm", "example.com", 80, False, "/llm/v1/models"),
        ("http://日本.example:9", "http://日本.example:9", "xn--wgv71a.example", 9, False, "/v1/models"),
        ("http://x/京/v1", "http://x/%E4%BA%AC", "x", 80, False, "/%E4%BA%AC/v1/models"),
        ("http://[::1]:9/v1", "http://[::1]:9", "::1", 9, False, "/v1/models"),
    ],
)
def test_addresses(given_url: str, url: str, host: str, port: int, tls: bool, path: str) -> None:
    """With or without /v1, a slash, a scheme, a path of its own."""
    target = Target("public", given_url, "m")
    assert (target.url, target.host, target.port, target.tls) == (url, host, port, tls)
    assert target.path("/v1/models") == path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "ftp://x",
        "http://x:0",
        "http://a b",
        "http://x/a b",
        "http://x\r\nHost: y",
        "http://[x",
        "http://x:99999",
        "http://x:port",
        "http://x?a=b",
        "http://x#y",
        f"http://u:{SECRET}@x",
    ],
)
def test_what_is_no_address(url: str) -> None:
    """Refused in words; a password in an address is not repeated in them."""
    with pytest.raises(InvalidRequest) as caught:
        Target("gateway", url, "m")
    assert SECRET not in str(caught.value)


@given(st.text(max_size=40))
def test_no_text_breaks_an_address(text: str) -> None:
    """Any text is an address with a host and a port, or refused."""
    try:
        target = Target("gateway", text, "m")
    except InvalidRequest:
        return
    assert target.host
    assert 0 < target.port < 65_536
    assert Target("gateway", target.url, "m").url == target.url


def test_a_key_shows_itself_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Not by printing it, in a traceback's values, in a log, in JSON, nor by pickling."""
    key = Key(SECRET)
    target = Target("gateway", "http://127.0.0.1:1", "m", key)
    logging.getLogger("test").warning("%s %r %s %r", key, key, target, target)
    shown = [str(key), repr(key), f"{key!s}", repr(target), str(vars(target)), caplog.text]
    shown.append(json.dumps(msgspec.to_builtins({"key": key}, enc_hook=str)))
    assert not [text for text in shown if SECRET in text or SECRET[11:-4] in text]
    assert str(key) == "****ghij"
    assert str(Key("short-key")) == "****"
    with pytest.raises(TypeError):
        msgspec.json.encode(key)
    with pytest.raises(Exception):  # noqa: B017, PT011  # whatever pickle says
        pickle.dumps(key)
    assert key.reveal() == SECRET


@pytest.mark.parametrize("text", ["", " ", "a b", "キー" * 10, "line\nbreak", "tab\there", "x\x00y" * 9])
def test_what_is_no_key(text: str) -> None:
    """What no header can carry is refused before anything is sent, and not repeated."""
    with pytest.raises(InvalidRequest) as caught:
        Key(text)
    assert not text.strip() or text not in str(caught.value)


def test_where_keys_come_from(tmp_path: Path) -> None:
    """The environment, a file, or by default SEKISHO_API_KEY; white space around a key is none of it."""
    file = tmp_path / "key"
    file.write_text(f"\n {SECRET}\r\n")
    for source, environment in (
        ("env:MY_KEY", {"MY_KEY": f" {SECRET}\n"}),
        (f"file:{file}", {}),
        (None, {DEFAULT_KEY_ENV: SECRET}),
    ):
        key = read_key(source, environment)
        assert key is not None
        assert key.reveal() == SECRET
    assert read_key(None, {}) is None
    assert read_key(None, {DEFAULT_KEY_ENV: " "}) is None


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    """A name that is not set, a file that is not there or is no text: each says which."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for source, word in (
        ("env:NOT_SET", "NOT_SET"),
        (f"file:{tmp_path}/none", "none"),
        (f"file:{tmp_path}", str(tmp_path)),
        (f"file:{tmp_path}/binary", "binary"),
    ):
        with pytest.raises(InvalidRequest, match=word):
            read_key(source, {})


@pytest.mark.parametrize("source", [SECRET, "secret", "", "ENV:X", "environment:X"])
def test_a_key_on_the_command_line_is_refused(source: str) -> None:
    """It stands in histories and process lists: it is not used, not repeated, and its owner is warned."""
    with pytest.raises(InvalidRequest) as caught:
        read_key(source, {"X": SECRET})
    assert not source or source not in str(caught.value)
    assert ("make it invalid" in str(caught.value)) == (source == SECRET)


def test_targets_are_changed_by_making_others() -> None:
    """Another model, or no key: the rest stays."""
    target = Target("engine", "http://127.0.0.1:1/llm", "m", Key(SECRET))
    assert target.without_key().key is None
    assert target.with_model("n").model == "n"
    assert target.with_model("n").key is target.key
    assert {target.url, target.without_key().url, target.with_model("n").url} == {"http://127.0.0.1:1/llm"}
