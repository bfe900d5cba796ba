"""The disk under the home: room, and whether it is one that a database can live on."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from sekisho.ops.doctor.finding import Case, Finding, Patient

LOW_DISK_BYTES = 1 << 30
FULL_DISK_BYTES = 100 << 20
FEW_FILES = 1000
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"}
    | {"9p", "virtiofs", "davfs", "davfs2", "s3fs", "sshfs", "juicefs", "mfs", "moosefs", "goofys", "rclone", "gcsfuse"}
)
VOLATILE = frozenset({"tmpfs", "ramfs"})

FULL = Case(
    "disk.full",
    "error",
    ("{free} free on the disk of {path}", "{path} のディスクの空き容量は {free} です"),
    ("usage and the book can no longer be written", "利用記録と監査記録を書き込めなくなります"),
    ("free some space", "空き容量を増やしてください"),
)
LOW = Case(
    "disk.low",
    "warning",
    ("{free} free on the disk of {path}", "{path} のディスクの空き容量は {free} です"),
    ("models and logs need room", "モデルとログには余裕が必要です"),
    ("free some space", "空き容量を増やしてください"),
)
NO_FILES = Case(
    "disk.no_files",
    "error",
    ("the disk of {path} has room for {count} more files", "{path} のディスクに作れるファイルはあと {count} 個です"),
    ("no inodes are left, whatever the free space", "空き容量があっても inode が残っていません"),
    ("remove files there: df -i {path}", "不要なファイルを削除してください: df -i {path}"),
)
NETWORK_DISK = Case(
    "disk.network",
    "warning",
    ("{path} lies on a network file system ({kind})", "{path} はネットワークファイルシステム（{kind}）上にあります"),
    (
        "SQLite's write-ahead log does not work over a network, and locks there may not hold",
        "SQLite の WAL はネットワーク越しでは動作が保証されず、ロックも効かないことがあります",
    ),
    (
        "choose a --home on a disk of this machine, or PostgreSQL by DATABASE_URL; models may stay there",
        "--home をローカルディスクにするか、DATABASE_URL で PostgreSQL を使ってください（モデルはそのままで可）",
    ),
)
IN_MEMORY = Case(
    "disk.volatile",
    "warning",
    ("{path} lies in memory ({kind})", "{path} はメモリー上（{kind}）にあります"),
    ("everything in it is gone when the machine restarts", "マシンの再起動ですべて消えます"),
    ("choose a --home on a disk", "--home をディスク上にしてください"),
)
IN_CONTAINER = Case(
    "disk.container",
    "info",
    ("{path} lies in the container's own layer ({kind})", "{path} はコンテナー自身の層（{kind}）にあります"),
    ("everything in it is gone when the container is removed", "コンテナーを削除するとすべて消えます"),
    ("mount a volume there", "ボリュームをマウントしてください"),
)
GOOD = Case("disk.good", "ok", ("{free} free on the disk of {path}", "{path} のディスクの空き容量は {free} です"))


def check_disk(patient: Patient) -> list[Finding]:
    path = existing = patient.home.path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    case = FULL if free < FULL_DISK_BYTES else LOW if free < LOW_DISK_BYTES else GOOD
    findings = [case.found(free=f"{free / 2**30:.1f} GiB", path=path)]
    if hasattr(os, "statvfs"):
        counts = os.statvfs(existing)
        if counts.f_files and counts.f_favail < FEW_FILES:  # file systems without inodes say 0 of 0
            findings.append(NO_FILES.found(path=path, count=counts.f_favail))
    return findings + check_kind(path, existing.resolve(), mounts())


def mounts() -> list[tuple[str, str, str]]:
    """(mount point, kind, what is mounted) of everything that is mounted."""
    return [(part.mountpoint, part.fstype, part.device) for part in psutil.disk_partitions(all=True)]


def check_kind(path: Path, existing: Path, table: Sequence[tuple[str, str, str]]) -> list[Finding]:
    """`existing` is the part of `path` that is there. Empty for a disk of this machine."""
    under = [(point, kind, device) for point, kind, device in table if existing.is_relative_to(point)]
    if not under:
        return []
    # The longest mount point, and of equals the last: it lies over the others.
    _, kind, device = max(enumerate(under), key=lambda entry: (len(Path(entry[1][0]).parts), entry[0]))[1]
    plain = kind.lower().removeprefix("fuse.")
    if plain in NETWORK or device.startswith(("mfs#", "//")) or (plain == "fuse" and ":" in device):
        return [NETWORK_DISK.found(path=path, kind=kind)]
    if plain in VOLATILE:
        return [IN_MEMORY.found(path=path, kind=kind)]
    if plain in ("overlay", "fuse-overlayfs"):
        return [IN_CONTAINER.found(path=path, kind=kind)]
    return []
