"""`sekisho top`: what the engines do now, in the terminal."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sekisho.cli.agent_client import AgentClient, agent_client
from sekisho.cli.failure import CommandFailed
from sekisho.cli.options import HomeOption, JsonOption, at_home, example
from sekisho.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console, Group

REMEMBERED = 120

AgentOption = Annotated[
    str | None, typer.Option("--agent", metavar="URL", help="The agent's address; default: that of this home's server.")
]


def register(app: typer.Typer) -> None:
    app.command("top", epilog=example("sekisho top", "sekisho top --once", ja="稼働状況を端末に表示し続けます。"))(top)


def top(
    every_s: Annotated[float, typer.Option("--every", min=0.2, max=60, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    agent: AgentOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Watch throughput, latency, KV memory, devices, policy and decisions. q ends it, p pauses."""
    out = Output(as_json=as_json)
    client = agent_client(at_home(home), agent)
    if as_json or once or not sys.stdout.isatty():
        answers = look(client)
        out.json(answers)
        if not as_json:
            console = out.console()
            console.print(_group(answers, (), console, out.language))
        return
    _watch(client, out, every_s)


def look(client: AgentClient) -> dict[str, Any]:
    """All that a frame needs. Raises CommandFailed."""
    return {
        "health": client.get("/v1/health"),
        "metrics": client.get("/v1/metrics"),
        "policy": client.get("/v1/policy"),
        "decisions": client.get("/v1/decisions?limit=20")["decisions"],
    }


def _watch(client: AgentClient, out: Output, every_s: float) -> None:
    from rich.live import Live

    console = out.console()
    rates: deque[float] = deque(maxlen=REMEMBERED)
    answers: dict[str, Any] = {}
    paused = False
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            if not paused:
                answers = _look_again(client, answers)
                rate = ((answers.get("metrics") or {}).get("throughput") or {}).get("tokens_per_second")
                rates.append(rate or 0.0)
            live.update(_group(answers, tuple(rates), console, out.language, paused), refresh=True)
            until = time.monotonic() + every_s
            while time.monotonic() < until:
                key = pressed(min(0.2, max(0.0, until - time.monotonic())))
                if key in ("q", "Q", "\x03"):
                    return
                if key in ("p", "P", " "):
                    paused = not paused
                    break


def _look_again(client: AgentClient, before: dict[str, Any]) -> dict[str, Any]:
    """The agent may be between two lives: what was seen last stays, with the reason."""
    try:
        return look(client)
    except CommandFailed as error:
        return {**before, "error": error.message}


def _group(
    answers: dict[str, Any], rates: tuple[float, ...], console: "Console", language: str, paused: bool = False
) -> "Group":
    from rich.console import Group

    from sekisho.cli.top_view import frame

    height = console.height if sys.stdout.isatty() else 24
    return Group(*frame(answers, rates, width=console.width, height=height, language=language, paused=paused))


@contextlib.contextmanager
def _keys() -> "Iterator[Any]":
    """A function that waits so many seconds for a key and answers it, or nothing. Restores the terminal."""
    if os.name == "nt":
        import msvcrt

        def pressed(wait_s: float) -> str:
            time.sleep(wait_s)
            return msvcrt.getwch() if msvcrt.kbhit() else ""  # type: ignore[attr-defined,unused-ignore]

        yield pressed
        return
    import select
    import termios
    import tty

    if not sys.stdin.isatty():

        def waited(wait_s: float) -> str:
            time.sleep(wait_s)
            return ""

        yield waited
        return
    before = termios.tcgetattr(sys.stdin)

    def pressed_here(wait_s: float) -> str:
        ready, _, _ = select.select([sys.stdin], [], [], wait_s)
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(sys.stdin.fileno())
        yield pressed_here
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
