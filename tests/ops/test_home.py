"""Where things lie, and who serves from there."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from sekisho.ops.home import (
    Home,
    RunState,
    clear_state,
    read_state,
    running,
    write_atomically,
    write_state,
)


def test_option_then_variable_then_platform(tmp_path: Path) -> None:
    """--home beats SEKISHO_HOME, which beats the platform's folder; the result is absolute."""
    environment = {"SEKISHO_HOME": str(tmp_path / "variable")}
    assert Home.find(tmp_path / "option", environment).path == tmp_path / "option"
    assert Home.find(None, environment).path == tmp_path / "variable"
    assert Home.find(None, {}).path.name == "sekisho"
    assert Home.find("relative", {}).path == Path.cwd() / "relative"
    assert Home.find("~/there", {}).path == Path.home() / "there"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no mode bits")
def test_folders_are_private(tmp_path: Path) -> None:
    """Everything that is made can be entered by its owner alone, even under an open umask; opening it is noticed."""
    old = os.umask(0)
    try:
        home = Home(tmp_path / "home").create().create()
    finally:
        os.umask(old)
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in home.folders())
    assert home.open_to_others() == ()
    home.logs.chmod(0o755)
    assert home.open_to_others() == (home.logs,)


def test_state_of_a_living_process(tmp_path: Path) -> None:
    """The note is read back, and believed as long as the very process lives."""
    home = Home(tmp_path).create()
    assert running(home) is None
    state = RunState.of_this_process("http://127.0.0.1:7010", "1.0")
    write_state(home, state)
    assert read_state(home) == state == running(home)
    clear_state(home)
    clear_state(home)
    assert read_state(home) is None


def test_recycled_process_number_is_not_believed(tmp_path: Path) -> None:
    """The same number with another start time is another process; a dead number is nobody."""
    home = Home(tmp_path).create()
    process = psutil.Process()
    write_state(home, RunState(process.pid, process.create_time() - 60, "http://x", "1.0"))
    assert running(home) is None
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    state = RunState(child.pid, psutil.Process(child.pid).create_time(), "http://x", "1.0")
    child.wait()
    write_state(home, state)
    assert running(home) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a start is told by the clock alone")
def test_a_corrected_clock_hides_no_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the wall clock is set right, all start times move with it: the server is still found and can be stopped."""
    home = Home(tmp_path).create()
    write_state(home, RunState.of_this_process("http://x", "1.0"))
    began = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: began + 3600)
    assert running(home) is not None


@pytest.mark.parametrize("body", [b"", b"{", b'{"pid": "x"}', b"\xff", b'{"url": "\xff"}'])
def test_torn_state_is_no_state(tmp_path: Path, body: bytes) -> None:
    """A note that cannot be read counts as none."""
    home = Home(tmp_path).create()
    home.state_file.write_bytes(body)
    assert running(home) is None


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    """When writing fails, the old content stands and no temporary file is left."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_atomic_write_follows_a_link(tmp_path: Path) -> None:
    """A link stays a link; the file behind it gets the content."""
    target = tmp_path / "real"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"


def test_state_is_json(tmp_path: Path) -> None:
    """Other programs can read the note: pid, started_at, url, version, birth."""
    home = Home(tmp_path).create()
    write_state(home, RunState.of_this_process("http://x", "1.0"))
    assert set(msgspec.json.decode(home.state_file.read_bytes())) == {"pid", "started_at", "url", "version", "birth"}
