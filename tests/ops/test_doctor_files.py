"""Findings about homes, model files and disks that are really in the named state."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness lies beside the tests

from doctor_harness import cases, gguf, only, patient

from sekisho.engines.config import ModelConfig
from sekisho.ops.doctor import Finding, disk, files, model_files
from sekisho.ops.home import Home

posix = pytest.mark.skipif(os.name != "posix", reason="rights of files are told the POSIX way")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can do this")


def test_home_states(tmp_path: Path) -> None:
    """Missing is no fault, a good home is good, an open folder is a warning with its chmod, a file is an error."""
    home = Home(tmp_path / "home")
    assert only(files.check_home(patient(home))).case == "home.missing"
    home.create()
    assert only(files.check_home(patient(home))).case == "home.good"
    home.secrets.chmod(0o750)
    found = only(files.check_home(patient(home)))
    assert (found.case, found.fix) == ("home.open", f"chmod 700 {home.secrets}")
    (tmp_path / "file").write_text("")
    assert only(files.check_home(patient(Home(tmp_path / "file")))).case == "home.no_folder"


def as_nobody(home: Home, check: str) -> list[Finding]:
    """What a check finds when another user runs it."""
    script = (
        "import os, sys; sys.path[:0] = eval(sys.argv[1])\n"
        "import msgspec; from pathlib import Path; from sekisho.ops.home import Home\n"
        "from sekisho.ops.doctor import Patient, files\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "found = getattr(files, sys.argv[3])(Patient(Home(Path(sys.argv[2])), '127.0.0.1', 1, ()))\n"
        "print(msgspec.json.encode(found).decode())\n"
    )
    command = [sys.executable, "-c", script, repr(sys.path), str(home.path), check]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return msgspec.json.decode(done.stdout, type=list[Finding])


@pytest.fixture
def shared_place() -> Iterator[Path]:
    """A folder that every user of the machine can enter; pytest's own are closed to others."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@posix
@root
def test_another_users_home(shared_place: Path) -> None:
    """After a `sudo sekisho up` the home is root's: told with the owner and the way back."""
    home = Home(shared_place / "home").create()
    for folder in home.folders():
        folder.chmod(0o755)
    home.database.write_bytes(b"")
    home.database.chmod(0o644)
    assert {finding.case for finding in as_nobody(home, "check_home")} >= {"home.not_writable"}
    found = [finding for finding in as_nobody(home, "check_files") if finding.case == "files.foreign"]
    assert "root" in only(found).why
    assert "chown" in only(found).fix


@posix
def test_files_that_others_can_read(tmp_path: Path) -> None:
    """A key that others can read is an error; a loose file in a closed folder is none."""
    home = Home(tmp_path / "home").create()
    key = home.secrets / "seal.key"
    key.write_text("secret")
    home.database.write_bytes(b"")
    home.settings_file.write_text("")
    for path in (key, home.database, home.settings_file):
        path.chmod(0o644)
    assert only(files.check_files(patient(home))).case == "files.good"
    home.path.chmod(0o755)
    found = only(files.check_files(patient(home)))
    assert (found.case, found.severity) == ("files.open", "warning")
    assert str(home.database) in found.what
    assert str(home.settings_file) in found.what
    home.secrets.chmod(0o755)
    secret, _ = files.check_files(patient(home))
    assert (secret.case, secret.severity) == ("files.secret_open", "error")
    assert secret.fix == f"chmod go-rwx {key}"
    subprocess.run(secret.fix, shell=True, check=True)
    assert cases(files.check_files(patient(home))) == ["files.open"]


@posix
def test_the_group_needs_its_own_way_in(tmp_path: Path) -> None:
    """A folder that only others may enter gives the group nothing, and the other way round."""
    home = Home(tmp_path / "home").create()
    home.settings_file.write_text("")
    home.path.chmod(0o701)
    home.settings_file.chmod(0o640)
    assert only(files.check_files(patient(home))).case == "files.good"
    home.path.chmod(0o710)
    assert only(files.check_files(patient(home))).case == "files.open"


def test_model_files(tmp_path: Path) -> None:
    """Missing, dangling, not a file, not a GGUF and cut off are errors that say so; a whole one is fine."""
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "gone.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "short.gguf").write_bytes(gguf(tmp_path / "whole.gguf").read_bytes()[:60])
    expected = {
        "missing.gguf": "no such file",
        "dangling.gguf": "a link to",
        ".": "not a file",
        "text.gguf": "not a GGUF file",
        "short.gguf": "cut off",
    }
    for name, words in expected.items():
        found = only(model_files.check_model_files(ModelConfig(name="m", path=str(tmp_path / name))))
        assert (found.case, words in found.why) == ("model_file.bad", True), name
        assert found.fix
    whole = ModelConfig(name="m", path=str(tmp_path / "whole.gguf"))
    assert only(model_files.check_model_files(whole)).case == "model_file.good"
    more = ModelConfig(name="m", path=whole.path, mmproj=str(tmp_path / "text.gguf"), chat_template="/none.jinja")
    assert len(model_files.check_model_files(more)) == 2
    other = ModelConfig(name="o", engine="openai_http", url="http://x/v1")
    assert len(model_files.check_models(patient(Home(tmp_path), whole, more, other))) == 3


def test_split_model_with_a_part_missing(tmp_path: Path) -> None:
    """Of a split model every part must be there; the missing ones are named."""
    first = gguf(tmp_path / "m-00001-of-00003.gguf")
    gguf(tmp_path / "m-00003-of-00003.gguf")
    model = ModelConfig(name="m", path=str(first))
    found = only(model_files.check_model_files(model))
    assert (found.severity, "m-00002-of-00003.gguf" in found.why) == ("error", True)
    gguf(tmp_path / "m-00002-of-00003.gguf")
    assert only(model_files.check_model_files(model)).severity == "ok"


def test_the_folder_of_models(tmp_path: Path) -> None:
    """Links to nothing, empty, half-fetched and broken files are each told with a command that ends them."""
    home = Home(tmp_path / "home").create()
    folder = home.models / "qwen"
    folder.mkdir()
    gguf(home.models / "good.gguf")
    (home.models / "card.json").write_text("{}")
    (folder / "gone.gguf").symlink_to("/nowhere/x.gguf")
    (folder / "empty file.gguf").write_bytes(b"")
    (folder / "text.gguf").write_text("hello")
    gguf(folder / "m-00001-of-00002.gguf")
    part = folder / "big.gguf.part"
    part.write_bytes(b"x" * (2 << 20))
    found = {Path(f.what.split(" ")[0]).name: f for f in model_files.check_folder(patient(home))}
    assert found["big.gguf.part"].case == "models_folder.under_way"
    assert cases(found.values()).count("models_folder.broken") == 2
    old = time.time() - 3 * 3600
    os.utime(part, (old, old))
    told = model_files.check_folder(patient(home))
    assert sorted(cases(told)) == sorted(
        [
            "models_folder.dangling",
            "models_folder.empty_file",
            "models_folder.unfinished",
            *["models_folder.broken"] * 2,
        ]
    )
    assert "3 hours" in next(f.why for f in told if f.case == "models_folder.unfinished")
    for finding in told:
        subprocess.run(finding.fix.rpartition("or: ")[2], shell=True, check=True)
    assert model_files.check_folder(patient(home)) == []


def test_a_later_part_of_a_split_model_is_told_once(tmp_path: Path) -> None:
    """What is missing is the first part's to tell; without that, each part is told."""
    home = Home(tmp_path / "home").create()
    gguf(home.models / "m-00001-of-00003.gguf")
    gguf(home.models / "m-00002-of-00003.gguf")
    assert cases(model_files.check_folder(patient(home))) == ["models_folder.broken"]
    (home.models / "m-00001-of-00003.gguf").unlink()
    assert cases(model_files.check_folder(patient(home))) == ["models_folder.broken"]


def test_disk_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room enough, also for a home that is not made yet."""
    monkeypatch.setattr(disk, "FULL_DISK_BYTES", 0)  # however little this machine has
    monkeypatch.setattr(disk, "LOW_DISK_BYTES", 0)
    assert disk.check_disk(patient(Home(tmp_path / "not" / "made")))[0].case == "disk.good"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk(options)` mounts a file system in memory."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        program = shutil.which("mount")
        if program is None or os.geteuid() != 0:
            pytest.skip("only root may mount a small disk")
        place = tmp_path / f"disk{len(made)}"
        place.mkdir()
        done = subprocess.run(
            [program, "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        made.append(place)
        return place

    yield mount
    for place in made:
        subprocess.run(["umount", "-l", str(place)], check=False)


@posix
def test_disks_without_room(small_disk: Callable[[str], Path]) -> None:
    """A small disk, a full one, one with no file left to make; and all of them lie in memory."""
    small = Home(small_disk("size=500m"))
    assert cases(disk.check_disk(patient(small))) == ["disk.low", "disk.volatile"]
    full = Home(small_disk("size=50m"))
    assert cases(disk.check_disk(patient(full))) == ["disk.full", "disk.volatile"]
    few = Home(small_disk("size=2g,nr_inodes=10"))
    found = disk.check_disk(patient(few))
    assert cases(found) == ["disk.no_files", "disk.volatile"]
    for number in range(3):
        (few.path / f"file{number}").write_text("")
    assert "room for 6 more" in next(f.what for f in disk.check_disk(patient(few)) if f.case == "disk.no_files")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory here")
def test_a_home_in_memory() -> None:
    """/dev/shm is gone at the next start, and so is what is under it."""
    assert "disk.volatile" in cases(disk.check_disk(patient(Home(Path("/dev/shm/sekisho/home")))))


def test_network_disks() -> None:
    """Kinds of mounts as Linux, WSL, macOS and a rented machine's network volume tell them; the innermost decides."""
    table = [
        ("/", "ext4", "/dev/vda"),
        ("/home", "nfs4", "server:/export/home"),
        ("/home/taro/fast", "xfs", "/dev/nvme0n1p1"),
        ("/workspace", "fuse", "mfs#eu-se-1.runpod.net:9421"),
        ("/mnt/c", "9p", "C:\\"),
        ("/Volumes/team", "smbfs", "//taro@nas/team"),
        ("/sshfs", "fuse.sshfs", "taro@host:/data"),
        ("/container", "overlay", "overlay"),
        ("/over", "ext4", "/dev/vdb"),
        ("/over", "cifs", "//nas/over"),
        ("/usb", "fuseblk", "/dev/sdb1"),
    ]

    def kind(place: str) -> str | None:
        found = disk.check_kind(Path(place), Path(place), table)
        return found[0].case if found else None

    network = ("/home/taro", "/workspace/home", "/mnt/c/x", "/Volumes/team", "/sshfs/a", "/over/a")
    assert [kind(place) for place in network] == ["disk.network"] * len(network)
    assert [kind(place) for place in ("/var/lib/sekisho", "/home/taro/fast/x", "/homestead", "/usb/x")] == [None] * 4
    assert kind("/container/home") == "disk.container"


@posix
def test_mounts_of_this_machine() -> None:
    """The real table holds the root, with its kind."""
    assert "/" in [point for point, _, _ in disk.mounts()]
