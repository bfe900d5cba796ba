"""Looks for what keeps a Sekisho from working, and says how to mend it. Findings are values; nothing is changed."""

import asyncio
import datetime
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import aiohttp
import msgspec
import psutil

from sekisho.engines import builtin, gguf_header
from sekisho.engines.config import ModelConfig
from sekisho.ops.hardware import detect
from sekisho.ops.home import Home, running
from sekisho.ops.hub_listing import SPLIT
from sekisho.ops.listening import refusal

OLDEST_PYTHON = (3, 11)
LOW_DISK_BYTES = 1 << 30
FULL_DISK_BYTES = 100 << 20
CLOCK_FLOOR = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
UPSTREAM_TIMEOUT_S = 5.0

Severity = Literal["ok", "info", "warning", "error"]


class Finding(msgspec.Struct, frozen=True):
    """`id` is stable, for scripts. `fix` is what to type or do."""

    id: str
    severity: Severity
    what: str
    why: str = ""
    fix: str = ""


class Patient(msgspec.Struct, frozen=True):
    """What is examined: a home, and the settings that matter here."""

    home: Home
    host: str
    port: int
    models: tuple[ModelConfig, ...]
    settings_problems: tuple[str, ...] = ()


async def examine(patient: Patient) -> list[Finding]:
    """All findings, good ones too. Takes at most some seconds. Never raises for what it finds."""
    findings = [
        check_python(sys.version_info[:3]),
        *check_settings(patient),
        *check_home(patient.home),
        *check_disk(patient.home),
        check_port(patient),
        check_clock(),
        check_engine_library(patient.models),
        *check_machine(patient.home),
    ]
    for model in patient.models:
        if model.engine == "llama_cpp":
            findings += check_model_files(model)
        elif model.engine == "openai_http":
            findings.append(await check_upstream(model))
    return findings + await check_running(patient)


def check_python(version: tuple[int, ...]) -> Finding:
    text = ".".join(str(part) for part in version)
    if version >= OLDEST_PYTHON:
        return Finding("python", "ok", f"Python {text}")
    return Finding("python", "error", f"Python {text} is too old", "3.11 is needed", "install Python 3.11 or newer")


def check_settings(patient: Patient) -> list[Finding]:
    file = patient.home.settings_file
    if patient.settings_problems:
        fix = f"mend {file}, then: sekisho config check"
        return [Finding("settings", "error", "the settings are wrong", p, fix) for p in patient.settings_problems]
    return [Finding("settings", "ok", f"settings: {file if file.exists() else 'defaults, no file'}")]


def check_home(home: Home) -> list[Finding]:
    path = home.path
    if not path.exists():
        return [Finding("home", "info", f"{path} is not there yet", "it is made at the first start")]
    if not path.is_dir():
        return [Finding("home", "error", f"{path} is not a folder", fix="move it away, or choose another --home")]
    findings = []
    for folder in (folder for folder in home.folders() if folder.is_dir()):
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            findings.append(Finding("home", "error", f"{folder} cannot be written", fix=f"chown -R $USER {path}"))
    for folder in home.open_to_others():
        why = "other users of this machine can read keys' hashes and logs"
        findings.append(Finding("home", "warning", f"{folder} is open to others", why, f"chmod 700 {folder}"))
    return findings or [Finding("home", "ok", f"home: {path}")]


def check_disk(home: Home) -> list[Finding]:
    existing = home.path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    what = f"{free / 2**30:.1f} GiB free on the disk of {home.path}"
    if free < FULL_DISK_BYTES:
        return [Finding("disk", "error", what, "usage can no longer be written", "free some space")]
    if free < LOW_DISK_BYTES:
        return [Finding("disk", "warning", what, "models and logs need room", "free some space")]
    return [Finding("disk", "ok", what)]


def check_port(patient: Patient) -> Finding:
    """Free, or taken by ourselves, or by somebody who is named where the system tells."""
    port, refused = patient.port, refusal(patient.host, patient.port)
    if refused is None:
        return Finding("port", "ok", f"port {port} is free")
    state = running(patient.home)
    if state is not None and state.url.rsplit(":", 1)[-1].strip("/") == str(port):
        return Finding("port", "ok", f"port {port} is served by this Sekisho")
    why, fix = refused
    owner = _port_owner(port) if "--port" in fix else None
    if owner:
        why, fix = f"taken by {owner}", f"stop it, or {fix}"
    return Finding("port", "error", f"{patient.host}:{port} cannot be listened on", why, fix)


def _port_owner(port: int) -> str | None:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid and tuple(connection.laddr)[1:2] == (port,):
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        return None  # the system tells this to the administrator only
    return None


def check_clock(now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC)) -> Finding:
    moment = now()
    if moment.timestamp() < CLOCK_FLOOR:
        why = "budgets, expiry and TLS go by the clock"
        fix = "set the clock: timedatectl set-ntp true"
        return Finding("clock", "error", f"the clock says {moment:%Y-%m-%d}", why, fix)
    return Finding("clock", "ok", f"clock: {moment:%Y-%m-%d %H:%M} UTC")


def check_engine_library(models: tuple[ModelConfig, ...]) -> Finding:
    try:
        importlib.import_module("xllamacpp")
    except (ImportError, OSError) as error:
        needed = any(model.engine == "llama_cpp" for model in models)
        fix = "pip install --force-reinstall xllamacpp"
        return Finding("llama_cpp", "error" if needed else "warning", "llama.cpp does not load", str(error), fix)
    return Finding("llama_cpp", "ok", "llama.cpp loads (xllamacpp)")


def check_machine(home: Home) -> list[Finding]:
    machine = detect(home.path)
    gib = machine.ram_available_bytes / 2**30
    limit = ", limited by the container" if machine.ram_limited_by else ""
    memory = f"{gib:.1f} GiB memory free{limit}, {machine.threads} threads"
    findings = [Finding("memory", "ok" if gib >= 1 else "warning", memory)]
    for gpu in machine.gpus:
        free = "unknown" if gpu.memory_free_bytes is None else f"{gpu.memory_free_bytes / 2**30:.1f} GiB"
        findings.append(Finding("gpu", "ok", f"{gpu.name}: {free} free"))
    if not machine.gpus:
        findings.append(Finding("gpu", "info", "no graphics card seen", "models run on the processor"))
    return findings


def check_model_files(model: ModelConfig) -> list[Finding]:
    """The GGUF, its projector and its template: there, not a dangling link, and really what they should be."""
    gguf = str(builtin.path()) if model.path == "builtin" else model.path
    named = [("path", gguf, True), ("mmproj", model.mmproj, True), ("chat_template", model.chat_template, False)]
    findings = []
    for field, value, is_gguf in named:
        if value is not None:
            fault = _file_fault(Path(value).expanduser(), is_gguf)
            if fault is not None:
                why, fix = fault
                if field == "path" and model.path == "builtin":
                    fix = "install Sekisho again: its built-in model is part of the package"
                findings.append(Finding("model_file", "error", f"{model.name}: {field} {value}", why, fix))
    return findings or [Finding("model_file", "ok", f"{model.name}: {gguf}")]


def _file_fault(path: Path, is_gguf: bool) -> tuple[str, str] | None:
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there", "put the file there, or mend the link"
    if not path.exists():
        return "no such file", "sekisho model pull, or correct the path"
    if not path.is_file():
        return "not a file", "name the GGUF file itself"
    if not os.access(path, os.R_OK):
        return "cannot be read", f"chmod u+r {path}"
    if is_gguf and (missing := _missing_parts(path)):
        return f"other parts of it are missing: {', '.join(missing)}", "fetch it again: sekisho model pull"
    try:
        fault = gguf_header.problem(path) if is_gguf else None
    except OSError as error:
        return error.strerror or str(error), "check the disk"
    return (fault, "fetch it again: sekisho model pull") if fault else None


def _missing_parts(path: Path) -> list[str]:
    """The parts of a split GGUF that do not lie beside its first one."""
    match = SPLIT.match(path.name)
    if match is None:
        return []
    count = int(match["parts"])
    names = [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    return [name for name in names if not (path.parent / name).exists()]


async def check_upstream(model: ModelConfig) -> Finding:
    """Asks the address for its models, with its key where there is one."""
    what = f"{model.name}: {model.url}"
    try:
        key = _upstream_key(model)
    except (OSError, LookupError) as error:
        variable = model.api_key_env or model.api_key_file
        return Finding("upstream", "error", what, f"its key cannot be had: {error}", f"set {variable}")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=UPSTREAM_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{model.url}/models", headers=headers) as response,
        ):
            status, body = response.status, await response.read()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        why = str(error) or f"no answer within {UPSTREAM_TIMEOUT_S:g} s"
        return Finding("upstream", "error", what, why, "start that engine, or correct `url`")
    return _judge_upstream(model, what, status, body)


def _judge_upstream(model: ModelConfig, what: str, status: int, body: bytes) -> Finding:
    if status in (401, 403):
        return Finding("upstream", "error", what, f"answers {status}", "correct `api_key_env` or `api_key_file`")
    if status != 200:
        return Finding("upstream", "error", what, f"answers {status} for /models", "correct `url`: it ends in /v1")
    try:
        listed = [entry.id for entry in msgspec.json.decode(body, type=_Models).data]
    except msgspec.DecodeError:
        return Finding("upstream", "warning", what, "answers, but with no list of models")
    wanted = model.upstream_model or model.name
    if listed and wanted not in listed:
        fix = f"`upstream_model` is one of: {', '.join(listed[:20])}"
        return Finding("upstream", "warning", what, f"does not list {wanted!r}", fix)
    return Finding("upstream", "ok", f"{what} answers")


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


def _upstream_key(model: ModelConfig) -> str | None:
    if model.api_key_env is not None:
        if not os.environ.get(model.api_key_env):
            raise LookupError(f"{model.api_key_env} is not set")
        return os.environ[model.api_key_env]
    return Path(model.api_key_file).expanduser().read_text().strip() if model.api_key_file else None


async def check_running(patient: Patient) -> list[Finding]:
    """Where a server runs from this home: whether it answers."""
    state = await asyncio.to_thread(running, patient.home)
    if state is None:
        return [Finding("server", "info", "Sekisho is not running", fix="sekisho up")]
    timeout = aiohttp.ClientTimeout(total=UPSTREAM_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{state.url}/readyz") as response:
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        why = str(error) or "no answer"
        return [Finding("server", "error", f"{state.url} does not answer", why, "sekisho down, then sekisho up")]
    if status != 200:
        why = f"/readyz answers {status}"
        return [Finding("server", "error", f"{state.url} is not ready", why, "sekisho status shows what is missing")]
    return [Finding("server", "ok", f"{state.url} is ready")]
