"""`sekisho gate` and `sekisho continuity` against a real gateway and lying servers, with the keys they make."""

import asyncio
import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "gateway"))
sys.path.insert(0, str(Path(__file__).parent.parent / "evaluate"))

from gateway_harness import FAKE, UNGUARDED, LiveGateway
from lying_server import LyingServer

from sekisho.cli.aiming import aimed
from sekisho.cli.output import Output
from sekisho.cli.temporary_key import NAME_PREFIX, temporary_key
from sekisho.evaluate.behaviour.gate import GATES
from sekisho.gateway.config import GatewayConfig
from sekisho.ops.home import Home, RunState, write_state
from sekisho.serve import Plan
from sekisho.settings import Settings
from sekisho.store import KeyRecord, Store

Run = Callable[..., tuple[int, str, str]]
Answer = Callable[..., Any]
SETTINGS = "models:\n  - name: fake\n    engine: fake\n"


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveGateway]:
    """A gateway that runs from the commands' home, as `sekisho up` would leave it."""
    monkeypatch.delenv("SEKISHO_API_KEY", raising=False)
    place = Home(home).create()
    place.settings_file.write_text(SETTINGS)
    settings = Settings(gateway=GatewayConfig(port=0), models=(FAKE,), guard=UNGUARDED)
    live = LiveGateway(place, Plan(settings, {})).start()
    write_state(place, RunState.of_this_process(live.url, "test"))
    yield live
    live.stop()


@contextmanager
def lying() -> Iterator[LyingServer]:
    """A lying server in a thread of its own."""
    server, loop, up = LyingServer(), asyncio.new_event_loop(), threading.Event()
    over = asyncio.Event()

    async def serve() -> None:
        async with server:
            up.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert up.wait(60)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(60)
        loop.close()


def made_keys(live: LiveGateway) -> list[KeyRecord]:
    """Keys that a measurement made, revoked ones too."""
    keys: list[KeyRecord] = live.in_store(lambda store: store.list_keys(include_revoked=True))
    return [key for key in keys if key.name.startswith(NAME_PREFIX)]


def test_a_good_server_passes(served: LiveGateway, answer: Answer) -> None:
    """Without any option the running server is tried, with a key that is made for it and revoked afterwards."""
    told = answer("gate")
    assert (told["passed"], told["place"], told["url"], told["model"]) == (True, "gateway", served.url, "fake")
    assert [gate["gate"] for gate in told["gates"]] == list(GATES)
    (key,) = made_keys(served)
    assert key.scopes == {"chat"}
    assert key.revoked_at is not None
    assert key.expires_at is not None
    assert key.expires_at < time.time() + 86_400
    assert [row.key_id for row in served.usage(1)][-1] == key.id


def test_people_see_a_table(served: LiveGateway, sekisho: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line a gate, in either language, and no key anywhere."""
    code, out, err = sekisho("gate", "--chat")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()[2:7]] == list(GATES[:5])
    assert "All 5 gates passed." in out
    monkeypatch.setenv("SEKISHO_LANG", "ja")
    code, japanese, _ = sekisho("gate", "--responses", "--state")
    assert code == 0
    assert "5 件のゲートすべてに合格しました。" in japanese
    assert "sk-sekisho-" not in out + japanese


def test_what_is_named_is_used(served: LiveGateway, answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the environment or of a file goes before one that is made; a wrong one fails with its next step."""
    monkeypatch.setenv("MINE", served.key)
    assert answer("gate", "--chat", "--key", "env:MINE")["passed"]
    monkeypatch.setenv("SEKISHO_API_KEY", "sk-sekisho-wrong-wrong-wrong")
    told = answer("gate", "--chat", code=1)
    assert {gate["kind"] for gate in told["gates"] if not gate["passed"]} == {"unauthorized"}
    assert all("sekisho key list" in gate["next"][0] for gate in told["gates"] if not gate["passed"])
    assert made_keys(served) == []


def test_an_address_of_this_machine_needs_no_key(served: LiveGateway, answer: Answer) -> None:
    """The running server's own address, by whatever name of loopback, is the running server."""
    for host in ("127.0.0.1", "localhost"):
        url = served.url.replace("127.0.0.1", host) + "/v1/"
        assert answer("gate", "--url", url)["passed"]
    assert len(made_keys(served)) == 2


def test_failures_say_why_and_what_next(home: Path, sekisho: Run, answer: Answer, tmp_path: Path) -> None:
    """Exit code 1, each reason once with the server's words and the next step, and JUnit for machines."""
    with lying() as server:
        url = f"http://127.0.0.1:{server.port}/status_503"
        report = tmp_path / "gate.xml"
        code, out, _ = sekisho("gate", "--url", url, "--model", "m", "--chat", "--junit", str(report))
        assert code == 1
        assert out.count("the server failed (5xx)") == 1
        assert "next: Restart the engine" in out
        assert "5 of 5 gates failed." in out
        (suite,) = ElementTree.parse(report).getroot()
        assert (suite.get("tests"), suite.get("failures")) == ("5", "5")
        told = answer("gate", "--url", f"http://127.0.0.1:{server.port}/honest", code=1)
        assert {gate["gate"]: gate["kind"] for gate in told["gates"] if not gate["passed"]} == {
            "no_key": "let_in",
            "state": "state_ignored",
        }
        assert told["model"] == "sincere"
    told = answer("gate", "--url", url, code=1)
    assert {gate["kind"] for gate in told["gates"]} == {"not_connected"}


def test_without_a_server(home: Path, sekisho: Run) -> None:
    """Nothing to try is told as that, with the way to it."""
    code, _, err = sekisho("gate")
    assert code == 3
    assert "sekisho up" in err


def test_wrong_usage(served: LiveGateway, sekisho: Run) -> None:
    """Keys on the command line, unknown places, modes and models are refused; a key is not repeated."""
    secret = "sk-sekisho-typed-into-the-command"
    for arguments in (
        ("gate", "--key", secret),
        ("gate", "--key", "env:NOT_SET"),
        ("gate", "--place", "moon"),
        ("gate", "--place", "public"),
        ("gate", "--model", "nobody"),
        ("continuity", "--mode", "both-of-them"),
        ("continuity", "--shape", "round"),
        ("continuity", "--lang", "fr"),
    ):
        code, out, err = sekisho(*arguments)
        assert code == 2, arguments
        assert secret not in out + err
    assert made_keys(served) == []


def test_a_key_in_clear_is_warned_of(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain http to another machine carries the key for all to read; loopback and TLS do not."""
    key = home.parent / "key"
    key.write_text("k" * 20)
    out, place = Output(), Home(home)
    for url, warned in (
        ("http://llm.example.com", True),
        ("https://llm.example.com", False),
        ("http://[::1]:9", False),
    ):
        with aimed(out, place, "test", url=url, key=f"file:{key}", model="m") as target:
            assert target.model == "m"
        assert ("in clear" in capsys.readouterr().err) is warned


def test_a_key_ends_with_its_use(served: LiveGateway) -> None:
    """Whatever ends the body, the key is revoked; and the gateway turns it away."""
    settings = served.plan.settings
    secrets: list[str] = []

    def measure(error: type[BaseException] | None) -> None:
        with temporary_key(served.home, settings, "test", lasts_s=60.0) as key:
            secrets.append(key.reveal())
            assert served.client(key.reveal()).get("/v1/models").status_code == 200
            if error is not None:
                raise error

    measure(None)
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            measure(error)
    assert [key.revoked_at is None for key in made_keys(served)] == [False] * 4
    deadline = time.monotonic() + 60
    for secret in secrets:
        while served.client(secret).get("/v1/models").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGINT, (130,)), (signal.SIGTERM, (143, 1))])
def test_a_key_ends_with_ctrl_c(home: Path, number: int, codes: tuple[int, ...]) -> None:
    """A command that is broken off while a server keeps it waiting leaves no key behind."""
    place = Home(home).create()
    place.settings_file.write_text(SETTINGS)
    with lying() as server:
        write_state(place, RunState.of_this_process(f"http://127.0.0.1:{server.port}/silent", "test"))
        environment = {name: value for name, value in os.environ.items() if name != "SEKISHO_API_KEY"}
        command = [sys.executable, "-m", "sekisho", "gate", "--home", str(home)]
        child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not server.seen["silent"]:
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(number)
        out, err = child.communicate(timeout=60)
    assert child.returncode in codes, (out, err)
    assert b"Traceback" not in err

    async def keys() -> list[KeyRecord]:
        store = await Store.open(f"sqlite+aiosqlite:///{place.database}")
        try:
            return await store.list_keys(include_revoked=True)
        finally:
            await store.close()

    (key,) = asyncio.run(keys())
    assert key.name.startswith(f"{NAME_PREFIX}gate-")
    assert key.revoked_at is not None


def test_continuity(served: LiveGateway, answer: Answer, sekisho: Run, tmp_path: Path) -> None:
    """Both modes are measured and written; a model that keeps nothing is below any rate, and its conversations say
    where they lost the keyword."""
    told = answer("continuity", "--conversations", "2", "--seed", "7", "--out", str(tmp_path / "out"))
    assert [mode["mode"] for mode in told["modes"]] == ["chat", "responses"]
    for mode in told["modes"]:
        figures = {figure["id"].split(".")[-1]: figure["value"] for figure in mode["figures"]}
        assert (figures["rate"], figures["http_ok"], mode["seed"]) == (0.0, 1.0, 7)
        assert len(mode["lost"]) == 4
        with (tmp_path / "out" / f"continuity_{mode['mode']}.csv").open(encoding="utf-8", newline="") as file:
            assert len(list(csv.DictReader(file))) == 4
        assert "conversations=4" in (tmp_path / "out" / f"continuity_{mode['mode']}_summary.txt").read_text()
    code, out, _ = sekisho(
        "continuity", "--mode", "chat", "--users", "1", "--conversations", "1", "--fail-under", "0.95"
    )
    assert code == 1
    assert "0 of 1 conversations continued" in out
    assert "is not in turn 2" in out
    assert len(made_keys(served)) == 2
    assert json.dumps(told).count("sk-sekisho-") == 0
