"""The control agent beside a running server, as a person uses it."""

import os
import signal
import threading
from typing import Any

import httpx
import pytest
from e2e_harness import CHAT, Launch, Sekisho, chat, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STREAMS = 20


def agent_of(sekisho: Sekisho) -> tuple[str, dict[str, str]]:
    """Its address, and the header that changes need."""
    from sekisho.control.address import read_address, read_token

    url = eventually(lambda: read_address(sekisho.home.run))
    assert url, "the agent did not come up"
    return url, {"X-Inferos-Token": read_token(sekisho.home.secrets) or ""}


def expected(number: int) -> str:
    return f"{number}: " + " ".join(f"{word:03}" for word in range(60))


def text_of(sekisho: Sekisho, number: int) -> str:
    """A long stream's text, of which a grammar says every letter. Raises where it ends in anything but its end."""
    grammar = f'root ::= "{expected(number)}"'
    body = chat("Count.", "mini", stream=True, temperature=0, grammar=grammar)
    said = []
    with sekisho.client().stream("POST", CHAT, json=body) as response:
        assert response.status_code == 200, response.read()
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        event: dict[str, Any] = httpx.Response(200, text=line).json()
        assert "error" not in event, event
        said += [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
    return "".join(said)


def test_a_policy_changes_under_twenty_open_streams(launch: Launch, small_model: str) -> None:
    """No error, and no letter of any answer lost or doubled. The change is in metrics and history."""
    sekisho = launch(f"  - {{name: mini, path: {small_model}, context: 512, slots: 4, threads: 1}}\n", agent=True)
    sekisho.up()
    url, token = agent_of(sekisho)
    texts: dict[int, str] = {}
    errors: list[BaseException] = []

    def stream(number: int) -> None:
        try:
            texts[number] = text_of(sekisho, number)
        except BaseException as error:  # noqa: BLE001  # told below, with the others
            errors.append(error)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(STREAMS)]
    for thread in threads:
        thread.start()
    changed = sekisho.json("policy", "set", "engine.slots=8", "--why", "more people")
    for thread in threads:
        thread.join(120)
    assert not errors, errors
    assert texts == {number: expected(number) for number in range(STREAMS)}
    assert changed["outcome"] == "applied"
    assert [
        (each["field"], each["effect"], each["done"]) for each in changed["applied"] if each["effect"] == "swap"
    ] == [("engine.slots", "swap", True)]
    engine = eventually(
        lambda: next((e for e in httpx.get(f"{url}/v1/metrics").json()["engines"] if e["slots"] == 8), None)
    )
    assert engine["state"] == "ready"
    metrics = httpx.get(f"{url}/v1/metrics").json()
    assert metrics["requests"]["failed"] == 0
    assert metrics["optimization_status"]["policy_version"] == 1
    decisions = httpx.get(f"{url}/v1/decisions").json()["decisions"]
    assert [each["why"] for each in decisions] == ["more people"]
    back = httpx.post(f"{url}/v1/policy/rollback", json={"version": 0}, headers=token, timeout=120).json()
    assert back["policy"]["engine"]["slots"] is None
    assert eventually(lambda: httpx.get(f"{url}/v1/metrics").json()["engines"][0]["slots"] == 4)


def test_an_agent_that_is_killed_comes_back_with_its_policy(launch: Launch, small_model: str) -> None:
    """The supervisor starts it again; nobody's request noticed, the policy and the history are there, and the next
    decision has the next number."""
    sekisho = launch(f"  - {{name: mini, path: {small_model}, context: 512, slots: 4, threads: 1}}\n", agent=True)
    sekisho.up()
    agent_of(sekisho)
    sekisho.json("policy", "set", "quality.max_delta_ppl=0.25")
    pid = eventually(lambda: sekisho.child("agent").pid)
    os.kill(pid, signal.SIGKILL)
    assert text_of(sekisho, 1) == expected(1)
    assert eventually(lambda: sekisho.child("agent").pid not in (None, pid))
    shown = eventually(lambda: sekisho.run("policy", "show", "--json").returncode == 0)
    assert shown
    assert sekisho.json("policy", "show")["quality"]["max_delta_ppl"] == 0.25
    sekisho.json("policy", "set", "quality.max_delta_ppl=0.3")
    looked = sekisho.json("top", "--once")
    assert [each["number"] for each in looked["decisions"]] == [1, 2]


def test_quality_is_measured_at_a_running_server(launch: Launch) -> None:
    """The command says perplexity under the policy and at 16 bits, with an interval; so do the metrics then."""
    sekisho = launch("  - {name: mini, path: builtin}\n", agent=True)
    sekisho.up()
    url, _ = agent_of(sekisho)
    assert eventually(lambda: httpx.get(f"{url}/v1/health").json()["status"] == "healthy")
    measured = sekisho.json("policy", "measure")["compared"]
    assert measured["measured"]["perplexity"] == pytest.approx(measured["baseline"]["perplexity"], rel=0.001)
    quality = httpx.get(f"{url}/v1/metrics").json()["quality"]["delta_ppl_est"]
    assert quality["current"] == measured["measured"]["perplexity"]
    assert quality["measurement"]["method"] == "llama_hidden"


def test_the_server_runs_without_an_agent(launch: Launch) -> None:
    """`control: {enabled: false}`: no process, and the commands say that none runs."""
    sekisho = launch()
    sekisho.up()
    assert "agent" not in [child.name for child in sekisho.children()]
    done = sekisho.run("policy", "show")
    assert done.returncode == 3
    assert "no agent runs" in done.stderr
