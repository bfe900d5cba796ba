"""`sekisho config show|check|path|init`."""

from typing import Annotated

import typer

from sekisho.cli.failure import CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output, plain

app = typer.Typer(
    help="Look at the settings, check them, make a commented file.",
    epilog=example("sekisho config init", "sekisho config check", ja="設定を表示し、検査します。"),
    no_args_is_help=True,
)


@app.command("show", epilog=example("sekisho config show", ja="有効な設定を表示します。"))
def show(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show the settings in force: file, environment and defaults together."""
    out, place = Output(as_json=as_json), at_home(home)
    settings = masked(plain(settings_of(place)))
    out.json({"home": str(place.path), "settings": settings})
    if not out.as_json:
        import yaml

        out.line(f"# {place.settings_file}")
        out.line(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120).rstrip())


def masked(settings: dict[str, object]) -> dict[str, object]:
    """DATABASE_URL may hold a password: it is not shown."""
    store = settings.get("store")
    if isinstance(store, dict) and store.get("url"):
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            store["url"] = make_url(store["url"]).render_as_string(hide_password=True)
        except ArgumentError:
            store["url"] = "(not an address)"
    return settings


@app.command("check", epilog=example("sekisho config check", ja="設定ファイルを検査します。"))
def check(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Check sekisho.yaml: every problem with its line. Exit code 2 when there is one."""
    out, place = Output(as_json=as_json), at_home(home)
    settings_of(place)
    exists = place.settings_file.exists()
    out.json({"ok": True, "path": str(place.settings_file), "exists": exists})
    out.say("config_good" if exists else "config_default", path=place.settings_file)


@app.command("path", epilog=example("sekisho config path", ja="設定ファイルの場所を表示します。"))
def path(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show where the settings file is, whether or not it is there yet."""
    out, place = Output(as_json=as_json), at_home(home)
    out.json({"path": str(place.settings_file), "exists": place.settings_file.exists()})
    out.line(str(place.settings_file))


@app.command("init", epilog=example("sekisho config init", ja="説明付きの設定ファイルを作ります。"))
def init(
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a commented sekisho.yaml that says what the defaults say."""
    from sekisho.settings import default_text, write_text

    out, place = Output(as_json=as_json), at_home(home)
    if place.settings_file.exists() and not force:
        raise CommandFailed(f"{place.settings_file} is there already", hint="--force replaces it")
    place.create()
    write_text(place.settings_file, default_text())
    out.json({"path": str(place.settings_file)})
    out.say("config_written", path=place.settings_file)
