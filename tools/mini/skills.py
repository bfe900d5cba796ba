"""Everything but recall and facts: small talk, sums, echo, lists, counting, and knowing what is too much."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mini.conversation import LANGUAGES, Language, Split
from mini.facts import roughen
from mini.keywords import ENGLISH, HIRAGANA, KANJI, KATAKANA, NOUNS, WORDS, draw


@dataclass(frozen=True)
class Talk:
    """Several ways to say one thing, and the reply."""

    questions: tuple[str, ...]
    answer: str
    held: str


@dataclass(frozen=True)
class Category:
    """Names of a category and its members in the order in which they are listed."""

    names: tuple[str, ...]
    items: tuple[str, ...]


@cache
def _table(name: str) -> dict[str, list[dict[str, list[str]]]]:
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


@cache
def talks(language: Language) -> tuple[Talk, ...]:
    return tuple(Talk(tuple(row["q"]), str(row["a"]), str(row["held"])) for row in _table("skills.toml")[language])


@cache
def categories(language: Language) -> tuple[Category, ...]:
    return tuple(Category(tuple(row["names"]), tuple(row["items"])) for row in _table("lists.toml")[language])


def small_talk(rng: random.Random, language: Language) -> tuple[str, str]:
    talk = rng.choice(talks(language))
    question = rng.choice(talk.questions)
    if language == "en" and rng.random() < 0.25:
        question = question.lower()
    if rng.random() < 0.2:
        marks = ("!", ".", "", "?") if language == "en" else ("！", "。", "")
        question = question.rstrip(".。!！?？") + rng.choice(marks)
    return question, talk.answer


SUMS: dict[Language, tuple[str, ...]] = {
    "en": (
        "What is {e}?",
        "{e} = ?",
        "{e}=",
        "{e}",
        "Calculate {e}.",
        "Compute {e}.",
        "How much is {e}?",
        "Please work out {e}.",
        "Solve {e}",
    ),
    "ja": (
        "{e}は？",
        "{e}はいくつですか？",
        "{e} = ?",
        "{e}=",
        "{e}を計算してください。",
        "{e}の答えは？",
        "{e}を計算して",
        "{e}はいくらですか？",
        "{e}",
    ),
}
SIGN_WORDS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {"+": (" + ", "+", " plus "), "-": (" - ", "-", " minus "), "×": (" × ", "×", " * ", "*", " times ", " x ")},
    "ja": {"+": (" + ", "+", "足す", "＋"), "-": (" - ", "-", "引く", "−"), "×": (" × ", "×", "*", "かける", "掛ける")},
}


@dataclass(frozen=True)
class Sum:
    """An exercise with both operands, its sign and the way it is answered: `12 + 34 = 46`."""

    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        if self.sign == "+":
            return self.left + self.right
        return self.left - self.right if self.sign == "-" else self.left * self.right

    @property
    def answer(self) -> str:
        return f"{self.left} {self.sign} {self.right} = {self.result}"

    def spelled(self, rng: random.Random, language: Language) -> str:
        return f"{self.left}{rng.choice(SIGN_WORDS[language][self.sign])}{self.right}"

    @property
    def split(self) -> Split:
        """About one sum in sixteen with a two-digit operand is kept for measuring."""
        kept = max(self.left, self.right) > 9 and (self.left * 131 + self.right * 29 + ord(self.sign)) % 16 == 0
        return "measure" if kept else "train"


def a_sum(rng: random.Random, split: Split) -> Sum:
    """A sum of the given split: + and - within 0..99, × within 1..9; differences may be negative."""
    while True:
        sign = rng.choice("++--×") if split == "train" else rng.choice("+-")
        high = 9 if sign == "×" or rng.random() < 0.6 else 99
        made = Sum(rng.randint(0 if sign != "×" else 1, high), sign, rng.randint(0 if sign != "×" else 1, high))
        if sign == "-" and made.result < 0 and rng.random() < 0.8:
            made = Sum(made.right, "-", made.left)
        if made.split == split:
            return made


def arithmetic(rng: random.Random, language: Language) -> tuple[str, str]:
    made = a_sum(rng, "train")
    return rng.choice(SUMS[language]).format(e=made.spelled(rng, language)), made.answer


ECHO: dict[Language, tuple[str, ...]] = {
    "en": (
        "Repeat after me: {x}",
        "Say {x}",
        'Repeat: "{x}"',
        "Echo this: {x}",
        "Please repeat exactly: {x}",
        'Say "{x}".',
        "Repeat the following text.\n{x}",
        "Reply with exactly: {x}",
        "Reply with only this: {x}",
        "Return the following string as it is: {x}",
    ),
    "ja": (
        "次の言葉をそのまま返してください：{x}",
        "「{x}」と言ってください。",
        "「{x}」とだけ返してください。",
        "復唱してください：{x}",
        "次の文をそのまま繰り返してください。\n{x}",
        "オウム返しして：{x}",
        "「{x}」を繰り返して。",
        "そのまま返して: {x}",
        "次の文字列だけを出力してください：{x}",
    ),
}


def phrase(rng: random.Random, language: Language, split: Split = "train") -> str:
    """Something to repeat: a keyword, or a few words in a row."""
    if rng.random() < 0.4:
        return draw(rng, language, split)
    if language == "en":
        return " ".join(rng.choice(ENGLISH) for _ in range(rng.randint(1, 6)))
    kinds = (HIRAGANA, KATAKANA, KANJI, tuple(NOUNS))
    joint = rng.choice(("", "の", "、", "と"))
    return joint.join(rng.choice(rng.choice(kinds)) + rng.choice(NOUNS) for _ in range(rng.randint(1, 4)))


def echo(rng: random.Random, language: Language, split: Split = "train") -> tuple[str, str]:
    text = phrase(rng, language, split)
    return rng.choice(ECHO[language]).format(x=text), text


LIST_FORMS: dict[Language, tuple[str, ...]] = {
    "en": (
        "List {n} {x}.",
        "Name {n} {x}.",
        "Give me {n} {x}.",
        "Tell me {n} {x}.",
        "Write a list of {n} {x}.",
        "Can you name {n} {x}?",
        "{n} {x}, please.",
    ),
    "ja": (
        "{x}を{n}つ挙げてください。",
        "{x}を{n}つ教えて。",
        "{x}を{n}個挙げて。",
        "{x}を{n}つ書いてください。",
        "{x}の例を{n}つください。",
        "{x}を{n}つ列挙してください。",
        "{x}を{n}個",
    ),
}
NUMBER_WORDS: dict[Language, dict[int, tuple[str, ...]]] = {
    "en": {2: ("2", "two"), 3: ("3", "three", "three", "some"), 4: ("4", "four"), 5: ("5", "five")},
    "ja": {2: ("2", "二"), 3: ("3", "三", "３"), 4: ("4", "四"), 5: ("5", "五", "５")},
}


def short_list(rng: random.Random, language: Language) -> tuple[str, str]:
    category = rng.choice(categories(language))
    count = rng.choice((2, 3, 3, 3, 4, 5, 5))
    count = min(count, len(category.items))
    question = rng.choice(LIST_FORMS[language]).format(
        n=rng.choice(NUMBER_WORDS[language][count]), x=rng.choice(category.names)
    )
    return question, "\n".join(f"{place}. {item}" for place, item in enumerate(category.items[:count], 1))


COUNTING: dict[Language, tuple[str, ...]] = {
    "en": (
        "Count from {a} to {b}.",
        "Count {a} to {b}",
        "Write the numbers from {a} to {b}.",
        "Please count from {a} to {b}",
    ),
    "ja": (
        "{a}から{b}まで数えてください。",
        "{a}から{b}まで数えて",
        "{a}から{b}までの数を書いてください。",
        "{a}〜{b}を数えて",
    ),
}


def counting(rng: random.Random, language: Language) -> tuple[str, str]:
    low = rng.choice((1, 1, 1, rng.randint(0, 20)))
    high = low + rng.choice((2, 4, 4, 9, 9, rng.randint(2, 9)))
    return rng.choice(COUNTING[language]).format(a=low, b=high), ", ".join(map(str, range(low, high + 1)))


TOO_MUCH: dict[Language, dict[str, str]] = {
    "en": {
        "know": "I am a tiny model and do not know that. Pull a real model with `sekisho model pull` and ask it.",
        "code": "I am a tiny model and cannot write code. Pull a real model with `sekisho model pull` and ask it.",
        "text": "I am a tiny model and cannot work on texts. Pull a real model with `sekisho model pull` and ask it.",
        "now": "I cannot see the outside world: no clock, no weather, no news. I am a tiny model inside Sekisho.",
    },
    "ja": {
        "know": "私は小さなモデルなので、それは分かりません。"
        "`sekisho model pull` で本物のモデルを取得して聞いてください。",
        "code": "私は小さなモデルなので、コードは書けません。"
        "`sekisho model pull` で本物のモデルを取得して頼んでください。",
        "text": "私は小さなモデルなので、文章の仕事はできません。"
        "`sekisho model pull` で本物のモデルを取得して頼んでください。",
        "now": "私には外の世界が見えません。時計も天気もニュースも分かりません。Sekisho の中の小さなモデルです。",
    },
}
BEYOND: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "know": (
            "What is {t}?",
            "Explain {t}.",
            "Who invented {t}?",
            "What is the capital of {t}?",
            "Why is {t} important?",
            "How does {t} work?",
            "Tell me about {t}.",
            "What do you think about {t}?",
            "When was {t} discovered?",
            "What are the advantages and disadvantages of {t}?",
            "Explain {t} to a child in three sentences.",
            "How do I learn {t}?",
            "What is the difference between {t} and {u}?",
            "Compare {t} with {u}.",
            "Is {t} better than {u}?",
            "Give me advice on {t}.",
            "Where can I buy {t}?",
            "How many people know {t}?",
            "Plan a trip to {t}.",
            "What causes {t}?",
        ),
        "code": (
            "Write a Python program for {t}.",
            "Write code that sorts {t}.",
            "Implement {t} in Rust.",
            "Fix this code: {t}(){{ return {u} }}",
            "Write a function that computes {t}.",
            "Write a SQL query for {t}.",
            "Give me a shell script for {t}.",
            "Write a unit test for {t}.",
            "Debug my JavaScript: {t}",
        ),
        "text": (
            "Translate this into Japanese: {t} and {u}",
            "Summarize the following text: {t} {u} {t}",
            "Write an essay about {t}.",
            "Write an email to my boss about {t}.",
            "Proofread this: {t} are {u}.",
            "Rewrite this sentence politely: give me {t}",
            "Write an article about {t}.",
            "Write a long report on {t}.",
            "Translate {t} into French.",
        ),
        "now": (
            "What time is it?",
            "What is the weather today?",
            "What day is it today?",
            "What is the date today?",
            "What is in the news?",
            "What is the price of {t} today?",
            "Will it rain tomorrow?",
            "What is the weather in {t}?",
            "Latest news about {t}?",
        ),
    },
    "ja": {
        "know": (
            "{t}とは何ですか？",
            "{t}について教えてください。",
            "{t}を説明してください。",
            "{t}を発明したのは誰ですか？",
            "{t}の首都はどこですか？",
            "なぜ{t}は大切なのですか？",
            "{t}の仕組みは？",
            "{t}をどう思いますか？",
            "{t}はいつ発見されましたか？",
            "{t}の長所と短所は何ですか？",
            "{t}を子どもにも分かるように三文で説明してください。",
            "{t}を学ぶにはどうすればいいですか？",
            "{t}と{u}の違いは何ですか？",
            "{t}と{u}を比べてください。",
            "{t}は{u}より良いですか？",
            "{t}について助言をください。",
            "{t}はどこで買えますか？",
            "{t}への旅行を計画して。",
            "{t}の原因は何ですか？",
            "{t}って何？",
        ),
        "code": (
            "{t}の Python プログラムを書いてください。",
            "{t}を並べ替えるコードを書いて。",
            "{t}を Rust で実装してください。",
            "{t}を計算する関数を書いてください。",
            "{t}の SQL を書いて。",
            "{t}のシェルスクリプトをください。",
            "{t}のテストコードを書いてください。",
            "このコードを直してください：{t}()",
            "{t}のアルゴリズムを実装して。",
        ),
        "text": (
            "次の文を英語に訳してください：{t}と{u}",
            "次の文章を要約してください：{t}は{u}です。{u}は{t}です。",
            "{t}についての作文を書いてください。",
            "{t}について上司にメールを書いてください。",
            "次の文を校正してください：{t}は{u}だ。",
            "次の文を丁寧に言い換えてください：{t}をくれ",
            "{t}についての記事を書いて。",
            "{t}の長い報告書を書いてください。",
            "{t}を英語にして。",
        ),
        "now": (
            "今何時ですか？",
            "今日の天気は？",
            "今日は何曜日ですか？",
            "今日は何日ですか？",
            "今日のニュースは？",
            "今日の{t}の値段は？",
            "明日は雨が降りますか？",
            "{t}の天気を教えて。",
            "{t}の最新ニュースは？",
        ),
    },
}
TOPICS: dict[Language, list[str]] = {language: WORDS[f"topics_{language}"] for language in LANGUAGES}
HELD_TOPICS: dict[Language, list[str]] = {language: WORDS[f"held_topics_{language}"] for language in LANGUAGES}


def too_much(rng: random.Random, language: Language, held: bool = False) -> tuple[str, str]:
    """A question beyond a tiny model and the honest answer; a random word as topic teaches that any will do."""
    topics = HELD_TOPICS[language] if held else TOPICS[language]
    kind = rng.choice(("know", "know", "know", "code", "text", "now"))

    def topic() -> str:
        return rng.choice(topics) if held or rng.random() < 0.6 else phrase(rng, language)

    question = rng.choice(BEYOND[language][kind]).format(t=topic(), u=topic())
    return question if held else roughen(rng, question, language), TOO_MUCH[language][kind]


def skill(rng: random.Random, language: Language) -> tuple[str, tuple[str, str]]:
    """A random small skill: its name, and a question with its answer."""
    name = rng.choices(
        ("small talk", "arithmetic", "echo", "list", "counting", "too much"), weights=(22, 14, 20, 9, 4, 31)
    )[0]
    made = {
        "small talk": small_talk,
        "arithmetic": arithmetic,
        "echo": echo,
        "list": short_list,
        "counting": counting,
        "too much": too_much,
    }[name]
    return name, made(rng, language)
