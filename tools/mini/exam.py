"""The questions of the measurement, fresh by seed: keywords, sums and phrasings that training never shows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mini import filler
from mini.conversation import Language, Message
from mini.corpus import held_questions
from mini.facts import facts
from mini.keywords import draw, split_of
from mini.recall import AGAIN_BARE, ONLY, SENTENCE, SET, thread
from mini.skills import SUMS, Sum, a_sum, echo, talks, too_much

# The wording of the team evaluation's continuity check; the Japanese lines are fixed by its specification.
CHECK: dict[Language, tuple[str, str, str]] = {
    "ja": (
        "この会話の合言葉は「{k}」です。合言葉だけを1語で返してください。",
        "もう一度、同じ合言葉だけを返してください。",
        "合言葉を含む短い日本語文を1文だけ返してください。",
    ),
    "en": (
        'The keyword of this conversation is "{k}". Return only the keyword in one word.',
        "Once more, return only the same keyword.",
        "Return one short English sentence that contains the keyword.",
    ),
}
UNSEEN: dict[Language, tuple[tuple[str, str, str], ...]] = {
    "ja": (
        (
            "これから使う合言葉をお知らせします。「{k}」です。いったん合言葉だけ復唱してください。",
            "確認のため、いまの合言葉をもう一度だけお願いします。",
            "では、その合言葉が出てくる短い文を一つください。",
        ),
        (
            "「{k}」、これが今日のキーワードです。キーワードだけ書いてください。",
            "先ほどのキーワードだけを、再度書いてください。",
            "キーワードを入れた短文を一つだけ書いてください。",
        ),
        (
            "秘密の言葉を決めました。{k} です。秘密の言葉だけ言ってみて。",
            "もう一度その秘密の言葉だけ言って。",
            "その秘密の言葉を使って文を作ってみて。",
        ),
    ),
    "en": (
        (
            'I have chosen a keyword for us, "{k}". For now, just give the keyword back.',
            "To be sure, please state that same keyword once again.",
            "And now form a brief sentence in which the keyword appears.",
        ),
        (
            "{k} is our password today. Write the password only.",
            "Write only that password a second time.",
            "Write a single brief sentence with that password in it.",
        ),
        (
            "You should know the code word: '{k}'. Reply just with the code word.",
            "Could you reply with the code word again?",
            "Finally, a short sentence that has the code word, please.",
        ),
    ),
}


@dataclass(frozen=True)
class Question:
    """Messages to send and what makes the answer right."""

    messages: tuple[Message, ...]
    right: Callable[[str], bool]


@dataclass(frozen=True)
class Talk:
    """A conversation asked turn by turn; right when the keyword is in every reply from the second on."""

    system: str
    turns: tuple[str, ...]
    keyword: str


def check(rng: random.Random, language: Language) -> Talk:
    """The continuity check in its own words."""
    keyword = draw(rng, language, "measure")
    return Talk("", tuple(turn.format(k=keyword) for turn in CHECK[language]), keyword)


def evaluation(rng: random.Random, language: Language) -> Talk:
    """The check exactly as the team evaluation runs it, numbers of the measuring split: KEY-nnn-AOIRINGO."""
    while split_of(keyword := f"KEY-{rng.randrange(1000):03d}-AOIRINGO") != "measure":
        pass
    return Talk("", tuple(turn.format(k=keyword) for turn in CHECK[language]), keyword)


def trained_words(rng: random.Random, language: Language, system: str = "") -> Talk:
    """Words of the training templates, in a fresh combination with a fresh keyword."""
    made = thread(rng, language, "measure")
    first = made.fill(rng.choice(SET[language]), made.quoted(rng)), made.fill(rng.choice(ONLY[language]))
    return Talk(
        system,
        (
            ("" if language == "ja" else " ").join(first),
            made.fill(rng.choice(AGAIN_BARE[language])),
            made.fill(rng.choice(SENTENCE[language])),
        ),
        made.keyword,
    )


def fresh(rng: random.Random, language: Language) -> Talk:
    """One of the 60 conversations of the requirement: the check's own words or the templates', by turns."""
    return check(rng, language) if rng.random() < 0.5 else trained_words(rng, language)


def with_system(rng: random.Random, language: Language) -> Talk:
    return trained_words(rng, language, filler.system(rng, language))


def unseen_words(rng: random.Random, language: Language) -> Talk:
    """Phrasings that are in no template."""
    keyword = draw(rng, language, "measure")
    return Talk("", tuple(turn.format(k=keyword) for turn in rng.choice(UNSEEN[language])), keyword)


def _one(question: str, right: Callable[[str], bool]) -> Question:
    return Question((Message("user", question),), right)


def _equal(answer: str) -> Callable[[str], bool]:
    return lambda text: text.strip() == answer


def facts_unseen(rng: random.Random, language: Language) -> list[Question]:
    return [_one(question, _equal(answer)) for question, answer in held_questions(language)]


def greetings_unseen(rng: random.Random, language: Language) -> list[Question]:
    return [_one(talk.held, _equal(talk.answer)) for talk in talks(language)]


def sums_unseen(rng: random.Random, language: Language, signs: str, count: int = 60) -> list[Question]:
    """Sums of the measuring split; × has no such split, its 81 cases are all trained."""
    made: list[Question] = []
    while len(made) < count:
        one = a_sum(rng, "train" if signs == "×" else "measure")
        if one.sign in signs:
            question = rng.choice(SUMS[language]).format(e=one.spelled(rng, language))
            made.append(_one(question, _equal(one.answer)))
    return made


def sums_of_digits(rng: random.Random, language: Language, count: int = 60) -> list[Question]:
    """Plus and minus of single digits; all of these are trained."""
    made: list[Question] = []
    while len(made) < count:
        left, right = sorted((rng.randrange(10), rng.randrange(10)), reverse=True)
        one = Sum(left, rng.choice("+-"), right)
        question = rng.choice(SUMS[language]).format(e=one.spelled(rng, language))
        made.append(_one(question, _equal(one.answer)))
    return made


def facts_trained(rng: random.Random, language: Language) -> list[Question]:
    """Every fact in one of its training phrasings."""
    return [_one(rng.choice(fact.questions), _equal(fact.answer)) for fact in facts(language)]


def echoes_unseen(rng: random.Random, language: Language, count: int = 40) -> list[Question]:
    made = []
    while len(made) < count:
        question, answer = echo(rng, language, "measure")
        made.append(_one(question, _equal(answer)))
    return made


def beyond_unseen(rng: random.Random, language: Language, count: int = 40) -> list[Question]:
    made = []
    while len(made) < count:
        question, answer = too_much(rng, language, held=True)
        made.append(_one(question, _equal(answer)))
    return made
