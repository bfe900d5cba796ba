"""The data generator of sekisho-mini: seeded, honest about its splits, and teaching what it should."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from mini import corpus, exam, facts, keywords, recall, skills  # noqa: E402
from mini.conversation import LANGUAGES, Conversation, Language  # noqa: E402

SAMPLE = 1500


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return list(islice(corpus.stream(seed=5, longest=1200), SAMPLE))


def test_same_seed_same_data(conversations: list[Conversation]) -> None:
    """A conversation depends on the seed and its number alone, so training can resume anywhere in the stream."""
    assert list(islice(corpus.stream(5, 1200, first=700), 50)) == conversations[700:750]
    assert list(islice(corpus.stream(6, 1200), 50)) != conversations[:50]


def test_both_languages_and_every_skill(conversations: list[Conversation]) -> None:
    """Japanese and English have about equal shares, and no skill is missing from either."""
    japanese = [made for made in conversations if made.language == "ja"]
    assert 0.4 < len(japanese) / SAMPLE < 0.6
    wanted = {"recall", "facts", "arithmetic", "small talk", "echo", "list", "counting", "too much", "persona", "long"}
    for language in LANGUAGES:
        assert {made.kind for made in conversations if made.language == language} == wanted


def test_turns_alternate_and_end_with_the_assistant(conversations: list[Conversation]) -> None:
    """At most one system message, first; then user and assistant by turns; nothing empty."""
    for made in conversations:
        roles = [message.role for message in made.messages]
        spoken = roles[1:] if roles[0] == "system" else roles
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)
        assert all(message.text.strip() for message in made.messages)


@pytest.mark.parametrize("language", LANGUAGES)
def test_keyword_of_turn_one_is_in_turns_two_and_three(language: Language) -> None:
    """In a three-turn recall without asides, both later answers hold the keyword of the first message."""
    rng = random.Random(3)
    for _ in range(300):
        thread = recall.thread(rng, language, "train")
        told, *_ = recall.first_turn(rng, thread)
        second, third = recall.again(rng, thread)[-1], recall.in_sentence(rng, thread)[-1]
        assert thread.keyword in told.text
        assert thread.keyword in second.text
        assert thread.keyword in third.text
        assert "{" not in told.text.replace(thread.keyword, "")


def test_a_keyword_is_for_training_or_for_measuring() -> None:
    """Train and measure keywords never meet: the hash of the keyword alone decides, in every shape."""
    rng = random.Random(4)
    drawn = {
        split: {keywords.draw(rng, language, split) for language in LANGUAGES for _ in range(1500)}
        for split in ("train", "measure")
    }
    assert drawn["train"].isdisjoint(drawn["measure"])
    assert {keywords.split_of(word) for word in drawn["measure"]} == {"measure"}


def test_measured_keywords_are_new_to_the_model(conversations: list[Conversation]) -> None:
    """No code or number that the exam draws stands in a training conversation (plain words may, as words)."""
    rng = random.Random(8)
    seen = "\n".join(message.text for made in conversations for message in made.messages)
    for language in LANGUAGES:
        for _ in range(200):
            keyword = exam.fresh(rng, language).keyword
            assert keywords.split_of(keyword) == "measure"
            assert keyword.isalpha() or len(keyword) < 6 or keyword not in seen


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_phrasings_are_not_trained(language: Language) -> None:
    """The question kept for measuring is none of the training questions of any fact, and no two facts share one."""
    trained = {question for fact in facts.facts(language) for question in fact.questions}
    held = [fact.held for fact in facts.facts(language)]
    assert trained.isdisjoint(held)
    assert len(set(held)) == len(held) >= 60
    for talk in skills.talks(language):
        assert talk.held not in talk.questions


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_question_has_one_answer(language: Language) -> None:
    """No training question of facts.toml leads to two answers."""
    answers: dict[str, str] = {}
    for fact in facts.facts(language):
        for question in fact.questions:
            assert answers.setdefault(question.casefold(), fact.answer) == fact.answer


def test_sums_are_right_and_held_sums_are_not_trained() -> None:
    """The answer states the exercise and its true result; sums of the measuring split are never trained."""
    rng = random.Random(9)
    for _ in range(2000):
        made = skills.a_sum(rng, "train")
        assert made.split == "train"
        left, sign, right, equals, result = made.answer.split(" ")
        assert equals == "="
        assert int(result) == {"+": int.__add__, "-": int.__sub__, "×": int.__mul__}[sign](int(left), int(right))
    assert skills.a_sum(rng, "measure").split == "measure"


def test_the_check_of_the_team_evaluation_is_asked_word_for_word() -> None:
    """The exam contains the evaluation's own three lines, with nothing added."""
    talk = exam.check(random.Random(1), "ja")
    assert talk.turns == (
        f"この会話の合言葉は「{talk.keyword}」です。合言葉だけを1語で返してください。",
        "もう一度、同じ合言葉だけを返してください。",
        "合言葉を含む短い日本語文を1文だけ返してください。",
    )


def test_the_generator_needs_no_torch() -> None:
    """Data and exam load with the standard library alone."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import mini.corpus, mini.exam; "
        "print({'torch', 'numpy', 'tokenizers'} & set(sys.modules))"
    )
    made = subprocess.run([sys.executable, "-c", code, str(TOOLS)], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "set()"
