"""Bytes from outside end in a value or in one error."""

import ast
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sekisho
from sekisho.core.decoding import Undecodable, decoded


class Shape(msgspec.Struct):
    text: str


def test_what_is_whole_is_decoded() -> None:
    """A value of the shape that was asked for."""
    assert decoded(b'{"text": "\xe3\x81\x82"}', Shape) == Shape("あ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"text": 1}',
        b'{"text": "caf\xe9"}',
        b'{"more":' + b"[" * 100_000,
    ],
    ids=["empty", "torn", "other", "type", "value", "deep"],
)
def test_whatever_is_wrong_is_one_error(body: bytes) -> None:
    """Broken, of another shape, no UTF-8, too deep: all of it says why."""
    with pytest.raises(Undecodable, match=r"."):
        decoded(body, Shape)


@given(st.binary(max_size=40))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    """Also inside a string."""
    for each in (body, b'{"text": "' + body + b'"}'):
        try:
            decoded(each, Shape)
        except Undecodable:
            continue


TEXT = {"engines/torch_worker/prompts.py", "ops/hardware.py", "wire/responses/output.py"}
"""These decode `str`, which is no bytes any more."""


def forgets_utf8(attempt: ast.Try) -> bool:
    """Whether it catches msgspec's own error alone."""
    caught = {
        name.attr if isinstance(name, ast.Attribute) else name.id
        for handler in attempt.handlers
        if handler.type is not None
        for name in ast.walk(handler.type)
        if isinstance(name, ast.Attribute | ast.Name)
    }
    return "DecodeError" in caught and not caught & {"UnicodeDecodeError", "ValueError", "Exception"}


def test_nobody_forgets_that_bytes_may_be_no_utf8() -> None:
    """`except msgspec.DecodeError` lets UnicodeDecodeError through: whoever decodes bytes uses `decoded`, or names
    both."""
    root = Path(sekisho.__file__).parent
    forgetful = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Try) and forgets_utf8(node)
    }
    assert forgetful - TEXT == set()
