"""The pages name everything that there is."""

import re
from pathlib import Path

import msgspec
import pytest
import typer
from typer.main import get_command

from sekisho.cli.app import app
from sekisho.cli.failure import ABSENT, FAILED, INTERRUPTED, NO_NETWORK, OK, USAGE
from sekisho.control.config import ControlConfig, QualityLoopConfig
from sekisho.engines.config import ModelConfig
from sekisho.gateway.config import GatewayConfig, Price
from sekisho.ops.catalogue import catalogue
from sekisho.ops.clients import CLIENTS
from sekisho.settings import Settings
from sekisho.store.config import StoreConfig

DOCS = Path(__file__).parents[2] / "docs"


def commands(group: typer.Typer, prefix: str = "sekisho") -> dict[str, list[str]]:
    """Every command with its long options, as Typer knows them."""
    found: dict[str, list[str]] = {}
    pending = [(prefix, get_command(group))]
    while pending:
        name, command = pending.pop()
        children = getattr(command, "commands", {})
        pending += [(f"{name} {child}", value) for child, value in children.items()]
        found[name] = [option for p in command.params for option in p.opts if option.startswith("--")]
    return found


@pytest.mark.parametrize(("command", "options"), sorted(commands(app).items()))
def test_every_command_and_option_is_in_the_page(command: str, options: list[str]) -> None:
    """docs/cli.md names the command and each of its options."""
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert command in page
    for option in options:
        assert re.search(rf"{option}(?![a-z-])", page), f"{command} {option}"


@pytest.mark.parametrize("code", [OK, FAILED, USAGE, ABSENT, NO_NETWORK, INTERRUPTED])
def test_every_exit_code_is_in_the_page(code: int) -> None:
    """Each exit code has its row."""
    assert f"\n| {code} | " in (DOCS / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("struct", [Settings, GatewayConfig, Price, StoreConfig, ModelConfig])
def test_every_setting_is_in_the_page(struct: type[msgspec.Struct]) -> None:
    """docs/configuration.md names each setting; simple defaults are the ones that the program has."""
    check_settings(struct, (DOCS / "configuration.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("struct", "heading"), [(ControlConfig, "## `control`\n"), (QualityLoopConfig, "`control.quality`:\n")]
)
def test_every_setting_of_the_agent_is_in_its_part_of_the_page(struct: type[msgspec.Struct], heading: str) -> None:
    """Names that other parts have as well, each with its own default."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    check_settings(struct, page[page.index(heading) :])


def check_settings(struct: type[msgspec.Struct], page: str) -> None:
    for field in msgspec.structs.fields(struct):
        assert f"`{field.name}`" in page, field.name
        row = re.search(rf"^\| `{field.name}` \| `([^`]*)` \|", page, re.MULTILINE)
        if row is not None and isinstance(field.default, int | float | bool | str):
            shown = str(field.default).lower() if isinstance(field.default, bool) else field.default
            assert row[1] == (f"{shown:g}" if isinstance(shown, float) else str(shown)), field.name


def test_every_catalogue_model_is_in_the_page() -> None:
    """docs/models.md lists each model with its repository and licence."""
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    for entry in catalogue():
        assert re.search(rf"^\| `{entry.name}` \| {entry.repo} \| .* \| {entry.licence} \|$", page, re.MULTILINE)


def test_every_client_is_in_the_page() -> None:
    """docs/clients.md has a row for each program."""
    page = (DOCS / "clients.md").read_text(encoding="utf-8")
    for name in CLIENTS:
        assert f"`sekisho client {name}`" in page
