"""The cold start: a server is really restarted, and its first request is kept apart."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))  # a server as a person starts it

from e2e_harness import Sekisho
from kept_port import KeptPort

from sekisho.core.errors import EngineUnavailable, InvalidRequest
from sekisho.engines import builtin
from sekisho.evaluate.client.exchange import Limits
from sekisho.evaluate.client.target import Key, Target
from sekisho.evaluate.figures import Figures
from sekisho.evaluate.speed import cold
from sekisho.evaluate.speed.cold import ColdStart, Restarted
from sekisho.evaluate.speed.samples import Sample
from sekisho.ops import engine_door

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are ended by signals")

# Ends the server whose id is in the file, lets whoever watches find nobody there, and starts another server that
# outlives this program.
RESTART = """
import os, signal, socket, subprocess, sys, time
file, port, model = sys.argv[1:]
if os.path.exists(file):
    os.kill(int(open(file).read()), signal.SIGKILL)
    with socket.socket() as nobody:
        nobody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while True:
            try:
                nobody.bind(("127.0.0.1", int(port)))
                break
            except OSError:  # the old one has not let go of it yet
                time.sleep(0.01)
        nobody.listen()
        nobody.accept()[0].close()
code = (
    "import asyncio, sys\\n"
    "from sekisho.engines import fake_server\\n"
    "async def main():\\n"
    "    server, _, _ = await fake_server.start(fake_server.Settings(model=sys.argv[2]), int(sys.argv[1]))\\n"
    "    await server.serve_forever()\\n"
    "asyncio.run(main())"
)
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
child = subprocess.Popen([sys.executable, "-c", code, port, model], **quiet)
open(file, "w").write(str(child.pid))
"""


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[tuple[Target, list[str]]]:
    """A server's address, and the command that restarts it while it is watched; it has been started once."""
    file = tmp_path / "pid"
    (tmp_path / "restart.py").write_text(RESTART)
    with KeptPort() as port:
        command = [sys.executable, str(tmp_path / "restart.py"), str(file), str(port), "fake"]
        subprocess.run(command, check=True)
        yield Target("engine", f"127.0.0.1:{port}", "fake"), command
        os.kill(int(file.read_text()), signal.SIGKILL)


async def test_a_teams_own_command_restarts(restartable: tuple[Target, list[str]]) -> None:
    """Each repetition restarts the server, sees it go and come, and asks the first and a second question."""
    target, command = restartable
    restart = cold.by_command(command, target)
    await restart()
    starts = await cold.measure(target, restart, repetitions=2, spacing_s=0.0)
    assert len(starts) == 2
    for each in starts:
        assert not each.restarted.never_down
        assert each.restarted.ended_s is not None
        assert each.restarted.ended_s < each.restarted.ready_s <= each.asked_s
        assert each.first.ok
        assert each.second.ok
        assert each.first.connect_ms is not None
        assert each.stop_to_first_byte_s is not None
        assert each.stop_to_first_byte_s > each.asked_s
    assert len({each.first.index for each in starts} | {each.second.index for each in starts}) == 4
    figures = Figures(tuple(cold.summarise(starts, command="sekisho bench --cold")))
    for what in ("ready_s", "ttfb_s", "ttft_s", "total_s", "second_ttft_s", "stop_to_first_byte_s"):
        figure = figures.get(f"cold.{what}")
        assert figure is not None
        assert figure.value is not None
        assert figure.n == 2
        assert "2 starts" in figure.note
    stored = msgspec.json.decode(msgspec.json.encode(starts), type=list[ColdStart])
    assert stored == starts


async def test_a_command_that_restarts_nothing_is_doubted(
    restartable: tuple[Target, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers all the time was perhaps not restarted: the figure says so."""
    monkeypatch.setattr(cold, "LOOK_LIMITS", Limits())  # a server of a busy machine may be held up
    target, _ = restartable
    await cold.by_command(["true"], target)()  # until it listens
    (start,) = await cold.measure(target, cold.by_command(["true"], target))
    assert start.restarted.never_down
    assert start.restarted.ended_s is None
    assert "was it restarted" in cold.summarise([start])[0].note


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sh", "-c", "echo the unit is masked >&2; exit 3"], "ended with 3: the unit is masked"),
        (["no-such-program-here"], "cannot be run"),
    ],
)
async def test_a_command_that_fails_is_told_in_its_words(
    restartable: tuple[Target, list[str]], command: list[str], said: str
) -> None:
    """Nothing is measured without a restart, and the reason is the command's own."""
    target, _ = restartable
    with pytest.raises(EngineUnavailable, match=said):
        await cold.measure(target, cold.by_command(command, target))


async def test_a_server_that_does_not_come_back_is_not_waited_for_for_ever() -> None:
    """After the time limit it is told, and a command that still runs is ended."""
    with KeptPort() as port:
        nobody = Target("engine", f"127.0.0.1:{port}", "fake")
        with pytest.raises(EngineUnavailable, match="did not answer within"):
            await cold.by_command(["true"], nobody, timeout_s=0.3)()
        with pytest.raises(EngineUnavailable, match="did not answer within"):
            await asyncio.wait_for(cold.by_command(["sleep", "600"], nobody, timeout_s=0.3)(), 60)


@pytest.mark.slow
@pytest.mark.skipif(not builtin.path().is_file(), reason="the built-in model is not there: run `make mini`")
async def test_our_own_engine_is_really_restarted(tmp_path: Path) -> None:
    """The engine's process is another one afterwards, and the gateway answers the first question after it."""
    sekisho = Sekisho(tmp_path, "  - {name: one, path: builtin, slots: 1, threads: 1}\n")
    sekisho.up()
    try:
        before = await engine_door.engine_door(sekisho.home, "one")
        target = Target("engine", before.url, "one", Key(before.key.reveal()))
        restart = cold.by_our_door(lambda: engine_door.restart_engine(sekisho.home, "one"))
        (start,) = await cold.measure(target, restart, tokens=8)
        after = await engine_door.engine_door(sekisho.home, "one")
    finally:
        sekisho.down()
    assert after.pid != before.pid
    assert start.first.ok, start.first.detail
    assert start.first.completion_tokens is not None
    restarted = start.restarted
    assert restarted.ended_s is not None
    assert restarted.started_s is not None
    assert 0 < restarted.ended_s <= restarted.started_s <= restarted.ready_s <= start.asked_s


def start(first: Sample, second: Sample, ready_s: float = 2.0) -> ColdStart:
    return ColdStart(Restarted(how="hand", ready_s=ready_s), ready_s, first, second)


async def samples(restartable: tuple[Target, list[str]]) -> tuple[Sample, Sample]:
    target, command = restartable
    (found,) = await cold.measure(target, cold.by_command(command, target))
    return found.first, found.second


async def test_the_slowest_start_counts(restartable: tuple[Target, list[str]]) -> None:
    """A morning has one start: of several the slowest is the figure. Where one failed there is none, and how many."""
    first, second = await samples(restartable)
    replace = msgspec.structs.replace
    slow = replace(first, ttfb_ms=9000.0, ttft_ms=9100.0, total_ms=9500.0)
    figures = Figures(tuple(cold.summarise([start(first, second), start(slow, second, 5.0)])))
    told = {figure.id: figure.value for figure in figures.all}
    assert told["cold.ready_s"] == 5.0
    assert (told["cold.ttfb_s"], told["cold.ttft_s"], told["cold.total_s"]) == (9.0, 9.1, 9.5)
    assert told["cold.stop_to_first_byte_s"] == 14.0
    broken = replace(first, ok=False, http=503, faults=("server_error",), detail="loading", ttft_ms=None)
    figures = Figures(tuple(cold.summarise([start(broken, second)])))
    ttfb = figures.get("cold.ttfb_s")
    assert ttfb is not None
    assert ttfb.value is None
    assert "1 of 1" in ttfb.why_null
    assert "server_error loading" in ttfb.why_null
    some = Figures(tuple(cold.summarise([start(first, second), start(broken, second), start(broken, second)])))
    for what in ("ttfb_s", "ttft_s", "total_s", "stop_to_first_byte_s"):
        figure = some.get(f"cold.{what}")
        assert figure is not None
        assert (figure.value, figure.n) == (None, 3)
        assert "2 of 3" in figure.why_null
    again = some.get("cold.second_ttfb_s")
    assert again is not None
    assert (again.value is not None, again.n) == (True, 3)
    ready = figures.get("cold.ready_s")
    assert ready is not None
    assert ready.value == 2.0
    assert all(figure.value is None and figure.why_null for figure in cold.summarise([]))


async def test_what_cannot_be_done_is_refused(restartable: tuple[Target, list[str]]) -> None:
    """No repetition, no command: said before anything is restarted."""
    target, command = restartable
    with pytest.raises(InvalidRequest):
        cold.by_command([], target)
    with pytest.raises(InvalidRequest):
        await cold.measure(target, cold.by_command(command, target), repetitions=0)
