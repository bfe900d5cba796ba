"""Gates against good servers and lying ones: what passes, and what each failure is called, with its next step."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import msgspec
import pytest
from gateway_harness import FAKE
from good_answers import ERROR, GOOD, MODEL, Talk, dumped, responses_whole
from kept_port import KeptPort
from lies import LIES, PAGE, PATIENT, limits_for
from lying_server import LyingServer

from sekisho.engines.config import ModelConfig
from sekisho.evaluate.behaviour.gate import (
    ALWAYS,
    CHAT,
    GATES,
    RESPONSES,
    Gate,
    GateResult,
    figures,
    listed_models,
    run_gates,
)
from sekisho.evaluate.behaviour.gate_report import as_json, as_junit, passed
from sekisho.evaluate.behaviour.gate_verdict import OWN
from sekisho.evaluate.client.exchange import Limits
from sekisho.evaluate.client.faults import MEANINGS, FaultKind
from sekisho.evaluate.client.target import Key, Target

KEY = "sk-lying-0123456789"


class Checking:
    """A server that checks keys and keeps the state of the Responses API, then answers as `way` does."""

    def __init__(
        self, way: Any = None, *, keeps: bool = True, checks: bool = True, turned_away: str = "401 No"
    ) -> None:
        self.way = way or GOOD["honest"]
        self.keeps, self.checks, self.turned_away = keeps, checks, turned_away
        self.said: list[Any] = []

    async def __call__(self, talk: Talk) -> None:
        if self.checks and talk.headers.get("authorization") != f"Bearer {KEY}":
            await talk.send(dumped(ERROR), self.turned_away)
            return
        self.said.append(talk.body)
        previous = talk.body.get("previous_response_id")
        if self.keeps and previous not in (None, "resp_1"):
            await talk.send(dumped({"error": {"message": "gone", "code": "previous_response_not_found"}}), "404 No")
        elif talk.is_list:
            await talk.send()
        else:
            await self.way(talk)


async def gated(
    way: Any, which: tuple[Gate, ...] = GATES, *, limits: Limits = PATIENT, **target: Any
) -> dict[Gate, GateResult]:
    async with LyingServer() as server:
        server.ways["way"] = way
        results = await run_gates(server.target("way", **target), which, limits=limits, max_tokens=32)
    return {result.gate: result for result in results}


@pytest.mark.parametrize("way", GOOD)
async def test_a_good_server_passes_every_gate(way: str) -> None:
    """In every good framing: no gate fails, and nothing is told that nobody needs."""
    results = await gated(Checking(GOOD[way]))
    assert [(gate, result.passed, result.kind) for gate, result in results.items()] == [(g, True, "") for g in GATES]
    assert all(result.reason == ("", "") and result.ms is not None and result.ms > 0 for result in results.values())


async def test_what_the_gates_send() -> None:
    """Two turns carry their history; the state gate names the first turn's id, then one that never was."""
    server = Checking()
    await gated(server)
    chats = [said for said in server.said if "messages" in said]
    assert [len(said["messages"]) for said in chats] == [1, 1, 3, 1]
    assert [message["role"] for message in chats[2]["messages"]] == ["user", "assistant", "user"]
    assert chats[3]["stream"] is True
    follow = [said.get("previous_response_id") for said in server.said if "input" in said]
    assert follow[:4] == [None, None, None, "resp_1"]
    assert re.fullmatch(r"resp_[0-9a-f]{24}", follow[4])


LIES_AT = [
    ("chat_oneshot", "chat", False),
    ("chat_stream", "chat", True),
    ("responses", "responses", False),
    ("responses_stream", "responses", True),
]


@pytest.mark.parametrize(
    ("way", "gate"),
    [
        pytest.param(name, gate, id=f"{name}-{gate}")
        for name, lie in LIES.items()
        for gate, api, stream in LIES_AT
        if api in lie.apis and stream in lie.streams and not lie.fault.startswith("usage")
    ],
)
async def test_a_lie_fails_its_gate(way: str, gate: Gate) -> None:
    """The verdict names the lie, and tells reason and next step in both languages. What servers say that lack the
    Responses API leads to Sekisho in front of them."""
    result = (await gated(Checking(LIES[way].way), (gate,), limits=limits_for(way)))[gate]
    lacking = gate.startswith("responses") and way in ("status_400", "status_404", "status_405", "status_501")
    assert (result.passed, result.kind) == (False, "lacks_api" if lacking else LIES[way].fault)
    assert all((*result.reason, *result.next))
    if lacking:
        assert "Sekisho" in result.next[0]


@pytest.mark.parametrize("way", [name for name, lie in LIES.items() if lie.fault.startswith("usage")])
async def test_a_wrong_usage_fails_no_gate(way: str) -> None:
    """It spoils figures, not clients: the gate passes, and the fault is told beside it."""
    lie = LIES[way]
    gate: Gate = "chat_stream" if "chat" in lie.apis else "responses_stream"
    result = (await gated(Checking(lie.way), (gate,)))[gate]
    assert (result.passed, [fault.kind for fault in result.faults]) == (True, [lie.fault])


async def test_models() -> None:
    """The model must be listed; a list without it is told, and no list is no list."""

    def listing(body: bytes) -> Any:
        async def way(talk: Talk) -> None:
            await talk.send(body)

        return way

    good = (await gated(listing(dumped({"data": [{"id": f"models/{MODEL}"}]})), ("models",)))["models"]
    assert good.passed
    other = (await gated(listing(dumped({"data": [{"id": "a"}, {"id": "b"}]})), ("models",)))["models"]
    assert (other.passed, other.kind, other.words) == (False, "model_missing", "a, b")
    for body in (b"{}", b"[]", b'{"data": []}', b'{"data": [{"id": 7}, 7]}', b'{"data": 3}', PAGE):
        assert (await gated(listing(body), ("models",)))["models"].kind == "bad_json"
    assert (await gated(listing(b""), ("models",)))["models"].kind == "empty_body"


@pytest.mark.parametrize(
    ("status", "kind"),
    [("401 No", ""), ("403 No", ""), ("404 No", "not_turned_away"), ("400 No", "not_turned_away"),
     ("500 No", "not_turned_away"), ("302 Found", "not_turned_away")],
)  # fmt: skip
async def test_strangers_are_turned_away(status: str, kind: str) -> None:
    """Only 401 and 403 say that a key is missing; a crash or a redirect proves nothing."""
    result = (await gated(Checking(turned_away=status), ("no_key",)))["no_key"]
    assert (result.passed, result.kind) == (not kind, kind)


async def test_whoever_lets_strangers_in_fails() -> None:
    """Without a key, or with a wrong one, a 2xx is a failure; so is the empty one of a liar."""
    assert (await gated(Checking(checks=False), ("no_key",)))["no_key"].kind == "let_in"
    assert (await gated(LIES["empty_200"].way, ("no_key",)))["no_key"].kind == "let_in"

    async def any_key_will_do(talk: Talk) -> None:
        if "authorization" in talk.headers:
            await talk.send()
        else:
            await talk.send(dumped(ERROR), "401 No")

    result = (await gated(any_key_will_do, ("no_key",)))["no_key"]
    assert (result.passed, result.kind, result.status) == (False, "let_in", 200)


async def test_a_page_that_turns_away_does_so() -> None:
    """A proxy's HTML with 401 lets nobody in: it passes, with a note that clients show it badly."""
    result = (await gated(LIES["status_403"].way, ("no_key",)))["no_key"]
    assert result.passed
    assert "JSON" in result.note[0]


async def test_an_engine_without_keys_is_not_tried() -> None:
    """A place `engine` that is asked without a key has none to check; any other place must turn away."""
    result = (await gated(Checking(checks=False), ("no_key",), place="engine", key=None))["no_key"]
    assert (result.passed, result.kind) == (None, "no_key_to_check")
    assert all((*result.reason, *result.next))
    assert (await gated(Checking(checks=False), ("no_key",), key=None))["no_key"].kind == "let_in"


async def test_state_that_is_ignored_is_found() -> None:
    """A server that takes an id that never was does not keep state, whatever its model says."""
    result = (await gated(Checking(keeps=False), ("state",)))["state"]
    assert (result.passed, result.kind) == (False, "state_ignored")


async def test_state_that_is_lost_is_found() -> None:
    """A second turn that is refused, or a first one without an id, is no state, and history is the way out."""

    async def refuses(talk: Talk) -> None:
        if "previous_response_id" in talk.body:
            await talk.send(dumped({"error": {"message": "not supported"}}), "400 Bad Request")
        else:
            await talk.send()

    lost = (await gated(refuses, ("state",)))["state"]
    assert (lost.passed, lost.kind, lost.words) == (False, "state_lost", "not supported")
    assert "history" in lost.next[0]
    assert (await gated(LIES["no_id"].way, ("state",)))["state"].kind == "no_id"
    assert (await gated(LIES["status_404"].way, ("state",)))["state"].kind == "lacks_api"


async def test_a_keyword_that_is_forgotten_is_a_note() -> None:
    """Whether the model repeats the keyword says how good it is, not whether the API works."""

    async def remembers(talk: Talk) -> None:
        body = talk.body
        text = (body.get("messages") or body.get("input"))[0]["content"]
        word = re.search(r"KEY-\d{3}-\w+", text) or re.search('KEY[^"]*', "KEY")
        assert word is not None
        whole = talk.whole()
        whole["choices"][0]["message"]["content"] = word[0]
        whole["usage"] = None
        await talk.send(dumped(whole))

    kept = (await gated(remembers, ("chat_two_turn",)))["chat_two_turn"]
    assert (kept.passed, "knew" in kept.note[0]) == (True, True)
    forgot = await gated(Checking(), ("chat_two_turn", "state"))
    assert forgot["chat_two_turn"].passed
    assert forgot["state"].passed
    assert all("did not repeat" in result.note[0] for result in forgot.values())


async def test_two_turns_end_with_the_first_that_fails() -> None:
    """A second turn is not asked for after a first that failed; one that fails itself is the verdict."""
    server = Checking(LIES["status_503"].way)
    assert (await gated(server, ("chat_two_turn",)))["chat_two_turn"].kind == "server_error"
    assert len(server.said) == 1

    async def once(talk: Talk) -> None:
        await (GOOD["honest"] if len(talk.body["messages"]) == 1 else LIES["empty_200"].way)(talk)

    assert (await gated(once, ("chat_two_turn",)))["chat_two_turn"].kind == "empty_body"


@pytest.mark.parametrize("code", ["model_not_found", "context_length_exceeded"])
async def test_a_server_that_has_the_api_is_not_told_to_get_it(code: str) -> None:
    """A 404 about the model, or a 400 about the length, says nothing about the API."""

    async def way(talk: Talk) -> None:
        await talk.send(dumped({"error": {"message": "no", "code": code}}), "404 No")

    assert (await gated(way, ("responses",)))["responses"].kind == "not_found"


async def test_nobody_there_is_asked_once() -> None:
    """One refused connection is every gate's verdict."""
    with KeptPort() as port:
        results = await run_gates(Target("gateway", f"http://127.0.0.1:{port}", MODEL, Key(KEY)), limits=PATIENT)
    assert [result.gate for result in results] == list(GATES)
    assert {result.kind for result in results} == {"not_connected"}
    assert [result.ms is None for result in results] == [False] + [True] * 7


async def test_a_key_that_a_server_repeats_is_masked() -> None:
    """Servers quote the key that they refuse: no result, report or fault holds it, not even where it is cut."""
    for before in range(270, 300):

        async def way(talk: Talk, before: int = before) -> None:
            words = "x" * before + talk.headers.get("authorization", "")
            await talk.send(dumped({"error": {"message": words}}), "400 Bad Request")

        async with LyingServer() as server:
            server.ways["way"] = way
            target = server.target("way")
            results = await run_gates(target, ("models", "chat_oneshot", "responses"), limits=PATIENT)
        told = msgspec.json.encode(as_json(results, target)) + as_junit(results, target, at=0)
        assert KEY[:10].encode() not in told


async def test_which_gates() -> None:
    """They are tried in one order, whatever order they are asked for in; progress ends with all."""
    seen: list[tuple[str, int, int]] = []
    async with LyingServer() as server:
        server.ways["way"] = Checking()
        which = (*RESPONSES, *CHAT, *ALWAYS)
        results = await run_gates(
            server.target("way"), which, lambda *told: seen.append(told), limits=PATIENT, max_tokens=32
        )
    assert [result.gate for result in results] == list(GATES[:-1])
    assert seen[-1] == ("gate gateway", 7, 7)


async def test_figures() -> None:
    """One a gate; a gate that was not tried is null with its reason."""
    async with LyingServer() as server:
        server.ways["way"] = Checking(checks=False, keeps=False)
        target = server.target("way", place="engine", key=None)
        results = await run_gates(target, limits=PATIENT, max_tokens=32)
    made = {figure.id: figure for figure in figures(results, target, command="sekisho gate", file="gates.json")}
    assert list(made) == [f"gate.engine.{gate}" for gate in GATES]
    assert made["gate.engine.no_key"].value is None
    assert made["gate.engine.no_key"].why_null
    assert (made["gate.engine.chat_stream"].value, made["gate.engine.state"].value) == (True, False)
    assert made["gate.engine.state"].note == "state_ignored"
    assert not passed(results)


async def test_junit_is_xml_whatever_servers_say(tmp_path: Path) -> None:
    """Control characters and markup in a server's words leave the report well-formed, with counts that add up."""

    async def way(talk: Talk) -> None:
        await talk.send(b"\x00\x1b[31m <b>&]]> \xff \xef\xbf\xbf", "500 Oops")

    async with LyingServer() as server:
        server.ways["way"] = way
        target = server.target("way", place="engine", key=None)
        results = await run_gates(target, limits=PATIENT)
    for language in ("en", "ja"):
        root = ElementTree.fromstring(as_junit(results, target, language=language, at=1_790_000_000.0))
        (suite,) = root
        cases = suite.findall("testcase")
        failures = [case.find("failure") for case in cases if case.find("failure") is not None]
        assert (len(cases), len(failures), suite.get("skipped")) == (8, 7, "1")
        assert suite.get("failures") == "7"
        first = failures[0]
        assert first is not None
        assert (first.get("type"), "<b>&]]>" in (first.text or "")) == ("server_error", True)
        assert suite.get("timestamp") == "2026-09-21T14:13:20"


async def test_listed_models() -> None:
    """The ids of a list, and none where there is no list."""
    async with LyingServer() as server:
        assert await listed_models(server.target("honest"), PATIENT) == (MODEL,)
        assert await listed_models(server.target("html_page"), PATIENT) == ()


def test_every_failure_has_words() -> None:
    """Each kind that a verdict can have tells what it is and what to do, in two different languages."""
    assert set(MEANINGS) == set(get_args(FaultKind))
    assert not set(MEANINGS) & set(OWN)
    for meaning in (*MEANINGS.values(), *OWN.values()):
        for english, japanese in (meaning.what, meaning.next):
            assert english.isascii()
            assert re.search("[ぁ-んァ-ヶ一-龠]", japanese)


def test_the_page_has_every_failure() -> None:
    """docs/gate.md says of each kind what the program says, and names every gate."""
    page = (Path(__file__).parents[2] / "docs" / "gate.md").read_text(encoding="utf-8")
    for kind, meaning in {**OWN, **MEANINGS}.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{kind}` |")]
        assert meaning.what[0] in row
        assert meaning.next[0] in row
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")][: len(GATES)] == list(GATES)


def test_nothing_tried_is_not_passed() -> None:
    """A report without a passed gate is no pass."""
    skipped = GateResult(gate="no_key", passed=None)
    assert not passed([])
    assert not passed([skipped])
    assert passed([skipped, GateResult(gate="models", passed=True)])
    target = Target("engine", "http://127.0.0.1:1", "m", Key("k" * 20))
    assert as_json([skipped], target)["passed"] is False
    assert responses_whole()["id"] == "resp_1"


async def test_a_real_gateway_passes_and_a_real_engine_lacks_state(mini: Target, llama: Target) -> None:
    """Sekisho before llama.cpp passes every gate, and knows in its second turn what was said in the first; llama.cpp
    alone keeps no state, and the way out is told."""
    through = {result.gate: result for result in await run_gates(mini)}
    assert [(gate, result.passed, result.kind, result.faults) for gate, result in through.items()] == [
        (gate, True, "", ()) for gate in GATES
    ]
    assert "knew" in through["state"].note[0]
    alone = {result.gate: result for result in await run_gates(llama)}
    assert [gate for gate, result in alone.items() if not result.passed] == ["state"]
    assert alone["state"].kind == "state_lost"
    assert "previous_response_id" in alone["state"].words


async def test_a_gateway_without_its_engine(gateway: Callable[..., Any]) -> None:
    """An engine that is down is a 5xx, told in the gateway's words, and the next step is to restart it."""
    with KeptPort() as port:
        dead = ModelConfig(name="dead", engine="openai_http", url=f"http://127.0.0.1:{port}/v1")
        live = await asyncio.to_thread(gateway, FAKE, dead)
        target = Target("gateway", live.url, "dead", Key(live.key))
        results = {result.gate: result for result in await run_gates(target, limits=Limits(silence_s=20, total_s=40))}
    assert [gate for gate, result in results.items() if result.passed] == ["models", "no_key"]
    assert {results[gate].kind for gate in CHAT + RESPONSES} == {"server_error"}
    assert "estart" in results["responses"].next[0]
