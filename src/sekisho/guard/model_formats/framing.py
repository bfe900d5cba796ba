"""Puts judged text into a question so that it stays data, and takes an answer out of the model's thinking.

Two frames. A guard with a chat template of its own writes the text between marks like `<END CONVERSATION>` and role
names at line starts, so `inert` breaks whatever could be such a mark. A guard that is told a policy gets one line of
JSON a message in which no bracket and no line break stands, so that no text can end its line.
"""

import json
import re
from collections.abc import Iterable

from sekisho.core.turn import Message, Text
from sekisho.guard.model_formats.base import GuardModelFailed, Said

_LINE_BREAKS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f]")
_MARK = re.compile(r"<(?=[^\s\d<=])")  # `<|im_end|>`, `</s>`, `<END CONVERSATION>`; not `a < b`, `<3`, `<=`
_BLANK = r"[^\S\n]"
_LABEL_LINE = re.compile(
    rf"^(?=(?:[*#_>\-]|{_BLANK})*(?:"
    r"(?:user|assistant|agent|human|system|tool|safety|categories|refusal|task|ユーザー|答え|判定)"
    rf"[*_]*{_BLANK}*[:：]|(?:un)?safe\.?{_BLANK}*$|S\d{{1,2}}\b))",
    re.IGNORECASE | re.MULTILINE,
)
_BRACKETS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "<>[]\u2028\u2029\x85"}
_CHANNEL = re.compile(r"<\|channel\|>(\w+)(?:[^<]*)<\|message\|>")


def inert(text: str) -> str:
    """Text in which no template mark, special token, role name or answer label stands where it would mean something.
    A blank is put after `<`, and `| ` before a line that looks like a label; the words stay."""
    text = _CONTROL.sub("", _LINE_BREAKS.sub("\n", text))
    return _LABEL_LINE.sub("| ", _MARK.sub("< ", text))


def dialogue(said: Iterable[Said]) -> list[Said]:
    """`said` as user and assistant in turns, the user first, for templates that take nothing else. Instructions and
    tool results become the user's, for nobody vouches for them."""
    turns: list[Said] = []
    for one in said:
        role = "assistant" if one.role == "assistant" else "user"
        text = inert(one.text)
        if one.role not in ("user", "assistant"):
            text = f"({one.role})\n{text}"
        if not turns and role == "assistant":
            turns.append(Said("user", "(no message)"))
        if turns and turns[-1].role == role:
            turns[-1] = Said(role, f"{turns[-1].text}\n\n{text}")
        else:
            turns.append(Said(role, text))
    return turns


def everything(said: Iterable[Said]) -> Said:
    """All messages as one text of a user: a request that was spread over several, or hidden behind an invented
    history, stands in one piece."""
    return Said("user", "\n\n".join(inert(one.text) for one in said))


def rated_last(said: tuple[Said, ...], answer: str | None) -> list[list[Said]]:
    """The dialogues to ask about, for models that rate the last message only: with the answer at the end, or with a
    user's message at the end and, where there are several, `everything` beside it."""
    if answer is not None:
        return [dialogue([*said, Said("assistant", answer)])]
    turns = dialogue(said)
    if len(turns) == 1:
        return [turns]
    whole = [everything(said)]
    return [turns, whole] if turns and turns[-1].role == "user" else [whole]


def chat(turns: Iterable[Said]) -> tuple[Message, ...]:
    return tuple(
        Message("assistant" if one.role == "assistant" else "user", (Text(one.text or "(empty)"),)) for one in turns
    )


def transcript(said: Iterable[Said], answer: str | None = None) -> str:
    """One line of JSON a message, `answer` last."""
    lines = [{"role": one.role, "text": one.text} for one in said]
    if answer is not None:
        lines.append({"role": "answer_to_judge", "text": answer})
    return "\n".join(_json_line(line) for line in lines)


def _json_line(line: dict[str, str]) -> str:
    """JSON without `<`, `>`, `[` and `]`: with them goes every special token of the chat templates we know."""
    return json.dumps(line, ensure_ascii=False).translate(_BRACKETS)


def final_part(text: str) -> str:
    """What stands after the thinking, where an engine left the thinking in the text. One block of thinking, at the
    start; raises `GuardModelFailed` where marks are left, for then nobody knows which part is the answer."""
    text = text.strip()
    if "<|channel|>" in text:
        text = _final_channel(text)
    elif "</think>" in text:
        thinking, _, text = text.partition("</think>")
        if "<think>" in thinking.strip().removeprefix("<think>"):
            raise GuardModelFailed("malformed", "nested thinking")
    if "<|" in text or "think>" in text:
        raise GuardModelFailed("malformed", "marks of thinking in the answer")
    return text.strip()


def _final_channel(text: str) -> str:
    """Harmony: the message of the channel `final`, of which there is one, at the end (openai/harmony, docs/format)."""
    channels = list(_CHANNEL.finditer(text))
    if not channels or [found[1] for found in channels].count("final") != 1 or channels[-1][1] != "final":
        raise GuardModelFailed("malformed", "no single final channel")
    return re.sub(r"(?:<\|(?:return|end)\|>)?\s*\Z", "", text[channels[-1].end() :])
