"""What is compared, and how each is installed, started and stopped. Each runs as its users would run one worker."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from load import Target

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build"
KEY = "sk-bench-0123456789abcdef0123456789abcdef"
PROXY_CORE, LOAD_CORE = 0, 1
_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


class CannotRun(Exception):
    """A candidate that cannot be had here; the text says why."""


@dataclass(frozen=True)
class Site:
    """Where one start of a candidate happens."""

    port: int
    upstream_port: int
    folder: Path

    @property
    def upstream_url(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}/v1"


@dataclass(frozen=True)
class Candidate:
    """`command` writes what the program needs into the site's folder and returns its command line."""

    name: str
    version: Callable[[], str]
    command: Callable[[Site], list[str]]
    environment: dict[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass
class Running:
    """A started program: its target for the load, its costs."""

    target: Target
    start_s: float
    process: psutil.Process | None = None

    def cpu_s(self) -> float:
        """User and system seconds of the whole process tree."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in self._tree()))

    def rss_mb(self) -> float:
        return sum(each.memory_info().rss for each in self._tree()) / 1e6

    def _tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)] if self.process else []


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotRun(f"{' '.join(command)}: exit {done.returncode}: {(done.stdout + done.stderr)[-600:]}")
    return (done.stdout + done.stderr).strip()


def _nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise CannotRun("nginx is not installed (Debian: apt-get install nginx-light)")
    return found


def _nginx_version() -> str:
    return _run([_nginx(), "-v"]).rpartition("/")[2]


def _nginx_command(site: Site) -> list[str]:
    text = (HERE / "nginx.conf").read_text()
    values = {"FOLDER": str(site.folder), "KEY": KEY, "PORT": str(site.port), "UPSTREAM_PORT": str(site.upstream_port)}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    config = site.folder / "nginx.conf"
    config.write_text(text)
    return [_nginx(), "-p", str(site.folder), "-e", str(site.folder / "error.log"), "-c", str(config)]


def _litellm_python() -> Path:
    """The interpreter of LiteLLM's own virtual environment, made on first use."""
    home = BUILD / "bench-litellm"
    python = home / "bin" / "python"
    if not (home / "bin" / "litellm").exists():
        print(f"installing LiteLLM into {home} …", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(python), "-m", "pip", "install", "-q", "litellm[proxy]"])
    return python


def _litellm_version() -> str:
    code = "from importlib.metadata import version; print(version('litellm'))"
    return _run([str(_litellm_python()), "-c", code]).splitlines()[-1]


def _litellm_command(site: Site) -> list[str]:
    config = site.folder / "config.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: bench\n"
        "    litellm_params:\n"
        "      model: openai/bench\n"
        f"      api_base: {site.upstream_url}\n"
        "      api_key: sk-upstream\n"
        "litellm_settings:\n"
        "  set_verbose: false\n"
        "  telemetry: false\n"
        "general_settings:\n"
        f"  master_key: {KEY}\n"
    )
    program = str(_litellm_python().with_name("litellm"))
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(site.port), "--num_workers", "1"]


def _our_version() -> str:
    version = _run([sys.executable, "-c", "import sekisho; print(sekisho.__version__)"])
    commit = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return f"{version} ({commit.stdout.strip() or 'no commit'})"


def gateway_command(site: Site, guard: str = "basic") -> list[str]:
    """Our gateway as one process with identification, every limit, usage, guard and book on."""
    key_file = site.folder / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    server = [sys.executable, str(HERE / "server.py"), "--home", str(site.folder / "home")]
    _run([*server, "--prepare", str(key_file)])
    return [*server, "--port", str(site.port), "--upstream", site.upstream_url, "--guard", guard]


CANDIDATES = {
    each.name: each
    for each in (
        Candidate("nginx", _nginx_version, _nginx_command, note="key check only: no limits, no usage"),
        Candidate(
            "litellm",
            _litellm_version,
            _litellm_command,
            # its production settings; the cost map from the package, so that a start does not wait for the network
            {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            note="master key only: keys, limits and usage need Postgres",
        ),
        Candidate("ours", _our_version, gateway_command, note="keys, all limits, usage, guard and book on"),
        Candidate("ours-unjudged", _our_version, partial(gateway_command, guard="off"), note="the same, guard off"),
    )
}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pinned() -> bool:
    """Is there a core for the proxy and another for upstream and load?"""
    return {PROXY_CORE, LOAD_CORE} <= _CORES


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """This thread, and what it starts inside, stays on the core; nothing happens where cores cannot be chosen."""
    if core is None or not pinned():
        yield
        return
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, _CORES)


@contextmanager
def spawned(
    command: list[str], log: Path, environment: dict[str, str] | None = None, core: int | None = None
) -> Iterator[psutil.Popen]:
    """A child in its own process group, ended with everything it started."""
    with log.open("wb") as sink, on_core(core):
        child = psutil.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=HERE.parent,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        _end_group(child)


def _end_group(child: psutil.Popen) -> None:
    for number, patience_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(child.pid, number)
            child.wait(patience_s)
        except ProcessLookupError:
            return  # all gone
        except psutil.TimeoutExpired:
            continue  # SIGTERM was not enough


@contextmanager
def running(candidate: Candidate, upstream_port: int, folder: Path, patience_s: float = 90.0) -> Iterator[Running]:
    """Starts a candidate and waits for its first 200. Raises CannotRun with the tail of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    site = Site(free_port(), upstream_port, folder)
    command = candidate.command(site)
    log = folder / "output.log"
    target = Target(site.port, KEY)
    started = time.perf_counter()
    with spawned(command, log, candidate.environment, PROXY_CORE) as child:
        wait_until_ready(child, target, log, patience_s)
        yield Running(target, time.perf_counter() - started, child)


def wait_until_ready(child: psutil.Popen, target: Target, log: Path, patience_s: float) -> None:
    """Asks a real chat question every 5 ms until it is answered with 200."""
    deadline = time.monotonic() + patience_s
    answer = b""
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise CannotRun(f"exit {child.returncode}: {log.read_text(errors='replace')[-600:].strip()}")
        answer = _ask_once(target)
        if answer.startswith(b"HTTP/1.1 200"):
            return
        time.sleep(0.005)
    raise CannotRun(f"no 200 within {patience_s} s; last answer {answer[:300]!r}; {log.read_text()[-600:]}")


def _ask_once(target: Target) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", target.port), timeout=30) as connection:
            connection.sendall(target.request("whole"))
            return connection.recv(65536)
    except OSError:
        return b""  # not listening yet
