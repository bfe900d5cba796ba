"""Conversation continuity: does what the first turn laid down hold in the turns that follow?

A keyword is set in turn 1, asked for in turn 2, and to be used in a sentence in turn 3. A conversation is *continued*
when all turns gave 2xx, the keyword stands in every answer from turn 2 on, and (responses) every turn had an id to go
on from. Users talk in parallel, each holding one conversation after the other.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

from sekisho.core.errors import InvalidRequest
from sekisho.evaluate.behaviour.keywords import Shape, keyword
from sekisho.evaluate.client.answer import Answer
from sekisho.evaluate.client.asking import Question, ask
from sekisho.evaluate.client.exchange import Connections, Limits
from sekisho.evaluate.client.target import Target
from sekisho.evaluate.progress import Progress, silent

Mode = Literal["chat", "responses"]
Language = Literal["ja", "en"]
LEAST_TURNS = 3
MAX_TOKENS = 64
TURN_LIMITS = Limits(silence_s=120.0, total_s=120.0)

SET: dict[Language, str] = {
    "ja": "今回のキーワードは「{keyword}」です。キーワードだけを答えてください。",
    "en": 'The keyword is "{keyword}". Reply with the keyword only.',
}
AGAIN: dict[Language, str] = {"ja": "もう一度キーワードだけ答えてください。", "en": "Now give me only the keyword."}
SENTENCE: dict[Language, str] = {
    "ja": "キーワードを使った短い文を一つ書いてください。",
    "en": "Write one short sentence with the keyword.",
}
DISTRACTORS: dict[Language, tuple[str, ...]] = {
    "ja": ("3 + 4 は？", "果物の名前を三つ言って。", "1 から 5 まで数えてください。", "ありがとう。"),
    "en": ("What is 3 + 4?", "List three fruits.", "Count from 1 to 5.", "Thank you."),
}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`conversations`: of each user. `turns`: those about the keyword; `distractors`: turns about something else before
    each of them but the first. `language` None: Japanese and English by turns. `seed` chooses the keywords.

    Raises InvalidRequest for numbers that make no conversation.
    """

    mode: Mode = "chat"
    users: int = 2
    conversations: int = 15
    turns: int = LEAST_TURNS
    distractors: int = 0
    shape: Shape = "ascii"
    language: Language | None = None
    seed: int = 0
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        if self.users < 1 or self.conversations < 1:
            raise InvalidRequest("at least one user and one conversation", param="users")
        if self.turns < LEAST_TURNS:
            raise InvalidRequest(f"a conversation has at least {LEAST_TURNS} turns", param="turns")
        if self.distractors < 0 or self.max_tokens < 1:
            raise InvalidRequest("no less than 0 distractors and 1 token", param="distractors")


class Turn(msgspec.Struct, frozen=True):
    """`keeps`: the answer must hold the keyword."""

    text: str
    keeps: bool
    is_distractor: bool = False


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    mode: Mode
    user: int
    number: int
    keyword: str
    language: Language
    turns: tuple[Turn, ...]
    max_tokens: int

    @property
    def id(self) -> str:
        return f"{self.mode}-{self.number:03d}"


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """A turn and what came back. `status` None: no answer, or not sent because there was nothing to go on from."""

    turn: Turn
    status: int | None = None
    text: str = ""
    id: str | None = None
    faults: tuple[str, ...] = ()
    ms: float | None = None

    @property
    def sent(self) -> bool:
        return self.ms is not None

    @property
    def went_well(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation as it went."""

    mode: Mode
    user: int
    number: int
    keyword: str
    language: Language
    spoken: tuple[Spoken, ...]

    @property
    def main(self) -> tuple[Spoken, ...]:
        """The turns about the keyword."""
        return tuple(spoken for spoken in self.spoken if not spoken.turn.is_distractor)

    @property
    def chained(self) -> bool:
        """Every turn had an id; a chat needs none."""
        return self.mode == "chat" or all(spoken.id for spoken in self.spoken)

    def kept(self, spoken: Spoken) -> bool:
        return self.keyword in spoken.text

    @property
    def continued(self) -> bool:
        return (
            all(spoken.went_well for spoken in self.spoken)
            and self.chained
            and all(self.kept(spoken) for spoken in self.spoken if spoken.turn.keeps)
        )


Step = Callable[[str, Callable[[], Awaitable[Held]]], Awaitable[Held]]
"""`(key, work)`: does the work, or gives what it gave before. The evaluation's journal is one."""


async def at_once(key: str, work: Callable[[], Awaitable[Held]]) -> Held:
    return await work()


def conversations(plan: Plan) -> tuple[Conversation, ...]:
    """All of a plan, numbered from 1; each user has a block of numbers. The same plan gives the same ones."""
    chance = random.Random(f"continuity {plan.seed} {plan.shape}")
    made = []
    for number in range(1, plan.users * plan.conversations + 1):
        language: Language = plan.language or ("ja" if number % 2 else "en")
        word = keyword(chance, plan.shape, number)
        user = (number - 1) // plan.conversations + 1
        turns = _turns(plan, language, word, chance)
        made.append(
            Conversation(
                mode=plan.mode,
                user=user,
                number=number,
                keyword=word,
                language=language,
                turns=turns,
                max_tokens=plan.max_tokens,
            )
        )
    return tuple(made)


def _turns(plan: Plan, language: Language, word: str, chance: random.Random) -> tuple[Turn, ...]:
    turns = [Turn(SET[language].format(keyword=word), keeps=False)]
    for index in range(1, plan.turns):
        turns += [
            Turn(chance.choice(DISTRACTORS[language]), keeps=False, is_distractor=True) for _ in range(plan.distractors)
        ]
        turns.append(Turn((AGAIN if index % 2 else SENTENCE)[language], keeps=True))
    return tuple(turns)


async def run(
    target: Target,
    plan: Plan,
    progress: Progress = silent,
    *,
    limits: Limits = TURN_LIMITS,
    step: Step = at_once,
) -> tuple[Held, ...]:
    """Holds all conversations of a plan, in the order of their numbers. Raises only what `step` raises."""
    planned = conversations(plan)
    done = 0

    async def user(connections: Connections, number: int) -> list[Held]:
        nonlocal done
        held = []
        for conversation in planned:
            if conversation.user == number:
                held.append(await step(conversation.id, _Work(connections, conversation)))
                done += 1
                progress(f"continuity {plan.mode}", done, len(planned))
        return held

    progress(f"continuity {plan.mode}", 0, len(planned))
    async with Connections(target, limits) as connections, asyncio.TaskGroup() as group:
        tasks = [group.create_task(user(connections, number)) for number in range(1, plan.users + 1)]
    return tuple(held for task in tasks for held in task.result())


class _Work:
    def __init__(self, connections: Connections, conversation: Conversation) -> None:
        self._connections = connections
        self._conversation = conversation

    async def __call__(self) -> Held:
        return await converse(self._connections, self._conversation)


async def converse(connections: Connections, conversation: Conversation) -> Held:
    """Holds one conversation. It ends early where a turn fails or gives no id to go on from."""
    spoken: list[Spoken] = []
    history: list[tuple[str, str]] = []
    previous: str | None = None
    for index, turn in enumerate(conversation.turns):
        if spoken and not _can_go_on(conversation.mode, spoken[-1]):
            spoken += [Spoken(turn=rest) for rest in conversation.turns[index:]]
            break
        history.append(("user", turn.text))
        said = tuple(history) if conversation.mode == "chat" else (("user", turn.text),)
        question = Question(api=conversation.mode, said=said, max_tokens=conversation.max_tokens, previous=previous)
        answer = await ask(connections, question)
        history.append(("assistant", answer.text))
        previous = answer.id
        spoken.append(_spoken(turn, answer))
    return Held(
        mode=conversation.mode,
        user=conversation.user,
        number=conversation.number,
        keyword=conversation.keyword,
        language=conversation.language,
        spoken=tuple(spoken),
    )


def _can_go_on(mode: Mode, last: Spoken) -> bool:
    return last.went_well and (mode == "chat" or bool(last.id))


def _spoken(turn: Turn, answer: Answer) -> Spoken:
    return Spoken(
        turn=turn,
        status=answer.status,
        text=answer.text,
        id=answer.id,
        faults=tuple(fault.kind for fault in answer.faults),
        ms=answer.total_ms,
    )
