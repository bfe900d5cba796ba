"""The question whose answers are read."""

from sekisho.evaluate.client.answer_apis import Api
from sekisho.evaluate.client.asking import Question

MAX_TOKENS = 32


def question(api: Api, stream: bool, text: str = "Name a city.") -> Question:
    return Question(api=api, said=(("user", text),), max_tokens=MAX_TOKENS, stream=stream)
