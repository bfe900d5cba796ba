"""gpt-oss-safeguard (20B, 120B).

Facts from the user guide (cookbook.openai.com/articles/gpt-oss-safeguard-guide, 2025-10-29): the policy goes into the
system message, the content to classify into the user message; the model reasons in the harmony format first and then
answers in whatever form the policy asks for, here one JSON object. The answer is not constrained by a schema, because
a grammar would also bind the reasoning before it.
"""

from sekisho.core.turn import ReasoningRequest
from sekisho.guard.model_formats import policy
from sekisho.guard.model_formats.base import Exchange, Label, Question

MAX_TOKENS = 768  # the reasoning counts


class GptOssSafeguard:
    def questions(self, exchange: Exchange) -> tuple[Question, ...]:
        return (Question(policy.messages(exchange), MAX_TOKENS, reasoning=ReasoningRequest(effort="low")),)

    def read(self, text: str, *, about_answer: bool) -> Label:
        return policy.read(text)
