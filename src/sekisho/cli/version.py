"""`sekisho version`."""

import typer

from sekisho.cli.options import JsonOption, example
from sekisho.cli.output import Output


def register(app: typer.Typer) -> None:
    app.command("version", epilog=example("sekisho version", ja="バージョンを表示します。"))(version)


def version(as_json: JsonOption = False) -> None:
    """Show the versions of Sekisho and of the engine that comes with it."""
    import platform
    from importlib import metadata

    from sekisho import __version__

    try:
        engine: str | None = metadata.version("xllamacpp")
    except metadata.PackageNotFoundError:
        engine = None
    out = Output(as_json=as_json)
    out.json({"version": __version__, "python": platform.python_version(), "xllamacpp": engine})
    out.line(f"sekisho {__version__} (Python {platform.python_version()}, xllamacpp {engine or 'not installed'})")
