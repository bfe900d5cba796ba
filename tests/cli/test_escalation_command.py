"""`sekisho escalation`: tickets of a real desk in the real store, with and without a desk that waits."""

import asyncio
import getpass
import io
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sekisho.cli.running import run
from sekisho.core.clock import Clock, ManualClock, SystemClock
from sekisho.core.verdict import Verdict
from sekisho.gateway.seal import Sealer, load_or_create_key
from sekisho.guard.desk import Desk
from sekisho.guard.desk_config import ApproverConfig, EscalationConfig
from sekisho.guard.desk_records import Case
from sekisho.guard.quiet import QuietNotifier
from sekisho.ops.home import Home
from sekisho.store import Store

Run = Any
Answer = Any
T = TypeVar("T")

QUESTION = "薬は何錠まで飲めますか"


def at_desk(
    home: Path,
    work: Callable[[Desk], Awaitable[T]],
    config: EscalationConfig | None = None,
    clock: Clock | None = None,
) -> T:
    """Does the work at a desk as the server has it: with the home's store and its seal."""

    async def there() -> T:
        place = Home(home).create()
        store = await Store.open(str(place.database))
        sealer = Sealer(load_or_create_key(place.secrets / "seal.key"))
        desk = Desk(lambda: store, config or EscalationConfig(), QuietNotifier(), clock or SystemClock(), sealer=sealer)
        try:
            return await work(desk)
        finally:
            await desk.close()
            await store.close()

    return asyncio.run(there())


def case(number: int = 1, category: str = "medical") -> Case:
    verdict = Verdict("escalate", category, "high", rationale="a person must decide", language="ja")  # type: ignore[arg-type]
    return Case(
        request_hash=f"hash{number}",
        request_id=f"req_{number}",
        key_id="key_1",
        key_name="taro",
        model="echo",
        protocol="chat",
        verdict=verdict,
        question=QUESTION,
        behaviour="ticket",
    )


def open_ticket(home: Path, number: int = 1, category: str = "medical") -> str:
    return at_desk(home, lambda desk: desk.open(case(number, category))).id


def settings(home: Path, text: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "sekisho.yaml").write_text(text)


def test_list_and_show(answer: Answer, sekisho: Run, home: Path) -> None:
    """Tickets come newest first with their question in clear; by state; and one by its id."""
    assert answer("escalation", "list") == []
    assert "No tickets" in sekisho("escalation", "list")[1]
    first, second = open_ticket(home, 1), open_ticket(home, 2, "legal")
    assert [ticket["id"] for ticket in answer("escalation", "list")] == [second, first]
    assert [ticket["id"] for ticket in answer("escalation", "list", "-n", "1")] == [second]
    assert answer("escalation", "list", "--state", "denied") == []
    shown = answer("escalation", "show", first)
    assert (shown["question"], shown["state"], shown["channel"]) == (QUESTION, "pending", "medical")
    code, out, _ = sekisho("escalation", "show", first)
    assert code == 0
    assert QUESTION in out
    assert QUESTION not in (home / "sekisho.db").read_bytes().decode(errors="replace")
    assert sekisho("escalation", "show", "esc_nothing")[0] == 3
    assert sekisho("escalation", "list", "--state", "lost")[0] == 2


@pytest.mark.parametrize(
    ("words", "state", "field", "text"),
    [
        (["approve"], "approved", "answer", None),
        (["answer", "See a doctor."], "answered", "answer", "See a doctor."),
        (["deny", "--reason", "not here"], "denied", "reason", "not here"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_decision_counts_once(
    answer: Answer, sekisho: Run, home: Path, words: list[str], state: str, field: str, text: str | None
) -> None:
    """Each decision ends the ticket; a second one is told with 1, and changes nothing."""
    ticket = open_ticket(home)
    decided = answer("escalation", words[0], ticket, *words[1:])
    assert (decided["state"], decided[field], decided["decided_by"]) == (state, text, "operator")
    code, _, err = sekisho("escalation", "deny", ticket)
    assert code == 1
    assert "already" in err
    assert answer("escalation", "show", ticket)["state"] == state


def test_an_answer_from_standard_input(answer: Answer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads a longer answer from a pipe; an empty one is wrong usage."""
    ticket = open_ticket(home)
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    answer("escalation", "answer", ticket, "-", code=2)
    monkeypatch.setattr(sys, "stdin", io.StringIO("line one\nline two\n"))
    assert answer("escalation", "answer", ticket, "-")["answer"] == "line one\nline two\n"


def test_roles_hold_for_the_command_line_too(answer: Answer, sekisho: Run, home: Path) -> None:
    """Who is no approver, or not for this channel, decides nothing; `operator` only where the settings let it."""
    settings(
        home,
        "guard: {escalation: {operator: false, approvers: "
        "{hanako: {channels: [medical]}, jiro: {channels: [legal]}}}}\n",
    )
    ticket = open_ticket(home)
    code, _, err = sekisho("escalation", "approve", ticket, "--as", "nobody")
    assert code == 2
    assert "hanako, jiro" in err
    assert sekisho("escalation", "approve", ticket)[0] == 2
    for name in ("jiro", "operator"):
        code, out, _ = sekisho("escalation", "approve", ticket, "--as", name, "--json")
        assert code == 1
        assert json.loads(out)["error"]["code"] == "permission_denied"
    assert answer("escalation", "show", ticket)["state"] == "pending"
    assert answer("escalation", "approve", ticket, "--as", "hanako")["decided_by"] == "hanako"


def test_the_own_name_is_the_default(answer: Answer, home: Path) -> None:
    """Where the user of this machine is an approver, that is who decides."""
    name = getpass.getuser()
    settings(home, f"guard: {{escalation: {{approvers: {{{name}: {{channels: [medical]}}}}}}}}\n")
    assert answer("escalation", "approve", open_ticket(home))["decided_by"] == name


def test_too_late_is_told(answer: Answer, home: Path) -> None:
    """After its time a ticket is refused; a late decision revives nothing, and ends with 1."""
    yesterday = ManualClock(now=time.time() - 86_400)
    ticket = at_desk(home, lambda desk: desk.open(case()), EscalationConfig(timeout_s=60), yesterday).id
    told = answer("escalation", "approve", ticket, code=1)
    assert told["error"]["code"] == "ticket_expired"
    assert answer("escalation", "show", ticket)["state"] == "expired"


def test_a_waiting_server_hears_the_decision(home: Path, answer: Answer) -> None:
    """A desk of another process that holds the request goes on when the command line approves."""
    config = EscalationConfig(approvers={"hanako": ApproverConfig(channels=("medical",))})
    ready, found = threading.Event(), []
    opened: list[str] = []

    def server() -> None:
        async def hold(desk: Desk) -> None:
            await desk.start()
            ticket = await desk.open(case())
            opened.append(ticket.id)
            ready.set()
            found.append(await desk.wait(ticket.id))

        at_desk(home, hold, config)

    thread = threading.Thread(target=server)
    thread.start()
    assert ready.wait(60)
    assert run(["escalation", "answer", opened[0], "二錠まで", "--json"]) == 0
    thread.join(60)
    assert [(outcome.state, outcome.ticket.answer) for outcome in found] == [("answered", "二錠まで")]
