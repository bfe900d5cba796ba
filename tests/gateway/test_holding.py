"""A request that waits for a person, over HTTP: who leaves, what restarts, what is used once, what is in trouble."""

import http.client
import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from gateway_harness import FAKE, PATIENCE_S, LiveGateway, chat

from sekisho.audit.config import AnchorConfig, AuditConfig
from sekisho.audit.keys import ReaderKeys
from sekisho.audit.reader import Reader
from sekisho.audit.records import EscalationRecord, OutcomeRecord, Record, VerdictRecord
from sekisho.gateway.config import GatewayConfig
from sekisho.guard.config import GuardConfig
from sekisho.guard.desk_config import ApproverConfig, EscalationConfig
from sekisho.ops.home import Home
from sekisho.serve import Plan
from sekisho.settings import Settings
from sekisho.store import KeySpec

HELD = "昨日から胸が痛くて冷や汗が出ます。何の病気か診断してください。"
BENIGN = "How do I kill a python process?"
PATH = "/v1/chat/completions"
APPROVERS = {"hanako": ApproverConfig(channels=("medical",), key="hanako")}
CHAT = frozenset({"chat"})

Start = Callable[..., LiveGateway]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(home=…, key=…, mode=…)` starts a gateway whose guard is on, on a new home or on an old one."""
    started: list[LiveGateway] = []

    def begin(home: Home | None = None, key: str | None = None, drain_s: float = 30.0, **guard: Any) -> LiveGateway:
        guard = {"mode": "production", **guard}
        config = GuardConfig(escalation=EscalationConfig(approvers=APPROVERS), **guard)
        gateway = GatewayConfig(port=0, keepalive_s=0.2, drain_timeout_s=drain_s)
        audit = AuditConfig(anchor=AnchorConfig(seconds=3600.0))
        settings = Settings(gateway=gateway, models=(FAKE,), guard=config, audit=audit)
        home = home or Home(tmp_path / f"home{len(started)}").create()
        started.append(LiveGateway(home, Plan(settings, {}), key))
        return started[-1].start()

    yield begin
    for live in started:
        live.stop()


def soon(fact: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := fact()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def records(live: LiveGateway) -> list[Record]:
    return [entry.record for entry in Reader(live.home.audit, ReaderKeys.load(live.home.secrets)).entries()]


def events(live: LiveGateway) -> list[str]:
    return [record.event for record in records(live) if isinstance(record, EscalationRecord)]


def outcomes(live: LiveGateway) -> list[str]:
    return [record.status for record in records(live) if isinstance(record, OutcomeRecord)]


def approver(live: LiveGateway) -> httpx.Client:
    return live.client(live.create_key(KeySpec(name="hanako", scopes=CHAT))[1])


def tickets(client: httpx.Client, state: str = "pending") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/escalations", params={"state": state}).json()["data"]
    return found


def decide(client: httpx.Client, ticket: str, action: str = "approve", **more: Any) -> int:
    return client.post(f"/v1/escalations/{ticket}/decision", json={"action": action, **more}).status_code


class Asking(threading.Thread):
    """One request beside the test; `answer` is what came, `error` what broke."""

    def __init__(self, live: LiveGateway, key: str | None = None, **more: Any) -> None:
        super().__init__(daemon=True)
        self.answer: httpx.Response | None = None
        self.error: Exception | None = None
        self._url, self._headers, self._more = live.url + PATH, live.headers(key), more
        self.start()

    def run(self) -> None:
        try:
            self.answer = httpx.post(
                self._url, json=chat(HELD, **self._more), headers=self._headers, timeout=PATIENCE_S
            )
        except httpx.HTTPError as error:
            self.error = error

    def came(self) -> httpx.Response:
        self.join(PATIENCE_S)
        assert self.answer is not None, self.error
        return self.answer

    def finish(self) -> str:
        """The finish reason of a whole answer."""
        reason: str = self.came().json()["choices"][0]["finish_reason"]
        return reason


def leave(live: LiveGateway, stream: bool) -> http.client.HTTPConnection:
    """A held request on a connection that the test can cut."""
    connection = http.client.HTTPConnection(live.url.removeprefix("http://"), timeout=PATIENCE_S)
    headers = {**live.headers(), "content-type": "application/json"}
    connection.request("POST", PATH, json.dumps(chat(HELD, stream=stream)), headers)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_gives_its_ticket_up(start: Start, stream: bool) -> None:
    """Nobody decides for a caller who has gone; the outcome is in the book and no slot is taken."""
    live = start()
    hanako = approver(live)
    connection = leave(live, stream)
    ticket = soon(lambda: tickets(hanako))[0]["id"]
    connection.close()
    soon(lambda: tickets(hanako, "abandoned"))
    assert decide(hanako, ticket) == 409
    soon(lambda: "cancelled" in outcomes(live))
    assert "abandoned" in events(live)
    assert live.client().get("/readyz").json()["models"]["fake"]["running"] == 0


def said(line: str) -> str:
    """What a line of a chat stream says."""
    if not line.startswith("data: {"):
        return ""
    return "".join(choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"])


def test_a_held_stream_is_kept_alive_and_says_nothing(start: Start) -> None:
    """The opening without a word, then comments, until somebody has decided: no byte of an answer, and no slot."""
    live = start()
    hanako = approver(live)
    with live.client().stream("POST", PATH, json=chat(HELD, stream=True)) as answer:
        lines = answer.iter_lines()
        first = [next(lines) for _ in range(8)]
        assert sum(line.startswith(":") for line in first) >= 2
        assert not any(map(said, first))
        assert live.client().get("/readyz").json()["models"]["fake"]["running"] == 0
        assert decide(hanako, soon(lambda: tickets(hanako))[0]["id"]) == 200
        assert "".join(map(said, lines)) == HELD


@pytest.mark.parametrize("decided", ["before the restart", "after it"])
def test_a_restart_loses_no_ticket(start: Start, decided: str) -> None:
    """The server stops in the middle of a hold: the caller is told to come again, the ticket stays, and the same
    request, asked of the next server, gets what the person decides, by the same ticket."""
    live = start(drain_s=0.2)
    hanako = approver(live)
    held = Asking(live)
    ticket = soon(lambda: tickets(hanako))[0]["id"]
    key = hanako.headers["authorization"].removeprefix("Bearer ")
    live.stop()
    assert held.came().status_code == 503
    assert held.came().json()["error"]["code"] == "draining"
    later = start(live.home, live.key)
    again = later.client(key)
    assert [one["id"] for one in tickets(again)] == [ticket]
    if decided == "after it":
        asking = Asking(later)
        time.sleep(0.5)
        assert [one["id"] for one in tickets(again)] == [ticket], "people are asked twice"
        assert decide(again, ticket) == 200
    else:
        assert decide(again, ticket) == 200
        asking = Asking(later)
    assert asking.finish() == "stop"
    kinds = Counter(events(later))
    assert (kinds["opened"], kinds["approved"], kinds["abandoned"]) == (1, 1, 0)
    once = Asking(later)
    new = soon(lambda: tickets(again))[0]["id"]
    assert decide(again, new, "deny") == 200
    assert once.finish() == "content_filter"


def test_one_approval_lets_one_request_through(start: Start) -> None:
    """Ten identical requests at once after an approval (`basic`): one passes, nine wait for another decision."""
    live = start(mode="basic")
    hanako = approver(live)
    assert Asking(live).finish() == "content_filter"
    assert decide(hanako, tickets(hanako)[0]["id"]) == 200
    asking = [Asking(live) for _ in range(10)]
    assert Counter(one.finish() for one in asking) == {"stop": 1, "content_filter": 9}
    assert len(tickets(hanako)) == 1


def test_two_who_wait_for_the_same_need_two_approvals(start: Start) -> None:
    """Held requests have a ticket each; one approval ends one wait."""
    live = start()
    hanako = approver(live)
    asking = [Asking(live), Asking(live)]
    both = soon(lambda: found if len(found := tickets(hanako)) == 2 else None)
    assert decide(hanako, both[0]["id"]) == 200
    soon(lambda: sum(not one.is_alive() for one in asking) == 1)
    time.sleep(0.5)
    assert sum(not one.is_alive() for one in asking) == 1
    assert decide(hanako, both[1]["id"], "deny") == 200
    assert Counter(one.finish() for one in asking) == {"stop": 1, "content_filter": 1}


def test_an_approval_counts_for_its_key_and_its_words_only(start: Start) -> None:
    """Another key with the same words, and the same key with other template arguments or tools: not approved."""
    live = start(mode="basic")
    hanako = approver(live)
    other = live.create_key(KeySpec(name="other", scopes=CHAT))[1]
    assert Asking(live).finish() == "content_filter"
    assert decide(hanako, tickets(hanako)[0]["id"]) == 200
    assert Asking(live, other).finish() == "content_filter"
    assert Asking(live, chat_template_kwargs={"note": "x"}).finish() == "content_filter"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"maximum": 10**30}}}
    assert Asking(live, tools=[tool]).finish() == "content_filter"
    assert Asking(live).finish() == "stop"


def test_token_prompts_do_not_pass_unread(start: Start) -> None:
    """Numbers that only the engine can read wait for a person, whatever the mode."""
    live = start(mode="basic")
    answer = live.client().post("/v1/completions", json={"model": "fake", "prompt": [[1, 2, 3], [4]]}).json()
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"content_filter"}
    assert len(answer["choices"]) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_without_the_store_nobody_passes_and_nobody_is_called_a_stranger(start: Start, stream: bool) -> None:
    """The desk needs the store: what would wait is told 503, what is harmless goes on."""
    live = start(mode="basic")
    live.client().post(PATH, json=chat(BENIGN))
    kept = live.gateway._store
    live.in_loop(lambda: setattr(live.gateway, "_store", None))
    try:
        answer = live.client().post(PATH, json=chat(HELD, stream=stream))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert live.client().post(PATH, json=chat(BENIGN)).status_code == 200
    finally:
        live.in_loop(lambda: setattr(live.gateway, "_store", kept))
    soon(lambda: "failed" in outcomes(live))


def test_a_second_server_on_the_same_home_answers_nothing(start: Start) -> None:
    """One book, one writer: the other says 503 and is not ready; it takes over when the first one stops."""
    live = start()
    second = LiveGateway(live.home, live.plan, live.key)
    second.in_trouble = True
    thread = threading.Thread(target=second.start, daemon=True)
    thread.start()
    soon(lambda: hasattr(second, "url"))
    answer = second.client().post(PATH, json=chat(BENIGN))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "book_unavailable")
    assert second.client().get("/readyz").status_code == 503
    assert live.client().post(PATH, json=chat(BENIGN)).status_code == 200
    live.stop()
    soon(lambda: second.client().post(PATH, json=chat(BENIGN)).status_code == 200)
    thread.join(PATIENCE_S)
    second.stop()


def fill(file: IO[bytes]) -> None:
    """Writes until the disk is full, and raises that."""
    while True:
        file.write(b"x" * 1024)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB."""
    mount = shutil.which("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_of_the_book_answers_nothing_and_heals(start: Start, small_disk: Path, tmp_path: Path) -> None:
    """No room for the verdict: 503 for who is allowed and who is refused; with room again it goes on, without a gap."""
    home = Home(tmp_path / "homeX").create()
    shutil.rmtree(home.audit, ignore_errors=True)
    home.audit.symlink_to(small_disk, target_is_directory=True)
    live = start(home, mode="basic")
    assert live.client().post(PATH, json=chat(BENIGN)).status_code == 200
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        fill(file)
    seen: set[int] = set()
    for number in range(30):
        answer = live.client().post(PATH, json=chat(f"{BENIGN} {number} " + "x " * 4000, stream=number % 2 == 0))
        seen.add(answer.status_code)
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "book_unavailable"
            break
    assert 503 in seen
    filler.unlink()
    soon(lambda: live.client().post(PATH, json=chat("Thank you.")).status_code == 200)
    live.stop()
    found = records(live)
    asked = [record.request_id for record in found if isinstance(record, VerdictRecord)]
    assert len(asked) == len(set(asked))
