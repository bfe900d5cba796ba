"""The pages' files as they are in the package."""

import re
from pathlib import Path

import pytest

import sekisho.console
from sekisho.console.assets import SECURITY_HEADERS, asset

_PAGE = Path(sekisho.console.__file__).parent / "page"
_NAMES = sorted(path.name for path in _PAGE.iterdir())


@pytest.mark.parametrize("name", _NAMES)
def test_each_file_is_served_as_it_is_with_a_type_and_a_tag_of_its_content(name: str) -> None:
    """Body, type and a quoted strong tag; twice the same object, so nothing is read per request."""
    found = asset(name)
    assert found is not None
    assert found.body == (_PAGE / name).read_bytes()
    assert re.fullmatch(r'"[0-9a-f]{32}"', found.etag)
    assert found.content_type.startswith(("text/html", "text/css", "text/javascript", "image/svg+xml"))
    assert asset(name) is found


def test_two_files_have_two_tags() -> None:
    """The tag tells contents apart."""
    found = [asset(name) for name in _NAMES]
    assert len({each.etag for each in found if each}) == len(_NAMES)


@pytest.mark.parametrize(
    "name", ["", "..", "../assets.py", "page/index.html", "assets.py", "INDEX.HTML", "/etc/passwd", "\0"]
)
def test_other_names_are_not_files(name: str) -> None:
    """A name is looked up in the page's own list and nowhere else."""
    assert asset(name) is None


@pytest.mark.parametrize(("page", "static"), [("index.html", "static/"), ("escalation.html", "../static/")])
def test_every_file_that_a_page_names_exists(page: str, static: str) -> None:
    """No address in the page leads nowhere or to another host."""
    html = (_PAGE / page).read_text()
    named = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    assert named
    imported = [name for path in _PAGE.glob("*.js") for name in re.findall(r'from "\./([^"]+)"', path.read_text())]
    assert {name.removeprefix(static) for name in named} | set(imported) <= set(_NAMES)
    assert all(name.startswith(static) for name in named)


@pytest.mark.parametrize("page", ["index.html", "escalation.html"])
def test_a_page_has_no_inline_script_or_style(page: str) -> None:
    """The strict policy breaks nothing, because there is nothing inline to break."""
    html = (_PAGE / page).read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html) == []
    assert "unsafe" not in SECURITY_HEADERS["content-security-policy"]
    assert "default-src 'none'" in SECURITY_HEADERS["content-security-policy"]


def test_every_text_that_the_page_names_is_in_the_tables() -> None:
    """Each data-text, data-label, data-placeholder and text() key stands in both languages."""
    used = set(re.findall(r'data-(?:text|label|placeholder)="(\w+)"', (_PAGE / "index.html").read_text()))
    for path in _PAGE.glob("*.js"):
        used |= set(re.findall(r'\btext\("(\w+)"', path.read_text()))
    tables = (_PAGE / "messages.js").read_text()
    assert used
    assert {key for key in used if len(re.findall(rf"^ {{4}}{key}: ", tables, re.MULTILINE)) != 2} == set()


def test_the_questions_that_the_page_offers_are_ones_that_the_built_in_model_can_answer() -> None:
    """The first click of a newcomer gets an answer: it knows Sekisho by that name, and no sums of two digits."""
    words = (_PAGE / "messages.js").read_text(encoding="utf-8")
    offered = re.findall(r'suggestion\d: "(.*)"', words)
    assert len(offered) == 8
    assert "What is Sekisho?" in offered
    assert "Sekisho とは何ですか。" in offered
    assert [question for question in offered if re.search(r"\d\d", question)] == []
