"""`/v1/think`: a chat completion whose thinking stays on the server.

The request is that of `/v1/chat/completions`, field for field, so that every client of it works; there is no field of
its own. `asking` adds the instruction: four thinking parts, each in its tag, then the answer in `<final>`. The answer
is a plain chat completion, streaming or not, whose content is the final part alone.

A model may not obey, small ones above all. Without a `<final>` there is no answer, and nothing of what it wrote is
shown. Where no choice has one, the request fails with 422 `thinking_without_answer` (not with 5xx: client libraries
try those again by themselves, which costs a whole generation each time). Where another choice has one, the choice
without ends with a refusal and `finish_reason` `content_filter`, or `length` where the token limit cut it off. A tool
call is an answer.
"""

import re
from typing import Literal

import msgspec

from sekisho.core.errors import RequestError, UnsupportedParameter
from sekisho.core.events import Failed
from sekisho.core.turn import Message, Text, Turn

Language = Literal["ja", "en"]

# What the question is, what could do harm, which rules apply, whether the draft holds: in this order.
PARTS = ("think-task", "think-safety", "think-policy", "think-check")
FINAL = "final"
MARK = "sekisho.think"  # in `Turn.extra`; keys of this prefix never leave the house

_KANA = re.compile(r"[\u3040-\u30ff\uff66-\uff9d]")
_LEADING = ("system", "developer")

_ENGLISH = """\
Work in five steps and write each step inside its tag, in this order, every tag once and closed:
<think-task>what is asked, what is known, what is missing</think-task>
<think-safety>who could be harmed by an answer, and how</think-safety>
<think-policy>which rules and instructions apply here</think-policy>
<think-check>a draft of the answer and what is wrong with it</think-check>
<final>the answer, complete by itself</final>
The reader sees nothing but what stands in <final>. Write no text outside the tags, and stop after </final>."""

_JAPANESE = """\
次の五つの段階をこの順に進め、各段階をそれぞれのタグの中に書いてください。タグは一度ずつ使い、必ず閉じます。
<think-task>何を求められているか、分かっていること、足りないこと</think-task>
<think-safety>答えることで誰がどのような害を受け得るか</think-safety>
<think-policy>この場で守るべき規則と指示</think-policy>
<think-check>答えの下書きと、その誤りの点検</think-check>
<final>それだけで完結した答え</final>
読み手に見えるのは <final> の中だけです。タグの外には何も書かず、</final> で終えてください。"""


class ThinkingWithoutAnswer(RequestError):
    """The model thought, and wrote no final part."""

    status = 422
    code = "thinking_without_answer"


def instructions(language: Language) -> str:
    """What the model is told."""
    return _JAPANESE if language == "ja" else _ENGLISH


def asking(turn: Turn, language: Language | None = None) -> Turn:
    """The turn with the instruction behind its own leading instructions, and with `MARK` in `extra`. Without a
    `language` that of the last message of the user. Raises `UnsupportedParameter` for a format of the whole answer,
    which leaves no place for the parts."""
    if turn.format.kind != "text":
        raise UnsupportedParameter(
            "An answer in parts cannot be JSON as a whole: leave 'response_format' out, or use /v1/chat/completions.",
            param="response_format",
        )
    place = next((at for at, message in enumerate(turn.messages) if message.role not in _LEADING), len(turn.messages))
    told = Message("system", (Text(instructions(language or language_of(turn))),))
    return msgspec.structs.replace(
        turn, messages=(*turn.messages[:place], told, *turn.messages[place:]), extra={**turn.extra, MARK: True}
    )


def language_of(turn: Turn) -> Language:
    """`ja` where the user's last message has kana in it."""
    for message in reversed(turn.messages):
        if message.role == "user":
            words = "".join(part.text for part in message.parts if isinstance(part, Text))
            return "ja" if _KANA.search(words) else "en"
    return "en"


def without_answer(cut: bool) -> Failed:
    """The failure of a turn of which no choice has a final part. `cut`: the token limit ended it."""
    error = ThinkingWithoutAnswer(refusal(cut))
    return Failed(error.id, error.error_code, error.type, error.message, error.status)


def refusal(cut: bool) -> str:
    """What is said in place of the final part."""
    if cut:
        return "The token limit was reached while the model was thinking, before its answer: allow more tokens."
    return "The model thought but wrote no final part, so there is no answer to show."
