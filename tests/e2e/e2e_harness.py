"""The command line as a person has it: real processes, a home of their own, a free port."""

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
from kept_port import kept_port

from sekisho.ops import process_tree
from sekisho.ops.children_file import ChildStatus, read_children
from sekisho.ops.home import Home
from sekisho.store import Store, UsageRecord

FAKE = "  - {name: fake, engine: fake, slots: 32}\n"
CHAT = "/v1/chat/completions"


def eventually(fact: Callable[[], Any], within_s: float = 60.0) -> Any:
    """The first true value of `fact`, or its last one; generous, because a loaded machine is slow and not wrong."""
    deadline = time.monotonic() + within_s
    while not (found := fact()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def chat(text: str, model: str = "fake", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


class Sekisho:
    """One home. `key` is there after the first `up`. `agent`: with the control agent, which most tests do without."""

    def __init__(
        self, folder: Path, models: str = FAKE, port: int | None = None, gateway: str = "", *, agent: bool = False
    ) -> None:
        self.port = port or kept_port()
        self.home = Home(folder).create()
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = ""
        self._clients: list[httpx.Client] = []
        control = "" if agent else "control:\n  enabled: false\n"
        self.home.settings_file.write_text(f"gateway:\n  port: {self.port}\n{gateway}{control}models:\n{models}")

    def run(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """`sekisho ARGUMENTS` on this home."""
        environment = {**os.environ, "SEKISHO_HOME": str(self.home.path), "LANG": "C.UTF-8", "COLUMNS": "1000"}
        environment.pop("DATABASE_URL", None)
        return subprocess.run(
            (sys.executable, "-m", "sekisho", *arguments),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The same with `--json`; checks the exit code."""
        done = self.run(*arguments, "--json")
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        told: dict[str, Any] = json.loads(done.stdout or done.stderr)
        return told

    def up(self) -> dict[str, Any]:
        told = self.json("up", "--detach")
        self.key = told.get("admin_key") or self.key
        return told

    def down(self) -> None:
        """Ends what runs, by the orderly way where that works."""
        while self._clients:
            self._clients.pop().close()
        done = self.run("down", "--json")
        for child in self.children() if done.returncode not in (0, 3) else ():
            if child.pid and child.birth == process_tree.birth(child.pid):
                os.kill(child.pid, signal.SIGKILL)

    def children(self) -> list[ChildStatus]:
        found = read_children(self.home.run)
        return found.children if found else []

    def child(self, name: str) -> ChildStatus:
        return next(child for child in self.children() if child.name == name)

    def pids(self) -> list[int]:
        """The supervisor's process, then those of all its descendants."""
        supervisor = psutil.Process(self.json("status")["pid"])
        return [supervisor.pid, *(process.pid for process in supervisor.children(recursive=True))]

    def client(self, key: str | None = None, **options: Any) -> httpx.Client:
        options.setdefault("timeout", 60.0)
        headers = {"authorization": f"Bearer {key or self.key}"}
        client = httpx.Client(base_url=self.url, headers=headers, **options)
        self._clients.append(client)
        return client

    def ready(self) -> bool:
        try:
            return self.client().get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def usage(self) -> list[UsageRecord]:
        """Every usage row in the database."""

        async def rows() -> list[UsageRecord]:
            store = await Store.open(str(self.home.database))
            try:
                return [row async for row in store.usage_rows(0, 1e11)]
            finally:
                await store.close()

        return asyncio.run(rows())


def load_beside(folder: str) -> ModuleType:
    """The fixtures of another folder of tests."""
    source = Path(__file__).parents[1] / folder / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_conftest", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Launch = Callable[..., Sekisho]
