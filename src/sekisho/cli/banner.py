"""What the person who started the server sees."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sekisho.cli.output import Output


def _own_name() -> str:
    """How the reader calls this program: by name, or by path where it is in nobody's PATH (a fresh `make up`)."""
    if shutil.which("sekisho") is not None:
        return "sekisho"
    program = os.path.relpath(sys.argv[0])
    return program if os.path.basename(program).startswith("sekisho") else "sekisho"


def _down(home: str) -> str:
    """The line that stops this server: it names the home where a bare `down` would look into another one."""
    from sekisho.ops.home import Home

    elsewhere = Path(home) != Home.find().path
    return " ".join((_own_name(), "down", *(("--home", shlex.quote(home)) if elsewhere else ())))


def show(out: Output, announcement: Mapping[str, Any], *, detached: bool) -> None:
    """`announcement`: `serve.Announcement` as plain values. The JSON form is printed by the caller."""
    from sekisho.ops.clients import KEY_VARIABLE, Setup, curl_line

    url, models = announcement["url"], announcement["models"]
    out.line()
    out.line(out.text("up_at", url=url), style="bold green")
    if announcement.get("admin_key"):
        out.say("admin_key")
        out.line(f"  {announcement['admin_key']}", style="bold")
    out.say("try_it")
    if announcement.get("admin_key"):
        out.line(f"  export {KEY_VARIABLE}={announcement['admin_key']}")
    if models:
        question = "Sekisho とは何ですか？" if out.language == "ja" else "What is Sekisho?"
        out.line(f"  {curl_line(Setup(url, models[0]), question)}")
    out.say("chat_page", url=url)
    if announcement.get("agent_token"):
        out.say("agent_token", path=Path(announcement["home"]) / "secrets" / "agent.token")
        out.line(f"  {announcement['agent_token']}")
    out.say("models_are", models=", ".join(models))
    out.say("stop_with" if detached else "stop_with_ctrl_c", command=_down(announcement["home"]))
    for warning in announcement.get("warnings", ()):
        out.warn(warning)
