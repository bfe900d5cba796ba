"""Memory, cards, and how many files a process may have open."""

from collections.abc import Sequence

import psutil

from sekisho.ops.doctor.finding import Case, Finding, Patient
from sekisho.ops.gpu_sample import GpuReading, GpuSample, read_gpus
from sekisho.ops.hardware import Hardware, detect, try_probe
from sekisho.ops.home import Home, running

PROBE_TIMEOUT_S = 4.0
LOW_MEMORY_BYTES = 1 << 30
RAM_SHARE = 0.90
VRAM_SHARE = 0.95
SWAP_BYTES = 1024 << 20
CLIENTS = 200
FILES_NEEDED = 2 * CLIENTS + 100
"""A connection from each client and one to an engine for it, and what a gateway has open anyway."""

MEMORY_GOOD = Case(
    "memory.good",
    "ok",
    ("{free} memory free{limit}, {threads} threads", "空きメモリー {free}{limit}、{threads} スレッド"),
)
MEMORY_LOW = Case(
    "memory.low",
    "warning",
    MEMORY_GOOD.what,
    (
        "an engine that finds no memory is killed by the system",
        "メモリーが足りないと、エンジンは OS に強制終了されます",
    ),
    (
        "a smaller model or context, or end what else runs here",
        "モデルや文脈長を小さくするか、他のプロセスを終了してください",
    ),
)
MEMORY_PRESSED = Case(
    "memory.pressed",
    "warning",
    ("{share:.0%} of the memory is in use{limit}", "メモリー使用率 {share:.0%}{limit}"),
    MEMORY_LOW.why,
    MEMORY_LOW.fix,
)
SWAPPING = Case(
    "memory.swap",
    "warning",
    ("{used} MiB are swapped out", "スワップ使用量 {used} MiB"),
    ("an engine whose weights were swapped out takes minutes to answer", "重みがスワップされると応答に数分かかります"),
    (
        "more memory or a smaller model; then: swapoff -a && swapon -a",
        "メモリー増設か小さいモデル。その後: swapoff -a && swapon -a",
    ),
)
GPU_GOOD = Case("gpu.good", "ok", ("{name}: {free} free", "{name}: 空き {free}"))
GPU_UNTOLD = Case(
    "gpu.untold",
    "info",
    ("{name}: the driver does not tell its memory", "{name}: ドライバーがメモリー量を返しません"),
)
GPU_FULL = Case(
    "gpu.full",
    "warning",
    ("{name}: {share:.0%} of its memory is in use ({free} free)", "{name}: メモリー使用率 {share:.0%}（空き {free}）"),
    ("used by: {processes}", "使用中のプロセス: {processes}"),
    (
        "end what is not needed there, or give the model fewer gpu_layers, a shorter context or a q8_0 cache",
        "不要なプロセスを終了するか、gpu_layers・文脈長を減らすか、KV を q8_0 にしてください",
    ),
)
GPU_NONE = Case(
    "gpu.none",
    "info",
    ("no graphics card seen", "グラフィックスカードはありません"),
    ("models run on the processor", "モデルは CPU で動きます"),
)
GPU_DRIVER = Case(
    "gpu.driver",
    "error",
    ("NVIDIA's driver does not answer", "NVIDIA ドライバーが応答しません"),
    ("{words}", "{words}"),
    (
        "restart the machine; if that does not help, install the driver again",
        "マシンを再起動してください。直らなければドライバーを再インストールしてください",
    ),
)
FILES_FEW = Case(
    "limits.files",
    "warning",
    ("{whose} may have {limit} files open", "{whose}が同時に開けるファイルは {limit} 個です"),
    ("{clients} clients at once need {needed}", "{clients} クライアントの同時接続には {needed} 個必要です"),
    (
        "ulimit -n 4096 before `sekisho up`; in a service: LimitNOFILE=4096",
        "`sekisho up` の前に ulimit -n 4096（サービスなら LimitNOFILE=4096）",
    ),
)
FILES_GOOD = Case("limits.good", "ok", ("{limit} files may be open at once", "同時に開けるファイル: {limit} 個"))


def check_machine(patient: Patient) -> list[Finding]:
    swap = psutil.swap_memory().used
    return [*judge_memory(detect(patient.home.path, no_cards), swap), *check_open_files(patient.home)]


def no_cards(_argv: Sequence[str]) -> None:
    """For `detect`: the cards are looked at by a check of their own."""


def judge_memory(machine: Hardware, swap_used_bytes: int) -> list[Finding]:
    """Against the thresholds of SPEC G6: 90 % of the memory, 1024 MiB of swap."""
    free, total = machine.ram_available_bytes, machine.ram_total_bytes
    limit = (", limited by the container", "、コンテナーの制限内") if machine.ram_limited_by else ("", "")
    told = {"free": _gib(free), "limit": limit, "threads": machine.threads}
    share = 1 - free / total if total else 0.0
    if free < LOW_MEMORY_BYTES:
        findings = [MEMORY_LOW.found(**told)]
    elif share >= RAM_SHARE:
        findings = [MEMORY_PRESSED.found(share=share, limit=limit)]
    else:
        findings = [MEMORY_GOOD.found(**told)]
    if swap_used_bytes >= SWAP_BYTES:
        findings.append(SWAPPING.found(used=swap_used_bytes >> 20))
    return findings


def check_cards(_patient: Patient) -> list[Finding]:
    broken = try_probe(["nvidia-smi", "-L"], PROBE_TIMEOUT_S)
    if broken is not None and broken.code != 0:
        return [GPU_DRIVER.found(words=" ".join(broken.output.split())[:200])]
    reading = read_gpus(_quick_probe)
    if reading.gpus:
        return judge_cards(reading)
    others = detect(Home.find().path, no_cards).gpus  # Apple's, which is part of the machine's memory
    return [GPU_GOOD.found(name=gpu.name, free=_gib(gpu.memory_free_bytes or 0)) for gpu in others] or [
        GPU_NONE.found()
    ]


def judge_cards(reading: GpuReading) -> list[Finding]:
    """Against the threshold of SPEC G6: 95 % of a card's memory."""
    return [_judge_card(gpu) for gpu in reading.gpus]


def _judge_card(gpu: GpuSample) -> Finding:
    name = f"{gpu.index} {gpu.name}"
    if gpu.total_bytes is None or gpu.used_bytes is None:
        return GPU_UNTOLD.found(name=name)
    free, share = _gib(gpu.total_bytes - gpu.used_bytes), gpu.used_share or 0.0
    if share < VRAM_SHARE:
        return GPU_GOOD.found(name=name, free=free)
    processes = ", ".join(f"{process.name or '?'} ({process.pid})" for process in gpu.processes) or "?"
    return GPU_FULL.found(name=name, free=free, share=share, processes=processes)


def _quick_probe(argv: Sequence[str]) -> str | None:
    probe = try_probe(argv, PROBE_TIMEOUT_S)
    return probe.output if probe is not None and probe.code == 0 else None


def check_open_files(home: Home) -> list[Finding]:
    """Of the running server where there is one and the system tells, else of what would be started from here."""
    limit, whose = _file_limit(home)
    if limit is None:
        return []
    if limit < FILES_NEEDED:
        return [FILES_FEW.found(whose=whose, limit=limit, clients=CLIENTS, needed=FILES_NEEDED)]
    return [FILES_GOOD.found(limit=limit)]


def _file_limit(home: Home) -> tuple[int | None, tuple[str, str]]:
    server = running(home)
    if server is not None and hasattr(psutil.Process, "rlimit"):
        try:
            soft, _ = psutil.Process(server.pid).rlimit(psutil.RLIMIT_NOFILE)
        except psutil.Error:
            pass  # another user's: our own limit is the next best
        else:
            return _endless(soft), ("the running server", "稼働中のサーバー")
    try:
        import resource
    except ImportError:
        return None, ("", "")  # Windows has no such limit
    return _endless(resource.getrlimit(resource.RLIMIT_NOFILE)[0]), ("a server started here", "ここで起動するサーバー")


def _endless(limit: int) -> int:
    return limit if limit >= 0 else 1 << 30


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
