"""`sekisho up` to `sekisho down`, as a person does it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from typing import Any

import httpx
import pytest
from e2e_harness import CHAT, FAKE, Launch, Sekisho, chat, eventually, lives


def test_up_answers_the_curl_line_and_down_ends_everything(launch: Launch, small_model: str) -> None:
    """The printed lines work as they are, through real llama.cpp; a key made meanwhile works at once; `down` leaves
    no process."""
    sekisho = launch(f"  - {{name: small, path: {small_model}, context: 512, slots: 2, threads: 1}}\n", agent=True)
    done = sekisho.run("up", "--detach")
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    script = "\n".join(line for line in lines if line.startswith(("export ", "curl ")))
    script = script.replace('"messages"', '"max_tokens": 8, "messages"')
    answer = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert '"chat.completion"' in answer.stdout, answer.stdout
    told = sekisho.json("status")
    assert (told["running"], told["ready"], told["url"]) == (True, True, sekisho.url)
    assert {child["name"]: child["state"] for child in told["children"]} == dict.fromkeys(
        ("gateway", "engine-small", "agent"), "running"
    )
    made = sekisho.json("key", "create", "--name", "taro")
    assert sekisho.client(made["key"]).post(CHAT, json=chat("hi", "small", max_tokens=3)).status_code == 200
    pids = sekisho.pids()
    assert len(pids) >= 3
    assert sekisho.json("down")["stopped"] is True
    assert eventually(lambda: not any(map(lives, pids)))
    assert sekisho.json("status", code=3)["error"]["exit_code"] == 3
    assert sekisho.json("down", code=3)["error"]["exit_code"] == 3
    rows = {row.key_id: row for row in sekisho.usage()}
    assert rows[made["id"]].status == "completed"
    assert len(rows) == 2


@pytest.mark.slow
def test_up_again_says_that_it_runs(launch: Launch) -> None:
    """A second `up` on the same home ends well, starts nothing, and shows no key."""
    sekisho = launch()
    first = sekisho.up()
    for again in (sekisho.json("up", "--detach"), sekisho.json("up")):
        assert (again["already_running"], again["pid"], again["url"]) == (True, first["pid"], sekisho.url)
        assert "admin_key" not in again
    sekisho.json("down")
    assert sekisho.up().get("admin_key") is None, "the first key is shown once"
    assert sekisho.client().post(CHAT, json=chat("hi")).status_code == 200


@pytest.mark.slow
def test_many_ups_at_once_start_one_server(launch: Launch) -> None:
    """Six people type `sekisho up --detach` in the same second: all succeed, one server runs, one key is shown."""
    sekisho = launch()
    told: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: told.append(sekisho.json("up", "--detach"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 6
    assert len({answer["pid"] for answer in told}) == 1
    assert sum(bool(answer.get("admin_key")) for answer in told) == 1


@pytest.mark.slow
def test_two_homes_run_side_by_side(launch: Launch) -> None:
    """Each with its own port, keys and accounts; stopping one leaves the other."""
    one, two = launch(), launch()
    one.up()
    two.up()
    assert one.client().post(CHAT, json=chat("hi")).status_code == 200
    assert two.client(one.key).post(CHAT, json=chat("hi")).status_code == 401
    one.json("down")
    assert two.client().post(CHAT, json=chat("hi")).status_code == 200


def test_a_taken_port_is_told(launch: Launch) -> None:
    """The message names the address and the way out; nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        sekisho = launch(port=taken.getsockname()[1])
        told = sekisho.json("up", "--detach", code=1)["error"]
        assert f"127.0.0.1:{sekisho.port}" in told["message"]
        assert "--port" in told["message"]
    assert sekisho.json("status", code=3)


@pytest.mark.slow
def test_wrong_settings_are_told_with_their_line(launch: Launch) -> None:
    """An unknown key, a model that does not exist, text that is no YAML: exit code 2 or 1, the culprit by name."""
    for models, code, words in (
        (FAKE + "    slotz: 3\n", 2, "line"),
        ("  - {name: x, engine: no_such_engine}\n", 2, "no_such_engine"),
        ("  - {name: x\n", 2, "line"),
        ("  - {name: x, path: /no/such/model.gguf}\n", None, "/no/such/model.gguf"),
    ):
        sekisho = launch(models)
        done = sekisho.run("up", "--detach", "--json")
        assert done.returncode in ((1, 2) if code is None else (code,)), done.stdout + done.stderr
        assert words in done.stdout + done.stderr, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert sekisho.json("status", code=3)


@pytest.mark.slow
def test_sigterm_lets_a_running_stream_end(launch: Launch) -> None:
    """The stream that runs comes to its whole end; afterwards no process is left."""
    sekisho = launch()
    pid = sekisho.up()["pid"]
    pids = sekisho.pids()
    with sekisho.client().stream("POST", CHAT, json=chat("tokens:30 pace:0.1", stream=True)) as stream:
        lines = stream.iter_lines()
        next(lines)
        os.kill(pid, signal.SIGTERM)
        rest = list(lines)
    assert "data: [DONE]" in rest
    assert any("word30" in line for line in rest)
    assert eventually(lambda: not any(map(lives, pids)))
    assert [row.status for row in sekisho.usage()] == ["completed"]


@pytest.mark.slow
def test_a_stream_that_outlasts_the_drain_is_told(launch: Launch) -> None:
    """`down` does not wait for ever; the client gets an error with an id instead of an end."""
    sekisho = launch(gateway="  drain_timeout_s: 0.5\n")
    sekisho.up()
    with sekisho.client().stream("POST", CHAT, json=chat("stall:2 a b c", stream=True)) as stream:
        lines = stream.iter_lines()
        next(lines)
        sekisho.json("down")
        rest = list(lines)
    assert any("err_" in line for line in rest)
    assert "data: [DONE]" not in rest
    assert [row.error_code for row in sekisho.usage()] == ["draining"]


@pytest.mark.slow
def test_kill_9_of_the_supervisor_leaves_no_orphan(launch: Launch, small_model: str) -> None:
    """Gateway and engine end by themselves, and the next `up` works at once on the same port."""
    sekisho = launch(f"  - {{name: small, path: {small_model}, context: 512, slots: 2, threads: 1}}\n")
    pid = sekisho.up()["pid"]
    pids = sekisho.pids()
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not any(map(lives, pids)))
    assert sekisho.json("status", code=3)
    assert sekisho.up()["pid"] != pid
    assert sekisho.client().post(CHAT, json=chat("hi", "small", max_tokens=3)).status_code == 200


@pytest.mark.slow
def test_a_client_that_leaves_frees_the_slot_of_llama_cpp(launch: Launch, small_model: str) -> None:
    """Streaming or not: the worker's own list of slots shows none at work, and the turn was cut off, not finished."""
    sekisho = launch(f"  - {{name: small, path: {small_model}, context: 2048, slots: 2, threads: 1}}\n")
    sekisho.up()
    for number, stream in enumerate((True, False), 1):
        body = chat("hello", "small", stream=stream, max_tokens=1900, ignore_eos=True)
        client = http.client.HTTPConnection("127.0.0.1", sekisho.port, timeout=60)
        headers = {"authorization": f"Bearer {sekisho.key}", "content-type": "application/json"}
        client.request("POST", CHAT, json.dumps(body), headers)
        assert eventually(lambda: any(_slots_at_work(sekisho)))
        client.close()
        assert eventually(lambda: not any(_slots_at_work(sekisho)))
        rows = eventually(lambda count=number: rows if len(rows := sekisho.usage()) == count else [])
        assert [row.status for row in rows] == ["cancelled"] * number


def _slots_at_work(sekisho: Sekisho) -> list[bool]:
    """Asks llama.cpp itself, with the key that only its parent knows."""
    import psutil

    engine = psutil.Process(sekisho.child("engine-small").pid or 0)
    key = engine.environ()["SEKISHO_WORKER_KEY"]
    port = engine.cmdline()[engine.cmdline().index("--port") + 1]
    headers = {"authorization": f"Bearer {key}"}
    slots = httpx.get(f"http://127.0.0.1:{port}/slots", headers=headers, timeout=60).json()
    assert slots
    return [bool(slot["is_processing"]) for slot in slots]
