"""What commands say of themselves: help, hints, both languages."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sekisho.cli import hints
from sekisho.cli.app import app
from sekisho.cli.messages import TABLE

Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("home")


def every_command() -> list[list[str]]:
    found: list[list[str]] = []
    for info in app.registered_commands:
        found.append([str(info.name)])
    for group in app.registered_groups:
        assert group.typer_instance is not None
        found += [[str(group.name), str(info.name)] for info in group.typer_instance.registered_commands]
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example_and_json(command: list[str]) -> None:
    """--help tells an example, a word in Japanese, and that there is --json; it ends with 0."""
    with hints.one_command():  # the program's own frame, which CliRunner passes by
        result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert f"sekisho {' '.join(command)}" in result.output
    assert "Example:" in result.output
    assert "--json" in result.output
    assert any("\u3040" <= letter <= "\u30ff" or "\u4e00" <= letter <= "\u9fff" for letter in result.output)


@pytest.mark.parametrize("group", [[], *([str(group.name)] for group in app.registered_groups)], ids=" ".join)
def test_every_group_has_help_with_an_example(group: list[str]) -> None:
    """The page above the commands tells one to begin with, and a word in Japanese."""
    result = CliRunner().invoke(app, [*group, "--help"], env={"COLUMNS": "200"})
    assert re.search(rf"Example: +{' '.join(['sekisho', *group])} [\w-]", result.output), result.output
    assert any("\u3040" <= letter <= "\u30ff" or "\u4e00" <= letter <= "\u9fff" for letter in result.output)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["status"], "sekisho up{}"),
        (["key", "list"], "sekisho key create{} --name taro"),
        (["doctor"], "sekisho up{}"),
        (["model", "add", "x", "--path", "builtin"], "sekisho down{}, then sekisho up{}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_hint_looks_into_the_home_that_was_given(
    sekisho: Run, tmp_path: Path, arguments: list[str], told: str
) -> None:
    """With `--home` the commands of hints name it; without, they are as short as can be."""
    other = tmp_path / "an other"
    assert told.replace("{}", f" --home '{other}'") in "".join(map(str, sekisho(*arguments, "--home", str(other))[1:]))
    assert told.replace("{}", "") in "".join(map(str, sekisho(*arguments)[1:]))


def test_help_needs_nothing_heavy() -> None:
    """The list of commands comes without loading the event loop, the database layer, YAML or the HTTP client."""
    code = (
        "import sys; from sekisho.cli.running import run; run(['--help']); "
        "print([m for m in ('asyncio', 'aiohttp', 'sqlalchemy', 'yaml', 'msgspec', 'psutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_japanese(sekisho: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Japanese locale the words are Japanese; SEKISHO_LANG has the last word."""
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    assert "動いていません" in sekisho("status")[2]
    monkeypatch.setenv("SEKISHO_LANG", "en")
    assert "not running" in sekisho("status")[2]


def test_both_languages_take_the_same_values() -> None:
    """No message loses a value in translation."""
    from string import Formatter

    for key, (english, japanese) in TABLE.items():
        names = [{name for _, name, _, _ in Formatter().parse(text) if name} for text in (english, japanese)]
        assert names[0] == names[1], key
