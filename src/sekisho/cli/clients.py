"""`sekisho client`."""

from typing import Annotated

import typer

from sekisho.cli.failure import USAGE, CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example, settings_of
from sekisho.cli.output import Output


def register(app: typer.Typer) -> None:
    epilog = example("sekisho client codex", ja="クライアントの設定を表示します。")
    app.command("client", epilog=epilog)(client)


def client(
    program: Annotated[str, typer.Argument(help="codex, lobehub, openwebui, vscode, curl or powershell.")],
    model: Annotated[str | None, typer.Option("--model", help="Model to name; default: the default model.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Address to name; default: this server's.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print working settings for a client program. The key stands in them by reference, never itself."""
    from sekisho.ops.clients import CLIENTS, Setup, guide
    from sekisho.ops.home import running
    from sekisho.serve import base_url

    out, place = Output(as_json=as_json), at_home(home)
    if program not in CLIENTS:
        raise CommandFailed(f"{program}: not known", hint=f"one of {', '.join(CLIENTS)}", exit_code=USAGE)
    settings = settings_of(place)
    names = tuple(m.name for m in settings.models if not m.embeddings) or tuple(m.name for m in settings.models)
    if model is not None and settings.model(model) is None:
        raise CommandFailed(f"{model}: no such model", hint=f"models: {', '.join(names)}", exit_code=USAGE)
    if url is not None and not _is_web_address(url):
        raise CommandFailed(f"--url: {url!r} is no address", hint="as in https://llm.example.com", exit_code=USAGE)
    state = running(place)
    address = url or settings.gateway.public_url or (state.url if state else None) or base_url(settings.gateway)
    address = address.rstrip("/").removesuffix("/v1")
    chosen = model or settings.default_model or names[0]
    made = guide(program, Setup(address, chosen, tuple(dict.fromkeys((chosen, *names)))))
    out.json({"client": program, "url": address, "model": chosen, **_plain_guide(made)})
    for block in made.blocks:
        out.line(f"# {made.title} — {block.where}", style="bold")
        out.line(block.text)
        out.line()
    for note in made.notes:
        out.line(f"* {note}")


def _is_web_address(url: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # reading it is the check: a port that is no number raises
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(map(str.isspace, url))


def _plain_guide(made: object) -> dict[str, object]:
    from sekisho.cli.output import plain

    values: dict[str, object] = plain(made)
    return values
