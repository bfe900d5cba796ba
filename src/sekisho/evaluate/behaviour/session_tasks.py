"""Twenty small coding tasks of several turns, half of them Japanese, written for this project."""

from typing import Literal

import msgspec


class SessionTask(msgspec.Struct, frozen=True):
    """`prompts`: what the user says, one turn each."""

    id: str
    language: Literal["ja", "en"]
    prompts: tuple[str, ...]


_JA = (
    ("リストの重複を取り除く Python の関数を書いてください。", "その計算量を教えてください。"),
    ("二分探索を Python で書いてください。", "どう動くか説明してください。"),
    ("文字列を逆順にする Python の関数を書いてください。", "別の書き方はありますか。"),
    ("フィボナッチ数列を求める関数を書いてください。", "計算量はどれくらいですか。"),
    ("FizzBuzz を Python で書いてください。", "JavaScript でも書けますか。"),
    ("CSV を読む Python のコードを書いてください。", "どう動くか説明してください。"),
    ("正規表現で数字だけを取り出すにはどうしますか。", "どう動くか説明してください。"),
    ("素数かどうかを調べる関数を書いてください。", "この関数を JavaScript で書いてください。"),
    ("摂氏を華氏に直す関数を書いてください。", "別の書き方はありますか。"),
    ("YAML と JSON の違いは何ですか。", "例を一つ見せてください。"),
)
_EN = (
    ("Write a Python function that merges two sorted lists.", "What is its time complexity?"),
    ("Write a Python function that reverses a string.", "Could you write a unit test for it?"),
    ("Write a Python function for binary search.", "Explain how it works."),
    ("How do I sort a list of dictionaries by a key?", "Explain how it works."),
    ("Write a function that flattens nested lists.", "Add comments, please."),
    ("Write a SQL query that counts orders for each customer.", "What does GROUP BY do in SQL?"),
    ("Write a TypeScript type for a user with an optional address.", "Add comments, please."),
    ("Write a function that checks whether a number is prime.", "Can you write it in JavaScript?"),
    ("How do I read a CSV file in Python?", "Can you make it shorter?"),
    ("What is a decorator in Python?", "Explain how it works."),
)
_CLOSING = {"ja": "ここまでの要点を教えてください。", "en": "Please summarize our conversation."}


def _tasks() -> tuple[SessionTask, ...]:
    """Japanese and English by turns, so that a part of them is half of each as well."""
    made: list[SessionTask] = []
    for number, (japanese, english) in enumerate(zip(_JA, _EN, strict=True), 1):
        made.append(SessionTask(f"ja-{number:02d}", "ja", (*japanese, _CLOSING["ja"])))
        made.append(SessionTask(f"en-{number:02d}", "en", (*english, _CLOSING["en"])))
    return tuple(made)


SESSION_TASKS = _tasks()
