"""The team's file of thresholds: strict, with lines, and per profile."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.verdict.thresholds import (
    BUILT_IN,
    FILE_NAME,
    Ruled,
    built_in,
    load,
    path_of,
    template,
    write_template,
)
from sekisho.evaluate.verdict.thresholds_file import ThresholdsError, read
from sekisho.ops.home import Home

SMALL = """\
version: 1
profiles:
  a100:
    cold: 15
  mine:
    cold: 30
    quality: 80%
calendar:
  time_zone: Asia/Tokyo
  holidays: [2026-12-31, "2027-01-01"]
  morning: "09:30"
criteria:
  cold:
    figures: [cold.ttfb_s]
    at_most: per_profile
    name: [Cold start, コールドスタート]
  quality:
    figures: rubric.adoptable_rate
    at_least: 70%
    minimal_n: 20
    patterns: [b]
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").create()


def problems(text: str) -> list[tuple[int, str]]:
    known = {criterion.id: criterion for criterion in built_in().written.criteria}
    with pytest.raises(ThresholdsError) as caught:
        read(text.encode(), "t.yaml", known)
    return [(problem.line, problem.message) for problem in caught.value.problems]


def written(home: Home, text: str) -> Home:
    path_of(home).write_text(text, encoding="utf-8")
    return home


def test_without_a_file_the_built_in_ones_count(home: Home) -> None:
    """Every criterion has its wording in both languages, and every profile a value for what differs."""
    found = load(home)
    assert found.source == BUILT_IN
    assert {"a100", "a40x2", "cpu"} <= set(found.profiles)
    for profile in found.profiles:
        rules = found.rules(profile)
        assert not rules.left_out
        for criterion in rules.criteria:
            assert criterion.value is not None
            for english, japanese in (criterion.name, criterion.when_failed, criterion.when_open):
                assert english.isascii(), english
                assert not japanese.isascii(), japanese


def test_the_template_is_the_built_in_file(home: Home) -> None:
    """`init` writes what is in force anyway; it replaces nothing unless it is told to."""
    path = write_template(home)
    assert path.name == FILE_NAME
    assert path.read_bytes() == template()
    assert load(home).rules("a100").sha256 == built_in().rules("a100").sha256
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidRequest, match="there already"):
        write_template(home)
    assert write_template(home, replace=True).read_bytes() == template()


def test_a_profile_overrides_what_it_names(home: Home) -> None:
    """A name of the team's own: its values, the rest as written; what is left out of the built-in ones is told."""
    thresholds = load(written(home, SMALL))
    values = {profile: {c.id: c.value for c in thresholds.rules(profile).criteria} for profile in thresholds.profiles}
    assert values == {"a100": {"cold": 15.0, "quality": 0.7}, "mine": {"cold": 30.0, "quality": 0.8}}
    rules = thresholds.rules("mine")
    assert "chat_continuity" in rules.left_out
    assert "quality" not in rules.left_out
    quality = rules.criteria[1]
    assert quality.name == ("Answers that two raters would adopt", "採用可能と判定された割合"), "known, so worded alike"
    assert (quality.figures, quality.patterns, quality.minimal_n) == (("rubric.adoptable_rate",), ("b",), 20)
    assert thresholds.calendar.holidays == ("2026-12-31", "2027-01-01")
    assert thresholds.calendar.morning == "09:30"


def test_an_unknown_profile(home: Home) -> None:
    """It is judged as `other` where there is one, and else named as missing, with those that there are."""
    assert load(home).rules("strange-box").criteria == built_in().rules("other").criteria
    with pytest.raises(NotFound, match="a100, mine"):
        load(written(home, SMALL)).rules("strange-box")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("cold: 15", "cold: fast", 4, "a number, a share as in 95%, or n is needed"),
        ("cold: 15", "cold: .nan", 4, "a number"),
        ("cold: 15", "cold: true", 4, "a number"),
        ("cold: 15", "warm: 15", 4, "'warm' is not known; known are cold, quality"),
        ("    cold: 30\n", "", 6, "cold has no value here"),
        ("  mine:", "  Mine!:", 6, "profile 'Mine!'"),
        ("at_most: per_profile", "at_most: 3\n    at_least: 2", 14, "exactly one of at_least, at_most, is"),
        ("    at_least: 70%\n", "", 18, "exactly one of"),
        ("at_least: 70%", "is: 70%", 19, "true or false is needed"),
        ("figures: [cold.ttfb_s]", "figures: [Cold TTFB]", 14, "'Cold TTFB' is no figure id"),
        ("figures: [cold.ttfb_s]", "figures: []", 14, "at least one id"),
        ("figures: [cold.ttfb_s]", "figures: ['a.{1,2']", 14, "no figure id"),
        ("    figures: [cold.ttfb_s]\n", "", 14, "figures is missing"),
        ("patterns: [b]", "patterns: [c]", 21, "patterns is a list of a, b or both"),
        ("patterns: [b]", "pattern: [b]", 21, "'pattern' is not known"),
        ("minimal_n: 20", "minimal_n: -1", 20, "a whole number from 0 up"),
        ("minimal_n: 20", "minimal_n: [20]", 20, "one value is needed here"),
        ("name: [Cold start, コールドスタート]", "name: Cold start", 16, "a pair: [English, Japanese]"),
        ("    name: [Cold start, コールドスタート]\n", "", 14, "name is missing"),
        ("version: 1", "version: 2", 1, "reads version 1"),
        ("version: 1\n", "", 1, "version is missing"),
        ("time_zone: Asia/Tokyo", "time_zone: Mars/North", 9, "no time zone 'Mars/North'"),
        ("2026-12-31", "2026-13-31", 10, "'2026-13-31' is no day"),
        ('morning: "09:30"', "morning: 9:30", 11, "a time in quotes is needed"),
        ("  quality:\n    figures: rubric", "  cold:\n    figures: rubric", 17, "'cold' is said twice"),
        ("criteria:", "kriteria:", 12, "'kriteria' is not known"),
    ],
)
def test_what_is_not_understood_is_an_error_with_its_line(old: str, new: str, line: int, message: str) -> None:
    """Each mistake is told at its place, never passed over."""
    assert old in SMALL
    found = problems(SMALL.replace(old, new, 1))
    assert any(at == line and message in text for at, text in found), found


def test_all_problems_are_told_at_once_in_order() -> None:
    """Not one after another."""
    text = SMALL.replace("cold: 15", "cold: x").replace("patterns: [b]", "patterns: []")
    assert [line for line, _ in problems(text)] == [4, 21]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "a", "version: 1", "\tversion: 1", "{", "a: &x [*x]", "criteria: {}", "? [a]\n: 1", "a: !!python/x 1"],
)
def test_what_is_no_file_of_thresholds_is_refused(text: str) -> None:
    """Every other YAML, and what is none."""
    assert problems(text)


def test_bytes_that_are_no_text_are_refused(home: Home) -> None:
    """Latin-1, and a file that is a folder."""
    path_of(home).write_bytes("version: 1 # é".encode("latin-1"))
    with pytest.raises(ThresholdsError, match="not UTF-8"):
        load(home)
    path_of(home).unlink()
    path_of(home).mkdir()
    with pytest.raises(ThresholdsError, match="cannot be read"):
        load(home)


@given(st.text(alphabet="version: 1profiles\n  -[]{}&*?'\"#%a100criteria,|>", max_size=200))
def test_any_text_is_refused_in_words(text: str) -> None:
    """No file breaks the reader."""
    with pytest.raises(ThresholdsError) as caught:  # nothing in this alphabet makes a whole file
        read(text.encode(), "t.yaml")
    assert caught.value.problems
    assert all(problem.line >= 1 for problem in caught.value.problems)


def test_the_digest_is_of_what_decides(home: Home) -> None:
    """Comments, order and wording leave it; a value, a figure, a pattern, an n and the calendar change it."""
    base = load(written(home, SMALL)).rules("mine").sha256
    lines = SMALL.splitlines(keepends=True)
    moved = "".join([*lines[:12], *lines[16:], *lines[12:16]])
    for same in ("# note\n" + SMALL, SMALL.replace("[Cold start,", "[Cold beginning,"), moved):
        assert load(written(home, same)).rules("mine").sha256 == base
    for old, new in (
        ("quality: 80%", "quality: 81%"),
        ("cold.ttfb_s", "cold.ttft_s"),
        ("patterns: [b]", "patterns: [a, b]"),
        ("minimal_n: 20", "minimal_n: 19"),
        ("2026-12-31", "2026-12-30"),
    ):
        assert load(written(home, SMALL.replace(old, new))).rules("mine").sha256 != base, new
    other_profile = load(written(home, SMALL.replace("cold: 15", "cold: 16")))
    assert other_profile.rules("mine").sha256 == base
    assert other_profile.rules("a100").sha256 != base


def test_what_decides_goes_to_and_fro() -> None:
    """An approval's values judge as the criteria they were taken from."""
    for criterion in built_in().rules("a100").criteria:
        ruled = Ruled.of(criterion)
        assert Ruled.of(ruled.criterion()) == ruled
