"""Three-turn keyword recall: set a keyword, ask for it again, ask for a sentence with it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from mini import filler
from mini.conversation import Conversation, Language, Message, Split, exchange
from mini.facts import ask
from mini.keywords import draw
from mini.skills import skill

NOUNS: dict[Language, tuple[str, ...]] = {
    "ja": (
        "合言葉",
        "合言葉",
        "合言葉",
        "キーワード",
        "パスフレーズ",
        "コードネーム",
        "秘密の言葉",
        "暗号",
        "合図の言葉",
        "符号",
    ),
    "en": (
        "keyword",
        "keyword",
        "password",
        "passphrase",
        "code word",
        "secret word",
        "codename",
        "magic word",
        "code",
        "token",
    ),
}
QUOTES: dict[Language, tuple[str, ...]] = {
    "ja": ("「{k}」", "「{k}」", "「{k}」", "『{k}』", '"{k}"', "“{k}”", "'{k}'", "`{k}`", "{k}", " {k} "),
    "en": ('"{k}"', '"{k}"', '"{k}"', "'{k}'", "“{k}”", "`{k}`", "{k}", "{k}", "「{k}」", "**{k}**"),
}
SET: dict[Language, tuple[str, ...]] = {
    "ja": (
        "この会話の{n}は{q}です。",
        "この会話の{n}は{q}です。",
        "この会話では{n}を{q}にしてください。",
        "{n}は{q}です。",
        "今回の{n}：{q}。",
        "{n}を{q}に決めます。",
        "{q}を{n}として覚えてください。",
        "これから{n}を{q}とします。",
        "次の{n}を覚えておいてください：{q}。",
        "私たちの{n}は{q}だよ。",
        "{n}: {q}。",
        "{n}は{q}、いいですね。",
        "今日の{n}を伝えます。{q}です。",
        "{q}という{n}を使います。",
    ),
    "en": (
        "The {n} of this conversation is {q}.",
        "The {n} for this conversation is {q}.",
        "In this conversation the {n} is {q}.",
        "The {n} is {q}.",
        "Our {n} is {q}.",
        "Remember the {n} {q}.",
        "Please remember this {n}: {q}.",
        "Let the {n} be {q}.",
        "I give you a {n}: {q}.",
        "{n}: {q}.",
        "Use {q} as the {n} in this chat.",
        "Today's {n} is {q}, okay?",
        "From now on the {n} is {q}.",
        "My {n} is {q}.",
    ),
}
ONLY: dict[Language, tuple[str, ...]] = {
    "ja": (
        "{n}だけを1語で返してください。",
        "{n}だけを1語で返してください。",
        "{n}だけ返して。",
        "{n}のみ答えてください。",
        "その{n}だけを出力してください。",
        "ほかには何も書かず、{n}だけを返してください。",
        "{n}だけを答えてください。",
        "{n}を一言で返してください。",
        "{n}をそのまま返してください。",
        "それだけを返してください。",
    ),
    "en": (
        "Reply with the {n} only.",
        "Return only the {n}.",
        "Return only the {n} in one word.",
        "Answer with just the {n}.",
        "Say only the {n}.",
        "Reply with only the {n} and nothing else.",
        "Output the {n} and nothing more.",
        "Give back the {n} alone.",
        "Respond only with the {n}.",
        "Repeat it, nothing else.",
    ),
}
OKAY: dict[Language, tuple[str, ...]] = {
    "ja": (
        "理解したらOKだけ返してください。",
        "分かったらOKと返事して。",
        "OKとだけ答えてください。",
        "了解したら「OK」とだけ返してください。",
        "覚えたらOKと言ってください。",
    ),
    "en": (
        "Reply OK if you understand.",
        "Just say OK.",
        "Answer with OK only.",
        "If you have it, reply OK.",
        'Respond "OK" and nothing else.',
    ),
}
KEEP: dict[Language, tuple[str, ...]] = {
    "ja": (
        "",
        "",
        "覚えてください。",
        "忘れないでください。",
        "覚えておいて。",
        "あとで聞きます。",
        "よろしくお願いします。",
        "覚えましたか？",
    ),
    "en": (
        "",
        "",
        "Remember it.",
        "Do not forget it.",
        "Keep it in mind.",
        "I will ask for it later.",
        "Please memorize it.",
        "Got it?",
    ),
}
KEPT: dict[Language, str] = {
    "ja": "はい、{n}「{k}」を覚えました。",
    "en": 'Yes, I remember the {n} "{k}".',
}
AGAIN_BARE: dict[Language, tuple[str, ...]] = {
    "ja": (
        "もう一度、同じ{n}だけを返してください。",
        "もう一度、同じ{n}だけを返してください。",
        "先ほどの{n}を1語で答えてください。",
        "さっきの{n}だけ返して。",
        "{n}だけをもう一度。",
        "もう一度言ってください。",
        "もう一度{n}だけ答えてください。",
        "{n}をもう一回だけ返してください。",
        "同じ{n}を返して。",
        "{n}のみもう一度出力してください。",
        "では、{n}だけを1語で返してください。",
        "もう一回。",
    ),
    "en": (
        "Once more, return only the same {n}.",
        "Again, reply with the same {n} only.",
        "Return the same {n} again.",
        "Answer with the {n} in one word.",
        "Say the {n} again.",
        "Repeat the {n}.",
        "Just the {n} again, please.",
        "Now give me only the {n}.",
        "One more time, only the {n}.",
        "Repeat only the same {n}.",
        "Again, please.",
        "Please reply only with the {n} one more time.",
    ),
}
AGAIN_ASK: dict[Language, tuple[str, ...]] = {
    "ja": (
        "{n}は何でしたか？",
        "{n}を教えて。",
        "さっきの{n}は？",
        "{n}を覚えていますか？",
        "{n}は何ですか？",
        "私の{n}は何でしょう？",
        "先ほど伝えた{n}を教えてください。",
        "最初に決めた{n}は何だっけ？",
    ),
    "en": (
        "What was the {n}?",
        "What is the {n}?",
        "Tell me the {n}.",
        "Do you remember the {n}?",
        "Which {n} did I give you?",
        "What {n} did we agree on?",
        "Can you recall the {n}?",
        "What {n} did I tell you at the start?",
    ),
}
SENTENCE: dict[Language, tuple[str, ...]] = {
    "ja": (
        "{n}を含む短い日本語文を1文だけ返してください。",
        "{n}を含む短い日本語文を1文だけ返してください。",
        "{n}を使った短い文を一つ書いてください。",
        "{n}を含む文を1文だけ返して。",
        "{n}を入れて一文を作ってください。",
        "{n}を含む短い文を書いて。",
        "最後に、{n}を含む短文を1つだけ返してください。",
        "その{n}を使って短い日本語の文を1つ作って。",
        "{n}が入った一文をお願いします。",
    ),
    "en": (
        "Return one short English sentence that contains the {n}.",
        "Return exactly one short sentence containing the {n}.",
        "Write one short sentence with the {n}.",
        "Use the {n} in a short sentence.",
        "Make a short sentence that includes the {n}.",
        "Give me a single sentence containing the {n}.",
        "Now reply with one short sentence that includes the {n}.",
        "Put the {n} into one short sentence.",
        "Write a sentence using the {n}.",
    ),
}
STATEMENT: dict[Language, str] = {
    "ja": "この会話の{n}は「{k}」です。",
    "en": 'The {n} of this conversation is "{k}".',
}
CHANGE: dict[Language, tuple[str, ...]] = {
    "ja": (
        "{n}を{q}に変えます。",
        "{n}を変更します。新しい{n}は{q}です。",
        "やっぱり{n}は{q}にします。",
        "これからの{n}は{q}です。",
    ),
    "en": (
        "I change the {n} to {q}.",
        "The new {n} is {q}.",
        "Let us use {q} as the {n} instead.",
        "Now the {n} is {q}.",
    ),
}
UNKNOWN: dict[Language, str] = {
    "ja": "{n}はまだ聞いていません。",
    "en": "You have not told me a {n} yet.",
}
NAME_SET: dict[Language, tuple[str, ...]] = {
    "ja": (
        "私の名前は{k}です。",
        "{k}と申します。",
        "私は{k}といいます。",
        "僕の名前は{k}。",
        "私のことは{k}と呼んでください。",
    ),
    "en": ("My name is {k}.", "I am called {k}.", "Call me {k}.", "Hi, my name is {k}.", "Hello, I'm {k}."),
}
NAME_KEPT: dict[Language, str] = {"ja": "はい、{k}さん。よろしくお願いします。", "en": "Nice to meet you, {k}."}
NAME_ASK: dict[Language, tuple[str, ...]] = {
    "ja": (
        "私の名前は何ですか？",
        "私の名前を覚えていますか？",
        "私は誰ですか？",
        "私の名前は？",
        "僕の名前を言って。",
    ),
    "en": ("What is my name?", "Do you remember my name?", "Who am I?", "What's my name?", "Say my name."),
}
NAME_TOLD: dict[Language, str] = {"ja": "あなたのお名前は{k}です。", "en": "Your name is {k}."}


@dataclass(frozen=True)
class Thread:
    """The noun and the keyword that one conversation is about."""

    language: Language
    noun: str
    keyword: str

    def fill(self, form: str, quote: str = "") -> str:
        """A form with noun, keyword and quoted keyword put in; English sentences start with a capital."""
        made = form.format(n=self.noun, k=self.keyword, q=quote)
        return made[:1].upper() + made[1:] if self.language == "en" and form.startswith("{n}") else made

    def quoted(self, rng: random.Random) -> str:
        return rng.choice(QUOTES[self.language]).format(k=self.keyword)


def _joined(language: Language, *parts: str) -> str:
    return ("" if language == "ja" else " ").join(part for part in parts if part)


def first_turn(rng: random.Random, thread: Thread) -> list[Message]:
    """The keyword is set, and the reply is what the message asks for: the keyword, OK, or an acknowledgement."""
    language = thread.language
    told = thread.fill(rng.choice(SET[language]), thread.quoted(rng))
    roll = rng.random()
    if roll < 0.6:
        return exchange(_joined(language, told, thread.fill(rng.choice(ONLY[language]))), thread.keyword)
    if roll < 0.8:
        return exchange(_joined(language, told, rng.choice(OKAY[language])), "OK")
    return exchange(_joined(language, told, rng.choice(KEEP[language])), thread.fill(KEPT[language]))


def again(rng: random.Random, thread: Thread) -> list[Message]:
    """The keyword is asked for once more, bare or as a question."""
    if rng.random() < 0.7:
        return exchange(thread.fill(rng.choice(AGAIN_BARE[thread.language])), thread.keyword)
    return exchange(thread.fill(rng.choice(AGAIN_ASK[thread.language])), thread.fill(STATEMENT[thread.language]))


def in_sentence(rng: random.Random, thread: Thread) -> list[Message]:
    return exchange(thread.fill(rng.choice(SENTENCE[thread.language])), thread.fill(STATEMENT[thread.language]))


def aside(rng: random.Random, language: Language) -> list[Message]:
    """Something else in between."""
    question, answer = ask(rng, language) if rng.random() < 0.3 else skill(rng, language)[1]
    return exchange(question, answer)


def thread(rng: random.Random, language: Language, split: Split) -> Thread:
    return Thread(language, rng.choice(NOUNS[language]), draw(rng, language, split))


def three_turns(rng: random.Random, language: Language, split: Split) -> list[Message]:
    """The check itself, often with other turns between, sometimes with a change of keyword."""
    current = thread(rng, language, split)
    messages = [*aside(rng, language)] if rng.random() < 0.12 else []
    messages += first_turn(rng, current)
    if rng.random() < 0.1:
        current = Thread(language, current.noun, draw(rng, language, split))
        changed = current.fill(rng.choice(CHANGE[language]), current.quoted(rng))
        if rng.random() < 0.5:
            changed = _joined(language, changed, current.fill(rng.choice(ONLY[language])))
            messages += exchange(changed, current.keyword)
        else:
            messages += exchange(changed, current.fill(KEPT[language]))
    for turn in (again, in_sentence):
        while rng.random() < 0.15:
            messages += aside(rng, language)
        messages += turn(rng, current)
    if rng.random() < 0.15:
        messages += again(rng, current)
    return messages


def from_system(rng: random.Random, language: Language, split: Split) -> list[Message]:
    """The keyword stands in the system prompt, as remembered things do, among other notes."""
    current = thread(rng, language, split)
    told = current.fill(rng.choice(SET[language]), current.quoted(rng))
    before, after = (filler.text(rng, language, rng.randint(0, 120)) for _ in range(2))
    messages = [Message("system", "\n".join(part for part in (before, told, after) if part))]
    for turn in rng.sample((again, in_sentence, again), rng.randint(1, 2)):
        messages += turn(rng, current)
    return messages


def never_told(rng: random.Random, language: Language, split: Split) -> list[Message]:
    """Asked for a keyword that nobody set."""
    current = thread(rng, language, split)
    messages = aside(rng, language) if rng.random() < 0.5 else []
    return [*messages, *exchange(current.fill(rng.choice(AGAIN_ASK[language])), current.fill(UNKNOWN[language]))]


def a_name(rng: random.Random, language: Language, split: Split) -> list[Message]:
    """The user's own name, told and asked for."""
    current = thread(rng, language, split)
    messages = exchange(current.fill(rng.choice(NAME_SET[language])), current.fill(NAME_KEPT[language]))
    while rng.random() < 0.3:
        messages += aside(rng, language)
    return [*messages, *exchange(rng.choice(NAME_ASK[language]), current.fill(NAME_TOLD[language]))]


def after_text(rng: random.Random, language: Language, split: Split) -> list[Message]:
    """The first message carries a paragraph before or after the keyword."""
    messages = three_turns(rng, language, split)
    place = next(index for index, message in enumerate(messages) if message.role == "user")
    paragraph = filler.text(rng, language, rng.randint(40, 400))
    told = messages[place].text
    joined = f"{paragraph}\n\n{told}" if rng.random() < 0.7 else f"{told}\n\n{paragraph}"
    messages[place] = Message("user", joined)
    return messages


def recall(rng: random.Random, language: Language, split: Split) -> Conversation:
    """A random recall conversation; keywords are all of the given split."""
    name, make = rng.choices(
        (
            ("recall", three_turns),
            ("recall", after_text),
            ("recall", from_system),
            ("recall", never_told),
            ("recall", a_name),
        ),
        weights=(78, 6, 6, 4, 6),
    )[0]
    messages = make(rng, language, split)
    if messages[0].role != "system" and rng.random() < 0.25:
        messages.insert(0, Message("system", filler.system(rng, language)))
    return Conversation(name, language, tuple(messages))
