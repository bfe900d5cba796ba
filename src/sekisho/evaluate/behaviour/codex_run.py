"""The real Codex CLI at work on tasks, headless, each in a folder and a home of its own.

Its key is in its environment alone. What the model has it do runs in Codex' sandbox, where nothing can be written.
"""

import asyncio
import os
import re
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from sekisho.core.errors import InvalidRequest, NotFound
from sekisho.evaluate.behaviour.session_tasks import SESSION_TASKS, SessionTask
from sekisho.evaluate.behaviour.sessions import DETAIL_CHARS, Outcome, SessionResult, Step, at_once, counted
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.figures import Figure
from sekisho.evaluate.progress import Progress, silent
from sekisho.ops import process_tree

KEY_ENV = "SEKISHO_API_KEY"
PROVIDER = "sekisho"
_LAST_WORDS_S = 10.0
_KEPT_ENV = (
    "PATH", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "COMSPEC", "PATHEXT", "SSL_CERT_FILE",
    "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
    "no_proxy",
)  # fmt: skip
# Codex 0.169 says `Reconnecting... 1/5 (cause)` of each further try, and the cause alone at the end.
_AGAIN = re.compile(r"Reconnecting\.\.\. (?:\d+/\d+|waiting for network) \((.*)\)", re.DOTALL)
_CUT_WORDS = re.compile(r"stream disconnected|stream closed|idle timeout|timed out", re.IGNORECASE)
_NOT_CONNECTED_WORDS = re.compile(r"error sending request|connection failed|unexpected status", re.IGNORECASE)
_NOT_AN_ERROR = (
    "Model metadata for",  # Codex says so of every model that its vendor does not list
    "in-process app-server event stream lagged",  # its own queue was full: it reads back what it dropped
)


class CodexPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`tasks`: how many of the twenty. `timeout_s`: for each; Codex itself tries again for minutes. `sandbox`:
    `danger-full-access` lets the model write to this machine: only where nothing can be lost."""

    tasks: int = len(SESSION_TASKS)
    timeout_s: float = 600.0
    sandbox: Literal["read-only", "workspace-write", "danger-full-access"] = "read-only"

    def __post_init__(self) -> None:
        if not 1 <= self.tasks <= len(SESSION_TASKS):
            raise InvalidRequest(f"1 to {len(SESSION_TASKS)} tasks", param="tasks")


def find_codex(given: Path | None = None) -> Path | None:
    """The program that was named, else the one on PATH, else None. Raises NotFound for a name that is no program."""
    if given is None:
        found = shutil.which("codex")
        return Path(found) if found else None
    found = shutil.which(str(given))
    if found is None:
        raise NotFound(f"{given} is no program that can be run")
    return Path(found)


async def run_codex(
    program: Path,
    target: Target,
    plan: CodexPlan | None = None,
    progress: Progress = silent,
    *,
    step: Step = at_once,
    tasks: Sequence[SessionTask] = SESSION_TASKS,
    started: Callable[[Process], Awaitable[None]] | None = None,
) -> tuple[SessionResult, ...]:
    """One task after the other, its first prompt alone. `started` is told of each process, which ends with this call.

    Raises NotFound where the program cannot be started, and what `step` and `started` raise.
    """
    plan = plan or CodexPlan()
    tasks = tasks[: plan.tasks]
    results = []
    for number, task in enumerate(tasks):
        progress("codex", number, len(tasks))
        results.append(await step(f"codex-{task.id}", _Work(program, target, plan, task, started)))
    progress("codex", len(tasks), len(tasks))
    return tuple(results)


def figures(results: Sequence[SessionResult], *, command: str = "", file: str = "sessions.json") -> list[Figure]:
    """`codex.tasks`, `.connection_failures`, `.cuts`."""
    return counted(results, "codex", command=command, file=file)


def arguments(target: Target, plan: CodexPlan, folder: Path, prompt: str) -> list[str]:
    """Without any key: it is read from `KEY_ENV`. The values of `-c` are TOML.

    The session is kept, in a home that goes with the run: of a quick answer Codex may drop its own events, the message
    and the usage among them, and only from a session does it read the message back (`codex exec` 0.171, 3 of 76 turns
    of 2,000 pieces without one).
    """
    provider = {"name": PROVIDER, "base_url": f"{target.url}/v1", "env_key": KEY_ENV, "wire_api": "responses"}
    table = ",".join(f"{name}={_toml(value)}" for name, value in provider.items())
    flags = ["--ignore-user-config", "--skip-git-repo-check", "--json", "-C", str(folder)]
    settings = [f"model_provider={PROVIDER}", f"model_providers.{PROVIDER}={{{table}}}"]
    return [
        *("exec", *flags, "-s", plan.sandbox, "-m", target.model),
        *(word for setting in settings for word in ("-c", setting)),
        *("--", prompt),
    ]


def _toml(text: str) -> str:
    return msgspec.json.encode(text).decode()  # a JSON string is a TOML basic string


def environment(target: Target, home: Path, outer: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What Codex needs, and the key; nothing else of this process's environment: there may be secrets in it."""
    kept = {name: outer[name] for name in _KEPT_ENV if name in outer}
    marks = {name: outer[name] for name in (process_tree.RUN_ENV,) if name in outer}
    key = {} if target.key is None else {KEY_ENV: target.key.reveal()}
    return kept | marks | key | {"CODEX_HOME": str(home), "HOME": str(home), "USERPROFILE": str(home)}


class _Work:
    def __init__(
        self,
        program: Path,
        target: Target,
        plan: CodexPlan,
        task: SessionTask,
        started: Callable[[Process], Awaitable[None]] | None,
    ) -> None:
        self._program, self._target, self._plan, self._task = program, target, plan, task
        self._started = started

    async def __call__(self) -> SessionResult:
        with (
            tempfile.TemporaryDirectory(prefix="sekisho-codex-", ignore_cleanup_errors=True) as home,
            tempfile.TemporaryDirectory(prefix="sekisho-work-", ignore_cleanup_errors=True) as folder,
        ):
            return await self._run(Path(home), Path(folder))

    async def _run(self, home: Path, folder: Path) -> SessionResult:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._program),
                *arguments(self._target, self._plan, folder, self._task.prompts[0]),
                cwd=folder,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env=environment(self._target, home),
                start_new_session=True,
            )
        except OSError as error:
            raise NotFound(f"{self._program} cannot be started: {error}") from error
        try:
            if self._started is not None:
                await self._started(process)
            out, err, late = await self._output(process)
        finally:
            _end(process)
            await process.wait()
        ms = (loop.time() - began_s) * 1e3
        return self._judged(read_events(out), process.returncode, err, late, ms)

    async def _output(self, process: Process) -> tuple[bytes, bytes, bool]:
        """(standard output, standard error, whether its time was over)."""
        talk = asyncio.ensure_future(process.communicate())
        late = True
        try:
            await asyncio.wait((talk,), timeout=self._plan.timeout_s)
            late = not talk.done()
        finally:
            if not talk.done():
                _end(process)
                await asyncio.wait((talk,), timeout=_LAST_WORDS_S)
                talk.cancel()  # something that left the group still holds the pipes
        out, err = talk.result() if talk.done() and not talk.cancelled() else (b"", b"")
        return out, err, late

    def _judged(
        self, events: list[dict[str, Any]], code: int | None, err: bytes, late: bool, ms: float
    ) -> SessionResult:
        complaints = _complaints(events)
        last = events[-1].get("type") if events else None
        completed = last == "turn.completed" and code == 0
        outcome: Outcome = "ok"
        if any(map(is_cut, complaints)) or (late and not complaints):
            outcome = "cut"  # even where Codex tried again and came through
        elif complaints or not completed:
            outcome = "connection"
        elif not _has_answer(events):
            outcome = "no_text"
        words = [f"no end within {self._plan.timeout_s:g} s"] if late else []
        words += complaints or ([] if completed else [err.decode(errors="replace").strip()])
        detail = " | ".join(dict.fromkeys(words))
        if self._target.key is not None:
            detail = detail.replace(self._target.key.reveal(), str(self._target.key))
        faults = () if outcome == "ok" else (f"exit {code}",)
        return SessionResult(
            task=self._task.id, outcome=outcome, requests=1, faults=faults, detail=detail[:DETAIL_CHARS], ms=ms
        )


def _end(process: Process) -> None:
    """Ends it and what it started; nothing happens where it has ended."""
    if process.returncode is None or os.name == "posix":
        process_tree.signal_group(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def read_events(output: bytes) -> list[dict[str, Any]]:
    """The JSON lines of `codex exec --json`; what is none is left out."""
    events = []
    for line in output.splitlines():
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if isinstance(value, dict):
            events.append(value)
    return events


def _complaints(events: list[dict[str, Any]]) -> list[str]:
    """Everything that Codex calls an error."""
    told: list[Any] = []
    for event in events:
        item = event.get("item")
        if event.get("type") == "error":
            told.append(event.get("message"))
        elif event.get("type") == "turn.failed":
            error = event.get("error")
            told.append(error.get("message") if isinstance(error, dict) else error)
        elif event.get("type") == "item.completed" and isinstance(item, dict) and item.get("type") == "error":
            told.append(item.get("message"))
    return [_cause(str(text)) for text in told if text and not str(text).startswith(_NOT_AN_ERROR)]


def _cause(text: str) -> str:
    again = _AGAIN.fullmatch(text)
    return again[1] if again else text


def is_cut(complaint: str) -> bool:
    """Whether an answer had begun, and was cut off or stopped coming; else the request was not taken at all."""
    return bool(_CUT_WORDS.search(complaint)) and not _NOT_CONNECTED_WORDS.search(complaint)


def _has_answer(events: list[dict[str, Any]]) -> bool:
    items = [event["item"] for event in events if isinstance(event.get("item"), dict)]
    return any(item.get("type") == "agent_message" and str(item.get("text") or "").strip() for item in items)
