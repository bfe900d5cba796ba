"""All checks at once, each within its time."""

import asyncio
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from sekisho.ops.doctor import (
    clock,
    disk,
    files,
    keys,
    machine,
    model_files,
    network,
    processes,
    programs,
    torch_models,
    upstream,
)
from sekisho.ops.doctor.finding import Case, Finding, Patient

DEADLINE_S = 4.5

Check = Callable[[Patient], list[Finding]]
"""Looks at files, processes and programs, and blocks meanwhile."""

SLOW = Case(
    "check.slow",
    "warning",
    ("{name}: no result within {seconds:g} s", "{name}: {seconds:g} 秒以内に結果が出ませんでした"),
    (
        "a disk, a driver or a network address that hangs holds it up",
        "応答しないディスク・ドライバー・接続先が原因と考えられます",
    ),
    ("look at that by itself, then repeat: sekisho doctor", "該当箇所を確認してから再実行: sekisho doctor"),
)
UNKNOWN = Case(
    "check.failed",
    "warning",
    ("{name}: cannot be looked at", "{name}: 調べられません"),
    ("{why}", "{why}"),
    ("run this as the user who runs the server", "サーバーを動かしているユーザーで実行してください"),
)
BROKEN = Case(
    "check.broken",
    "warning",
    ("{name}: the check itself failed", "{name}: 検査の処理自体が失敗しました"),
    ("{why}", "{why}"),
    (
        "this is a fault of Sekisho; report it with these words",
        "Sekisho の不具合です。この内容を添えて報告してください",
    ),
)

CHECKS: dict[str, Check] = {
    "programs": programs.check_programs,
    "settings": files.check_settings,
    "home": files.check_home,
    "files": files.check_files,
    "disk": disk.check_disk,
    "port": network.check_port,
    "proxies": network.check_proxies,
    "clock": clock.check_clock,
    "engine": programs.check_engine_library,
    "native build": programs.check_native_build,
    "machine": machine.check_machine,
    "graphics cards": machine.check_cards,
    "model files": model_files.check_models,
    "torch models": torch_models.check_torch_models,
    "models folder": model_files.check_folder,
    "processes": processes.check_children,
}


async def examine(patient: Patient, *, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """All findings, good ones too, in a steady order. Takes at most about `deadline_s`. Never raises for what it
    finds, nor for a check that fails."""
    waiting: dict[str, Awaitable[list[Finding]]] = {
        name: _in_thread(lambda check=check: check(patient), name)  # type: ignore[misc]
        for name, check in CHECKS.items()
    }
    for model in patient.models:
        if model.engine == "openai_http":
            waiting[f"upstream {model.name}"] = upstream.check_upstream(model)
    waiting["database"] = keys.check_database(patient)
    waiting["server"] = processes.check_server(patient)
    parts = await asyncio.gather(*(_within(name, check, deadline_s) for name, check in waiting.items()))
    return [finding for part in parts for finding in part]


async def _within(name: str, check: Awaitable[list[Finding]], deadline_s: float) -> list[Finding]:
    try:
        async with asyncio.timeout(deadline_s):
            return await check
    except TimeoutError:
        return [SLOW.found(name=name, seconds=deadline_s)]
    except (OSError, psutil.Error) as error:
        return [UNKNOWN.found(name=name, why=str(error) or type(error).__name__)]
    except Exception as error:  # noqa: BLE001  # one check must not take the other ones' findings with it
        where = traceback.extract_tb(error.__traceback__)[-1]
        why = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return [BROKEN.found(name=name, why=why)]


def _in_thread(work: Callable[[], list[Finding]], name: str) -> "asyncio.Future[list[Finding]]":
    """A thread that nobody waits for at the end: one that hangs in a driver must not keep the command."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[Finding]] = loop.create_future()

    def settle(findings: list[Finding] | None, error: Exception | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(findings or [])

    def run() -> None:
        findings, trouble = None, None
        try:
            findings = work()
        except Exception as error:  # noqa: BLE001 - raised again by whoever awaits the result
            trouble = error
        try:
            loop.call_soon_threadsafe(settle, findings, trouble)
        except RuntimeError:
            return  # the loop is closed: the result came too late for anybody

    threading.Thread(target=run, name=f"doctor {name}", daemon=True).start()
    return result
