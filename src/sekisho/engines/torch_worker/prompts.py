"""Messages and raw texts to token ids. Runs in one thread of its own: a tokenizer is not for two at once."""

import inspect
from typing import Any, Final

import msgspec
from jinja2 import TemplateError

from sekisho.engines.torch_worker.refusal import Refused, too_long
from sekisho.engines.torch_worker.requests import ChatBody, TokenizeBody

_LEAST_CHARACTERS: Final = 100_000  # are counted in a moment


class Prompts:
    """`tokenizer` is a fast one of transformers."""

    def __init__(self, tokenizer: Any, vocabulary: int, context: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        longest = max((len(token.encode()) for token in tokenizer.get_vocab()), default=1)
        self._most_characters = max(_LEAST_CHARACTERS, context * longest)
        # Whoever could name these would choose the template itself.
        self._reserved = frozenset(inspect.signature(tokenizer.apply_chat_template).parameters)

    def raw(self, prompt: str | list[Any]) -> list[int]:
        """A text, with the model's opening token, or token ids; or a list with one of these."""
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return self._ids(prompt, opening=True)
        if not all(type(each) is int and 0 <= each < self._vocabulary for each in prompt):
            raise Refused("one prompt a request: a text, or ids of the model's tokens", param="prompt")
        return list(prompt)

    def chat(self, body: ChatBody | TokenizeBody) -> list[int]:
        """The messages as the model's own template puts them, tools included where it knows such."""
        if self._tokenizer.chat_template is None:
            raise Refused("this model has no chat template: set `chat_template`, or use /v1/completions")
        tools = body.tools if body.tool_choice != "none" else None
        if tools and body.tool_choice not in (None, "auto"):
            message = "this engine cannot make a model call a tool: tool_choice may be auto or none"
            raise Refused(message, param="tool_choice", code="unsupported_parameter")
        variables = body.chat_template_kwargs or {}
        if taken := sorted(self._reserved & set(variables)):
            raise Refused(f"{', '.join(taken)} cannot be set by a request", param="chat_template_kwargs")
        messages = [_plain(message) for message in body.messages or ()]
        if not messages:
            raise Refused("must not be empty", param="messages")
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=True, **variables
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise Refused(f"the model's chat template: {error}", param="messages") from None
        return self._ids(text, opening=False)

    def counted(self, body: TokenizeBody) -> int:
        return len(self.raw(body.prompt) if body.prompt is not None else self.chat(body))

    def _ids(self, text: str, *, opening: bool) -> list[int]:
        if len(text) > self._most_characters:
            # Whatever the tokens are, there are too many: nobody shall wait for them to be counted.
            raise too_long(f"a prompt of {len(text)} characters cannot fit into the context")
        ids: list[int] = self._tokenizer(text, add_special_tokens=opening, verbose=False)["input_ids"]
        return ids


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Contents as one text, arguments of calls as values: what templates expect. Raises `Refused` for pictures."""
    plain = dict(message)
    if not isinstance(message.get("role"), str):
        raise Refused("each message needs a role", param="messages")
    content = message.get("content")
    if isinstance(content, list):
        plain["content"] = "\n".join(_text(part) for part in content)
    elif content is not None and not isinstance(content, str):
        raise Refused("content is a text or a list of parts", param="messages")
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        plain["tool_calls"] = [_call(call) for call in calls]
    return plain


def _text(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") not in ("text", "input_text", "output_text"):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise Refused(f"{kind} is not supported: the model takes no images, audio or files", param="messages")
    return str(part.get("text") or "")


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"] or "{}")
    except (msgspec.DecodeError, RecursionError):
        return call  # as the model said it
    return {**call, "function": {**function, "arguments": arguments}}
