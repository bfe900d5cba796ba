"""Findings about homes, ports, files and addresses that are really in the named state."""

import datetime
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from sekisho.engines.config import ModelConfig
from sekisho.ops import doctor
from sekisho.ops.doctor import Finding, Patient
from sekisho.ops.home import Home, RunState, write_state


def patient(home: Home, *models: ModelConfig, port: int = 1) -> Patient:
    return Patient(home, "127.0.0.1", port, models)


def gguf(path: Path) -> Path:
    """A whole GGUF head: one key, one tensor of 4 bytes."""
    key, name = b"general.architecture", b"w"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 1, 0, 0)
    path.write_bytes(head.ljust((len(head) + 31) // 32 * 32, b"\0") + bytes(32))
    return path


def test_old_python() -> None:
    """3.11 is the oldest that will do."""
    assert doctor.check_python((3, 11, 0)).severity == "ok"
    assert doctor.check_python((3, 10, 14)).severity == "error"


def test_settings_problems_are_errors_with_their_text(tmp_path: Path) -> None:
    """Each problem of the settings becomes a finding that repeats it."""
    sick = Patient(Home(tmp_path), "127.0.0.1", 1, (), ("sekisho.yaml:2:3: gateway.prot: unknown",))
    assert [(f.severity, f.why) for f in doctor.check_settings(sick)] == [("error", sick.settings_problems[0])]


def test_home_states(tmp_path: Path) -> None:
    """Missing is no fault, a good home is good, an open folder is a warning with its chmod, a file is an error."""
    home = Home(tmp_path / "home")
    assert [f.severity for f in doctor.check_home(home)] == ["info"]
    home.create()
    assert [f.severity for f in doctor.check_home(home)] == ["ok"]
    home.secrets.chmod(0o750)
    found = doctor.check_home(home)
    assert [f.severity for f in found] == ["warning"]
    assert found[0].fix == f"chmod 700 {home.secrets}"
    (tmp_path / "file").write_text("")
    assert [f.severity for f in doctor.check_home(Home(tmp_path / "file"))] == ["error"]


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a" * 300])
def test_a_host_that_is_not_here_is_no_question_of_the_port(tmp_path: Path, host: str) -> None:
    """An unknown name, or another machine's address: told as such, and never with another port."""
    found = doctor.check_port(Patient(Home(tmp_path), host, 8123, ()))
    assert found.severity == "error"
    assert found.fix is not None
    assert "--host" in found.fix
    assert "--port" not in found.fix


def test_port_free_taken_and_ours(tmp_path: Path) -> None:
    """A free port is fine, one that somebody holds is told with the process, our own server's port is fine."""
    home = Home(tmp_path).create()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        holder.listen()
        taken = doctor.check_port(patient(home, port=port))
        assert taken.severity == "error"
        assert str(port + 1) in taken.fix
        write_state(home, RunState.of_this_process(f"http://127.0.0.1:{port}", "1"))
        assert doctor.check_port(patient(home, port=port)).severity == "ok"
    assert doctor.check_port(patient(home, port=port)).what == f"port {port} is free"


def test_clock() -> None:
    """A clock before this program was written is wrong."""
    past = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
    assert doctor.check_clock(lambda: past).severity == "error"
    assert doctor.check_clock().severity == "ok"


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
        found = doctor.check_model_files(ModelConfig(name="m", path=str(tmp_path / name)))
        assert [f.severity for f in found] == ["error"], name
        assert words in found[0].why
        assert found[0].fix
    whole = ModelConfig(name="m", path=str(tmp_path / "whole.gguf"))
    assert [f.severity for f in doctor.check_model_files(whole)] == ["ok"]
    more = ModelConfig(name="m", path=whole.path, mmproj=str(tmp_path / "text.gguf"), chat_template="/none.jinja")
    assert len(doctor.check_model_files(more)) == 2


def test_split_model_with_a_part_missing(tmp_path: Path) -> None:
    """Of a split model every part must be there; the missing ones are named."""
    first = gguf(tmp_path / "m-00001-of-00003.gguf")
    gguf(tmp_path / "m-00003-of-00003.gguf")
    model = ModelConfig(name="m", path=str(first))
    (found,) = doctor.check_model_files(model)
    assert (found.severity, "m-00002-of-00003.gguf" in found.why) == ("error", True)
    gguf(tmp_path / "m-00002-of-00003.gguf")
    assert [f.severity for f in doctor.check_model_files(model)] == ["ok"]


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    """Lists one model at /v1 for the right key; /odd answers something else."""

    async def models(request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != "Bearer right":
            return web.Response(status=401)
        return web.json_response({"object": "list", "data": [{"id": "qwen"}]})

    async def odd(_request: web.Request) -> web.Response:
        return web.Response(text="<html>")

    application = web.Application()
    application.router.add_get("/v1/models", models)
    application.router.add_get("/odd/models", odd)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_upstream_answers(
    upstream: str, unused_tcp_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right key and model are fine; wrong key, unset variable, unknown model, other pages and silence are told."""
    monkeypatch.setenv("RIGHT", "right")
    monkeypatch.delenv("UNSET", raising=False)
    (tmp_path / "wrong").write_text("wrong\n")

    async def found(path: str = "/v1", **fields: str) -> Finding:
        url = path if path.startswith("http") else upstream + path
        return await doctor.check_upstream(ModelConfig(name="m", engine="openai_http", url=url, **fields))  # type: ignore[arg-type]

    assert (await found(api_key_env="RIGHT", upstream_model="qwen")).severity == "ok"
    unknown = await found(api_key_env="RIGHT", upstream_model="other")
    assert (unknown.severity, "qwen" in unknown.fix) == ("warning", True)
    refused = await found(api_key_file=str(tmp_path / "wrong"))
    assert (refused.severity, refused.why) == ("error", "answers 401")
    unset = await found(api_key_env="UNSET")
    assert (unset.severity, "UNSET is not set" in unset.why) == ("error", True)
    assert (await found("/odd")).severity == "warning"
    assert (await found("/none")).why == "answers 404 for /models"
    assert (await found(f"http://127.0.0.1:{unused_tcp_port}/v1")).severity == "error"


async def test_running_server_that_does_not_answer(tmp_path: Path, unused_tcp_port: int) -> None:
    """A living process whose address is silent is an error; no process is only told."""
    home = Home(tmp_path).create()
    assert [f.severity for f in await doctor.check_running(patient(home))] == ["info"]
    write_state(home, RunState.of_this_process(f"http://127.0.0.1:{unused_tcp_port}", "1"))
    assert [f.severity for f in await doctor.check_running(patient(home))] == ["error"]


async def test_whole_examination(tmp_path: Path, unused_tcp_port: int) -> None:
    """A healthy machine has no errors, and each kind of check has its say."""
    model = ModelConfig(name="m", path=str(gguf(tmp_path / "m.gguf")))
    found = await doctor.examine(patient(Home(tmp_path / "home").create(), model, port=unused_tcp_port))
    assert [f for f in found if f.severity == "error"] == []
    ids = {f.id for f in found}
    assert ids >= {"python", "settings", "home", "disk", "port", "clock", "llama_cpp", "memory", "gpu", "model_file"}
