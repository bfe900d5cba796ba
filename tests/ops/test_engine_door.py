"""The side door to the engines of a server that really runs."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))  # a server as a person starts it

from e2e_harness import Sekisho, eventually, lives
from kept_port import kept_port

from sekisho.core.errors import EngineUnavailable, Forbidden, NotFound
from sekisho.engines import builtin, llama_worker
from sekisho.ops import engine_door, process_tree
from sekisho.ops.children_file import ChildrenFile, ChildStatus
from sekisho.ops.home import Home, RunState, write_state

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals and environments of other processes are read the POSIX way"),
]
mini = pytest.mark.skipif(not builtin.path().is_file(), reason="the built-in model is not there: run `make mini`")
MODELS = (
    "  - {name: one, path: builtin, slots: 1, threads: 1}\n"
    "  - {name: 二/two, path: builtin, slots: 1, threads: 1}\n"
    "  - {name: fake, engine: fake}\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sekisho]:
    """Two local engines and one that is none of ours."""
    sekisho = Sekisho(tmp_path_factory.mktemp("home"), MODELS)
    sekisho.up()
    assert eventually(lambda: all(door.ready for door in asyncio.run(engine_door.engine_doors(sekisho.home))))
    yield sekisho
    sekisho.down()


def ask(door: engine_door.EngineDoor, key: str) -> httpx.Response:
    body = {"model": door.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    return httpx.post(f"{door.url}/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


@mini
def test_the_door_opens_with_its_key_only(server: Sekisho) -> None:
    """Each local engine is listed with its own process and answers to the key that was read, and to no other."""
    doors = asyncio.run(engine_door.engine_doors(server.home))
    assert [door.model for door in doors] == ["one", "二/two"]
    assert len({door.pid for door in doors}) == len({door.url for door in doors}) == 2
    for door in doors:
        assert door.pid in server.pids()
        assert ask(door, door.key.reveal()).status_code == 200
        assert ask(door, "wrong").status_code == 401


@mini
def test_the_key_is_not_shown_by_accident(server: Sekisho) -> None:
    """Neither text nor JSON of a door holds the key."""
    door = asyncio.run(engine_door.engine_door(server.home, "one"))
    assert door.key.reveal() not in f"{door!r} {door} {door.key}"
    with pytest.raises((TypeError, NotImplementedError)):
        msgspec.json.encode(door)


@mini
def test_an_engine_that_is_not_ours_is_told(server: Sekisho) -> None:
    """The message names the engines that there are."""
    for call in (engine_door.engine_door, engine_door.restart_engine):
        with pytest.raises(NotFound, match="one, 二/two"):
            asyncio.run(call(server.home, "fake"))


@mini
def test_a_restart_is_a_real_one(server: Sekisho) -> None:
    """The old process is gone, another answers at the same address with the same key; the moments are in order; the
    other engine and the gateway were not touched."""
    before = {child.name: child.pid for child in server.children()}
    old = asyncio.run(engine_door.engine_door(server.home, "二/two"))
    took = asyncio.run(engine_door.restart_engine(server.home, "二/two"))
    new = asyncio.run(engine_door.engine_door(server.home, "二/two"))
    assert (took.old_pid, took.new_pid) == (old.pid, new.pid)
    assert old.pid is not None
    assert not lives(old.pid)
    assert old.pid != new.pid
    assert (new.url, new.key.reveal(), new.ready) == (old.url, old.key.reveal(), True)
    assert took.told_at <= took.ended_at <= took.started_at <= took.ready_at
    assert ask(new, new.key.reveal()).status_code == 200
    after = {child.name: child.pid for child in server.children()}
    assert [name for name in before if before[name] != after[name]] == ["engine-二_two"]
    (record,) = [child for child in server.children() if child.name == "engine-二_two"]
    assert (record.restarts, record.exit_code) == (1, -signal.SIGTERM)


@mini
def test_an_engine_between_two_lives_has_a_door_all_the_same(server: Sekisho) -> None:
    """While the supervisor waits to start it again, the engine is told as not ready, and its key is known."""
    door = asyncio.run(engine_door.engine_door(server.home, "one"))
    assert door.pid is not None
    os.kill(door.pid, signal.SIGKILL)
    meanwhile = eventually(
        lambda: (found := asyncio.run(engine_door.engine_door(server.home, "one"))).pid != door.pid and found
    )
    assert (meanwhile.url, meanwhile.key.reveal()) == (door.url, door.key.reveal())
    assert eventually(lambda: asyncio.run(engine_door.engine_door(server.home, "one")).ready)


def test_no_server(tmp_path: Path) -> None:
    """A home from which nothing runs says so, with the command that starts it."""
    with pytest.raises(NotFound, match="sekisho up"):
        asyncio.run(engine_door.engine_doors(Home(tmp_path).create()))


class Stage:
    """The notes of a server, about processes that the test chooses."""

    def __init__(self, home: Home) -> None:
        self.home = home.create()
        self.port = kept_port()

    def note(self, pid: int, birth: str | None) -> None:
        plan = {"workers": {"m": {"url": f"http://127.0.0.1:{self.port}/v1", "log_path": "/x/engine-m.log"}}}
        (self.home.run / "plan.json").write_bytes(msgspec.json.encode(plan))
        children = ChildrenFile("run_1", os.getpid(), None, [ChildStatus("engine-m", "running", pid, birth)])
        self.home.children_file.write_bytes(msgspec.json.encode(children))
        write_state(self.home, RunState.of_this_process("http://127.0.0.1:1", "1"))


def test_a_plan_that_is_no_utf8(tmp_path: Path) -> None:
    """It cannot be read, and what to do about that is said."""
    stage = Stage(Home(tmp_path))
    stage.note(os.getpid(), None)
    (stage.home.run / "plan.json").write_bytes(b'{"workers": {"m\xff": 1}}')
    with pytest.raises(NotFound, match="sekisho down, then sekisho up"):
        asyncio.run(engine_door.engine_doors(stage.home))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(Home(tmp_path / "home"))


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody's process, with a key in its environment."""
    environment = os.environ | {llama_worker.KEY_ENV: "k-1"}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    yield child
    child.kill()
    child.wait()


def test_a_process_id_that_changed_hands_is_not_hit(stage: Stage, bystander: subprocess.Popen[bytes]) -> None:
    """Where the id is somebody else's by now, nothing is signalled, and the engine is told as not running."""
    stage.note(bystander.pid, "an/earlier/birth")
    with pytest.raises(EngineUnavailable, match="not running"):
        asyncio.run(engine_door.restart_engine(stage.home, "m"))
    with pytest.raises(EngineUnavailable, match="ended by itself"):
        engine_door._terminate(bystander.pid, "an/earlier/birth", "m")
    assert bystander.poll() is None


def test_an_engine_that_nobody_starts_again(stage: Stage, bystander: subprocess.Popen[bytes]) -> None:
    """The wait for the supervisor has an end, told in words."""
    stage.note(bystander.pid, process_tree.birth(bystander.pid))
    reaper = psutil.Process(bystander.pid)
    with pytest.raises(EngineUnavailable, match=r"did not (start|end)"):
        asyncio.run(engine_door.restart_engine(stage.home, "m", timeout_s=0.5))
    assert bystander.wait(60) == -signal.SIGTERM
    assert not reaper.is_running()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process can be made by root only")
def test_another_users_engine_keeps_its_key(stage: Stage, bystander: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """Whoever may not read the home or the worker's environment is told whom to ask, and nothing is said of the
    key."""
    stage.note(bystander.pid, process_tree.birth(bystander.pid))
    script = (
        "import os, sys; sys.path[:0] = eval(sys.argv[1]); from sekisho.ops import engine_door\n"
        "from pathlib import Path; from sekisho.ops.home import Home; os.setgid(65534); os.setuid(65534)\n"
        "for call in (lambda: engine_door.worker_key(Home(Path('/nowhere')), int(sys.argv[3])),\n"
        "             lambda: asyncio.run(engine_door.engine_doors(Home(Path(sys.argv[2]))))):\n"
        "    try: print(call())\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", "import asyncio; " + script, repr(sys.path), str(tmp_path), str(bystander.pid)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert [line.split()[0] for line in told] == [Forbidden.__name__] * 2, done.stdout + done.stderr
    assert all("sekisho up" in line for line in told)
    assert "k-1" not in done.stdout
