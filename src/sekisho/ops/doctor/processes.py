"""What runs from this home: whether the server answers, and how its processes are."""

import asyncio

import aiohttp

from sekisho.ops.children_file import is_running, read_children
from sekisho.ops.doctor.finding import Case, Finding, Patient
from sekisho.ops.home import running

TIMEOUT_S = 4.0

NOT_RUNNING = Case(
    "server.not_running",
    "info",
    ("Sekisho is not running", "関所は動いていません"),
    fix=("sekisho up", "sekisho up"),
)
SILENT = Case(
    "server.silent",
    "error",
    ("{url} does not answer", "{url} が応答しません"),
    ("{why}", "{why}"),
    ("sekisho down, then sekisho up", "sekisho down のあと sekisho up"),
)
NOT_READY = Case(
    "server.not_ready",
    "error",
    ("{url} is not ready", "{url} はまだ応答できません"),
    ("/readyz answers {status}", "/readyz の応答は {status} です"),
    ("sekisho status shows what is missing", "sekisho status で原因を確認してください"),
)
READY = Case("server.ready", "ok", ("{url} is ready", "{url} は稼働中です"))
CRASHING = Case(
    "processes.crashing",
    "error",
    (
        "{name} ends again and again (last exit {code})",
        "{name} が異常終了を繰り返しています（前回の終了コード {code}）",
    ),
    ("{words}", "{words}"),
    ("see {log}; it is tried again every half minute", "{log} を確認してください（30 秒ごとに再試行しています）"),
)
MISCONFIGURED = Case(
    "processes.misconfigured",
    "error",
    ("{name} cannot run with these settings", "{name} は今の設定では動きません"),
    ("{words}", "{words}"),
    ("correct them, then: sekisho down, sekisho up", "設定を直してから: sekisho down、sekisho up"),
)
RESTARTED = Case(
    "processes.restarted",
    "warning",
    (
        "{name} was started again {count} times (last exit {code})",
        "{name} が {count} 回再起動しました（前回の終了コード {code}）",
    ),
    (
        "an exit below zero is a signal: -9 is often the system, out of memory",
        "負の値はシグナルです。-9 はメモリー不足で OS が終了させた場合に多く見られます",
    ),
    ("see {log}", "{log} を確認してください"),
)
MANY_RESTARTS = 3


def check_children(patient: Patient) -> list[Finding]:
    """The processes as the living supervisor last noted them; nothing where none lives."""
    children = read_children(patient.home.run)
    if children is None or not is_running(children):
        return []
    findings = []
    for child in children.children:
        engine, _, _ = child.name.partition("~")  # a worker that is being exchanged writes the same log
        log = patient.home.logs / f"{engine}.log"
        told = {"name": child.name, "code": child.exit_code, "log": log, "words": (child.log_tail or ("",))[-1] or "?"}
        if child.state == "failing":
            findings.append(CRASHING.found(**told))
        elif child.state == "misconfigured":
            findings.append(MISCONFIGURED.found(**told))
        elif child.restarts >= MANY_RESTARTS:
            findings.append(RESTARTED.found(count=child.restarts, **told))
    return findings


async def check_server(patient: Patient) -> list[Finding]:
    """Where a server runs from this home: whether it answers."""
    state = await asyncio.to_thread(running, patient.home)
    if state is None:
        return [NOT_RUNNING.found()]
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{state.url}/readyz") as response:
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        return [SILENT.found(url=state.url, why=str(error) or f"no answer within {TIMEOUT_S:g} s")]
    return [READY.found(url=state.url) if status == 200 else NOT_READY.found(url=state.url, status=status)]
