"""Any chat model that can be held to a JSON schema, under our policy text. Not trained as a guard: it knows the policy
only from reading it, so its opinion is worth what an evaluation says."""

from sekisho.core.turn import ReasoningRequest
from sekisho.guard.model_formats import policy
from sekisho.guard.model_formats.base import Exchange, Label, Question

MAX_TOKENS = 96


class Generic:
    def questions(self, exchange: Exchange) -> tuple[Question, ...]:
        quiet = ReasoningRequest(enabled=False)
        return (Question(policy.messages(exchange), MAX_TOKENS, policy.JSON_ANSWER, quiet),)

    def read(self, text: str, *, about_answer: bool) -> Label:
        return policy.read(text)
