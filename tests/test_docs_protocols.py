"""docs/protocols.md says of each parameter what the codecs really do with it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sekisho.core.errors import RequestError
from sekisho.wire import chat, messages, responses
from sekisho.wire.ollama import generate

PAGE = (Path(__file__).parents[1] / "docs" / "protocols.md").read_text(encoding="utf-8")
ASKED = [{"role": "user", "content": "hello"}]
CODECS: dict[str, tuple[Callable[[bytes, str], Any], dict[str, Any]]] = {
    "Chat completions": (chat.decode, {"model": "m", "messages": ASKED}),
    "Responses": (responses.decode, {"model": "m", "input": "hello"}),
    "Messages": (messages.decode, {"model": "m", "max_tokens": 9, "messages": ASKED}),
    "Ollama": (generate.decode, {"model": "m", "prompt": "hello"}),
}
# One of these has the type of any parameter.
VALUES: tuple[Any, ...] = ("auto", "24h", True, 7, {"a": "b"}, ["text", "audio"], [7], {"include_obfuscation": True})


def listed(opening: str) -> list[tuple[str, str]]:
    """(section, parameter) for each name in code marks in the sentences that begin with `opening`."""
    found = []
    for section in CODECS:
        text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        for sentence in re.findall(rf"{opening}(.*?)(?:\.\s|\.$|;)", text, re.MULTILINE):
            plain = re.sub(r"\([^)]*\)", "", sentence)
            found += [(section, name) for name in re.findall(r"`([a-z_.]+)`", plain)]
    return found


def outcomes(section: str, parameter: str) -> set[tuple[str, str | None]]:
    """What the codec says to each kind of value: ("accepted", None) or (code, the parameter that it names)."""
    decode, base = CODECS[section]
    outer, _, inner = parameter.partition(".")
    said: set[tuple[str, str | None]] = set()
    for value in VALUES:
        body = {**base, outer: {inner: value} if inner else value}
        try:
            decode(msgspec.json.encode(body), "id_1")
        except RequestError as error:
            said.add((error.error_code, error.param))
        else:
            said.add(("accepted", None))
    return said


@pytest.mark.parametrize(("section", "parameter"), listed("Accepted without effect: "))
def test_what_the_page_calls_accepted_is_accepted(section: str, parameter: str) -> None:
    """A value of the right type passes, and nothing says that the parameter is unknown or unsupported."""
    said = outcomes(section, parameter)
    assert ("accepted", None) in said
    assert not {code for code, _ in said} & {"unknown_parameter", "unsupported_parameter"}


@pytest.mark.parametrize(("section", "parameter"), listed("Refused by name: "))
def test_what_the_page_calls_refused_is_refused_by_its_name(section: str, parameter: str) -> None:
    """A value of the right type is `unsupported_parameter`, and the error names it."""
    assert ("unsupported_parameter", parameter) in outcomes(section, parameter)


@pytest.mark.parametrize(("section", "parameter"), listed("Not on the list on purpose, so unknown: "))
def test_what_the_page_calls_unknown_is_unknown(section: str, parameter: str) -> None:
    """No value of it passes."""
    assert {code for code, _ in outcomes(section, parameter)} == {"unknown_parameter"}


def test_the_page_lists_parameters_of_every_protocol() -> None:
    """The sentences were found, so the other tests of this file have something to prove."""
    assert {section for section, _ in listed("Refused by name: ")} == set(CODECS)
    assert {section for section, _ in listed("Accepted without effect: ")} == set(CODECS) - {"Ollama"}
    assert listed("Not on the list on purpose, so unknown: ")
