"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sekisho.cli.hints import remember_home

if TYPE_CHECKING:
    from sekisho.ops.home import Home
    from sekisho.settings import Settings

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder with settings, keys, models and logs.",
        show_envvar=True,
        envvar="SEKISHO_HOME",
        callback=remember_home,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output, errors too.")]


def example(*lines: str, ja: str = "") -> str:
    """An epilog: what to type, and what the command does in Japanese."""
    text = "\n\n".join(("Example: " + "  ·  ".join(f"[bold]{line}[/bold]" for line in lines), ja))
    return text.strip()


def at_home(home: Path | None) -> "Home":
    from sekisho.ops.home import Home

    return Home.find(home)


def settings_of(home: "Home") -> "Settings":
    """Raises SettingsError. Migrations are told on standard error."""
    import sys

    from sekisho import settings

    return settings.load(home, notify=lambda change: print(change, file=sys.stderr))
