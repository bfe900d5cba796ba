"""Conversations with servers that remember and such that do not: what counts as continued, and what is written down."""

import asyncio
import csv
import io
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from good_answers import Talk, dumped
from lies import LIES, PATIENT
from lying_server import LyingServer

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.behaviour import continuity
from sekisho.evaluate.behaviour.continuity import Held, Mode, Plan, conversations, run
from sekisho.evaluate.behaviour.continuity_record import COLUMNS, as_csv, figures, summary, why_lost
from sekisho.evaluate.behaviour.keywords import SHAPES

KEYWORD = re.compile(r"「(.+?)」|\"(.+?)\"")
Way = Callable[[Talk], Awaitable[None]]


class Rememberer:
    """Keeps what it is told, as a good model behind a good server does. `turn` is the number within a conversation.
    `spoil(turn, text)` may change an answer; `fails_at` answers 503 in that turn; `idless_at` gives no id in it."""

    def __init__(
        self,
        spoil: Callable[[int, str], str] = lambda turn, text: text,
        *,
        fails_at: int = 0,
        idless_at: int = 0,
    ) -> None:
        self.spoil, self.fails_at, self.idless_at = spoil, fails_at, idless_at
        self.chains: dict[str, list[str]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.running = 0
        self.most_running = 0

    async def __call__(self, talk: Talk) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0.005)
        self.bodies.append(talk.body)
        said = self._said(talk.body)
        turn = len(said)
        found = KEYWORD.search(said[0])
        assert found is not None
        text = self.spoil(turn, f"It is {found[1] or found[2]}.")
        self.running -= 1
        if turn == self.fails_at:
            await talk.send(b"{}", "503 Busy")
            return
        whole = talk.whole()
        count = len(text) // 2 + 1
        whole["usage"] = dict(zip(whole["usage"], (9, count, 9 + count), strict=True))
        if talk.api == "chat":
            whole["choices"][0]["message"]["content"] = text
        else:
            whole["id"] = "" if turn == self.idless_at else f"resp_{len(self.bodies)}"
            self.chains[whole["id"]] = said
            whole["output"][0]["content"][0]["text"] = text
        await talk.send(dumped(whole))

    def _said(self, body: dict[str, Any]) -> list[str]:
        """What the user has said in this conversation."""
        if "messages" in body:
            return [message["content"] for message in body["messages"] if message["role"] == "user"]
        return [*self.chains.get(body.get("previous_response_id", ""), []), body["input"][0]["content"]]


async def held(plan: Plan, way: Way, **options: Any) -> tuple[Held, ...]:
    async with LyingServer() as server:
        server.ways["way"] = way
        return await run(server.target("way"), plan, limits=PATIENT, **options)


BOTH: list[Mode] = ["chat", "responses"]


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_server_that_remembers_continues_everything(mode: Mode, shape: Any) -> None:
    """Every conversation, in every shape of keyword and in both languages, with its own keyword in each turn."""
    plan = Plan(mode=mode, users=2, conversations=4, shape=shape)
    done = await held(plan, Rememberer())
    assert [one.number for one in done] == list(range(1, 9))
    assert [one.user for one in done] == [1] * 4 + [2] * 4
    assert all(one.continued and one.chained and why_lost(one) == ("", "") for one in done)
    assert len({one.keyword for one in done}) == 8


async def test_history_and_chain() -> None:
    """A chat sends all that was said, with the server's own answers; responses send one message and the last id."""
    chat = Rememberer()
    await held(Plan(mode="chat", users=1, conversations=1), chat)
    assert [[m["role"] for m in body["messages"]] for body in chat.bodies] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
    ]
    assert chat.bodies[2]["messages"][1]["content"].startswith("It is KEY-")
    responses = Rememberer()
    await held(Plan(mode="responses", users=1, conversations=1), responses)
    assert [body.get("previous_response_id") for body in responses.bodies] == [None, "resp_1", "resp_2"]
    assert [len(body["input"]) for body in responses.bodies] == [1, 1, 1]


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize(("turn", "kept"), [(1, True), (2, False), (3, False)])
async def test_the_keyword_counts_from_the_second_turn(mode: Mode, turn: int, kept: bool) -> None:
    """What is forgotten in turn 2 or 3 is lost; what turn 1 says does not matter."""
    way = Rememberer(lambda number, text: "OK" if number == turn else text)
    (one,) = await held(Plan(mode=mode, users=1, conversations=1), way)
    assert one.continued is kept
    row = next(csv.DictReader(io.StringIO(as_csv([one]))))
    assert [row[f"turn{number}_ok"] for number in (2, 3)] == [str(int(number != turn)) for number in (2, 3)]
    assert (row["http1"], row["http2"], row["http3"], row["state_id_chain_ok"]) == ("200", "200", "200", "1")
    assert bool(why_lost(one)[0]) is not kept


@pytest.mark.parametrize("change", [str.lower, lambda text: text.replace("-", "‐"), lambda text: " ".join(text)])
async def test_a_keyword_is_kept_letter_by_letter(change: Callable[[str], str]) -> None:
    """In other letters, with another dash or spaced out it is another word."""
    way = Rememberer(lambda number, text: change(text) if number == 3 else text)
    (one,) = await held(Plan(users=1, conversations=1, language="en"), way)
    assert not one.continued


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_a_turn_that_fails_ends_its_conversation(mode: Mode, turn: int) -> None:
    """The turns after it are not sent, and are 0 in the table; nothing else is lost."""
    way = Rememberer(fails_at=turn)
    done = await held(Plan(mode=mode, users=1, conversations=2), way)
    assert len(way.bodies) == 2 * turn
    assert not any(one.continued for one in done)
    row = next(csv.DictReader(io.StringIO(as_csv(done))))
    assert [row[f"http{number}"] for number in (1, 2, 3)] == ["200"] * (turn - 1) + ["503"] + ["0"] * (3 - turn)
    assert row["faults"] == "server_error"
    assert row["state_id_chain_ok"] == ("1" if mode == "chat" else "0")
    rate, http_ok = figures(done, mode)[:2]
    assert (rate.value, rate.n) == (0.0, 2)
    assert (http_ok.value, http_ok.n) == ((turn - 1) / turn, 2 * turn)
    assert why_lost(done[0])[0] == f"turn {turn}: server_error"


@pytest.mark.parametrize("turn", [1, 2, 3])
async def test_a_chain_without_an_id_is_broken(turn: int) -> None:
    """Responses need an id in each turn, the last one too; a chat needs none."""
    (one,) = await held(Plan(mode="responses", users=1, conversations=1), Rememberer(idless_at=turn))
    assert (one.chained, one.continued) == (False, False)
    chains = next(figure for figure in figures([one], "responses") if figure.id == "continuity.responses.chains")
    assert (chains.value, chains.n, chains.unit) == (0, 1, "count")
    (chat,) = await held(Plan(mode="chat", users=1, conversations=1), Rememberer(idless_at=turn))
    assert chat.continued


@pytest.mark.parametrize("way", ["empty_200", "error_as_success", "html_page", "cut_in_the_middle", "no_text"])
async def test_a_lying_success_is_not_continued(way: str) -> None:
    """A 2xx without the keyword is none, and its fault stands in the table."""
    (one,) = await held(Plan(users=1, conversations=1), LIES[way].way)
    assert not one.continued
    assert LIES[way].fault in next(csv.DictReader(io.StringIO(as_csv([one]))))["faults"].split()


@pytest.mark.parametrize("mode", BOTH)
async def test_users_talk_at_the_same_time(mode: Mode) -> None:
    """As many requests run as there are users, and no user holds two conversations at once."""
    way = Rememberer()
    waiting = 0
    together = asyncio.Event()

    async def three_at_once(talk: Talk) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            together.set()
        async with asyncio.timeout(60):
            await together.wait()  # a load of two would never come past this
        await way(talk)

    done = await held(Plan(mode=mode, users=3, conversations=3), three_at_once)
    assert len(done) == 9
    assert all(one.continued for one in done)
    assert way.most_running <= 3


async def test_more_turns_with_others_between() -> None:
    """Six turns with two distractors before each but the first: only those about the keyword must keep it."""
    plan = Plan(users=1, conversations=2, turns=6, distractors=2)
    for conversation in conversations(plan):
        kinds = [turn.is_distractor for turn in conversation.turns]
        assert kinds == [False] + [True, True, False] * 5
        assert [turn.keeps for turn in conversation.turns] == [False] + [False, False, True] * 5

    def only_about_it(number: int, text: str) -> str:
        return text if number % 3 == 1 else "7"

    done = await held(plan, Rememberer(only_about_it))
    assert all(one.continued and len(one.spoken) == 16 for one in done)
    forgets_last = Rememberer(lambda number, text: "no" if number == 16 else only_about_it(number, text))
    assert not any(one.continued for one in await held(plan, forgets_last))
    row = next(csv.DictReader(io.StringIO(as_csv(done))))
    assert (row["turns"], row["turns_ok"], len(row["statuses"].split())) == ("16", "5", 16)
    assert (row["http3"], row["turn3_ok"]) == ("200", "1")


def test_keywords_are_of_this_run_alone() -> None:
    """The same seed gives the same conversations, another seed other keywords, and within a run none comes twice."""
    for shape in ("ascii", "kanji", "mixed"):
        one, same, other = (conversations(Plan(shape=shape, seed=seed)) for seed in (1, 1, 2))
        assert one == same
        assert not {c.keyword for c in one} & {c.keyword for c in other}
        assert len({c.keyword for c in one}) == 30
    assert [c.keyword for c in conversations(Plan(shape="fixed"))][:2] == ["KEY-001-AOIRINGO", "KEY-002-AOIRINGO"]
    kanji = {c.keyword for c in conversations(Plan(shape="kanji"))}
    assert all(re.fullmatch("[一-龠]{3}", word) for word in kanji)


def test_a_prompt_holds_its_keyword_once() -> None:
    """Turn 1 says it, and no later turn gives it away."""
    for conversation in conversations(Plan(turns=5, distractors=1)):
        first, *rest = (turn.text for turn in conversation.turns)
        assert first.count(conversation.keyword) == 1
        assert not any(conversation.keyword in text for text in rest)


@pytest.mark.parametrize(
    "wrong", [{"users": 0}, {"conversations": 0}, {"turns": 2}, {"distractors": -1}, {"max_tokens": 0}]
)
def test_plans_that_make_no_conversation(wrong: dict[str, int]) -> None:
    """They are refused before anything is sent."""
    with pytest.raises(InvalidRequest):
        Plan(**wrong)  # type: ignore[arg-type]


async def test_the_table_is_safe_to_open() -> None:
    """The seed's columns come first; text is one line, cut, and no formula for a spreadsheet."""
    way = Rememberer(lambda number, text: "=HYPERLINK(1)\n," + "x" * 500 if number == 2 else text)
    done = await held(Plan(users=1, conversations=1), way)
    first, second = as_csv(done).strip().split("\n")
    assert first == ",".join(COLUMNS)
    assert first.startswith(
        "api_mode,user_id,conv_id,keyword,http1,http2,http3,state_id_chain_ok,turn2_ok,turn3_ok,continued,"
        "turn2_text,turn3_text,"
    )
    (row,) = csv.reader([second])
    assert row[11].startswith("'=HYPERLINK(1) ,xxx")
    assert len(row[11]) == 201


async def test_figures_and_summary_agree() -> None:
    """The rate with its Wilson interval, the same in the figures and in the summary."""
    way = Rememberer(lambda number, text: "no" if "-9" in text or "-1" in text else text)
    plan = Plan(users=2, conversations=15, seed=5)
    done = await held(plan, way)
    continued = sum(one.continued for one in done)
    assert 0 < continued < 30, "the seed was chosen so that some are lost"
    rate = figures(done, "chat", command="c", file="f")[0]
    assert (rate.value, rate.n, rate.unit, rate.command, rate.file) == (continued / 30, 30, "share", "c", "f")
    assert rate.interval is not None
    assert rate.interval.low < continued / 30 < rate.interval.high
    told = dict(line.split("=", 1) for line in summary(done, plan).splitlines())
    assert told["continuity_rate"] == f"{100 * continued / 30:.2f}%"
    assert (told["conversations"], told["continued"], told["state_id_chain_ok"]) == ("30", str(continued), "30")
    assert (told["api_mode"], told["users"], told["conversations_per_user_target"]) == ("chat", "2", "15")
    assert told["seed"] == "5"


def test_no_conversation_is_no_rate() -> None:
    """Figures of nothing are null and say why."""
    made = figures([], "chat")
    assert [figure.id for figure in made] == ["continuity.chat.rate", "continuity.chat.http_ok"]
    assert all(figure.value is None and figure.why_null for figure in made)
    responses = figures([], "responses")
    assert [figure.id for figure in responses][-1] == "continuity.responses.chains"


async def test_finished_conversations_are_not_held_again() -> None:
    """A journal that has some of them gives those back: the server hears only the rest, and the result is the same."""
    plan = Plan(users=2, conversations=3, seed=9)
    kept = {f"chat-{one.number:03d}": one for one in await held(plan, Rememberer())}
    done = {key: one for key, one in kept.items() if one.number in (1, 2, 5)}
    asked: list[str] = []

    async def step(key: str, work: Callable[[], Awaitable[Held]]) -> Held:
        asked.append(key)
        return done[key] if key in done else await work()

    way = Rememberer()
    again = await held(plan, way, step=step)
    assert sorted(asked) == sorted(kept)
    assert len(way.bodies) == 3 * 3
    assert [one.keyword for one in again] == [one.keyword for one in kept.values()]
    assert as_csv(again).count(",chat") == as_csv(tuple(kept.values())).count(",chat")


async def test_a_step_that_breaks_ends_the_run() -> None:
    """What the journal raises comes out, and no user goes on without it."""

    async def full_disk(key: str, work: Callable[[], Awaitable[Held]]) -> Held:
        raise OSError("no space")

    way = Rememberer()
    with pytest.raises(ExceptionGroup) as caught:
        await held(Plan(users=2, conversations=3), way, step=full_disk)
    assert caught.group_contains(OSError)
    assert not way.bodies


async def test_progress_counts_conversations() -> None:
    """From none to all, one at a time."""
    seen: list[tuple[str, int, int]] = []
    async with LyingServer() as server:
        server.ways["way"] = Rememberer()
        await run(server.target("way"), Plan(users=2, conversations=2), lambda *told: seen.append(told), limits=PATIENT)
    assert [done for _, done, _ in seen] == [0, 1, 2, 3, 4]
    assert all(later - earlier == 1 for earlier, later in pairwise(done for _, done, _ in seen))
    assert {(what, total) for what, _, total in seen} == {("continuity chat", 4)}
    assert continuity.LEAST_TURNS == 3
