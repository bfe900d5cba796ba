"""From a request to the tokens of its prompt, as llama.cpp's server makes them: a chat by its template, then both kinds
as text with the model's opening token and marks that are read as such (`handle_completions_impl`)."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import msgspec

from sekisho.core.decoding import Undecodable, decoded
from sekisho.engines.llama_demotion.slots import Tokens, as_tokens

Ask = Callable[[str, bytes], Awaitable[bytes | None]]
"""Posts a body to a path of the keeper: its answer, None for any status but 200."""
KINDS: Final[dict[str, Literal["chat", "raw"]]] = {"/v1/chat/completions": "chat", "/v1/completions": "raw"}


class _Body(msgspec.Struct, frozen=True):
    """What decides about a request here. Fields that are None were not given."""

    prompt: Any = None
    n: int | None = None
    n_cmpl: int | None = None
    id_slot: int | None = None
    cache_prompt: bool | None = None
    lora: Any = None

    @property
    def is_plain(self) -> bool:
        """One answer, any slot, nothing that changes what a token's keys and values are."""
        alone = self.n in (None, 1) and self.n_cmpl in (None, 1)
        return alone and self.id_slot is None and self.cache_prompt is not False and not self.lora


class _Template(msgspec.Struct, frozen=True):
    prompt: str


class _Tokens(msgspec.Struct, frozen=True):
    tokens: list[int]


async def tokens(kind: Literal["chat", "raw"], body: bytes, ask: Ask) -> Tokens | None:
    """The prompt's tokens. None for a request that is better passed on as it is: what cannot be read, several prompts
    or answers, a slot of the client's choice."""
    try:
        wanted = decoded(body, _Body)
        if not wanted.is_plain:
            return None
        if kind == "raw":
            return await _raw(wanted.prompt, ask)
        answer = await ask("/apply-template", body)
        return None if answer is None else await _text(decoded(answer, _Template).prompt, ask)
    except (Undecodable, OverflowError):
        return None


async def _raw(prompt: Any, ask: Ask) -> Tokens | None:
    if isinstance(prompt, str):
        return await _text(prompt, ask)
    if not isinstance(prompt, list) or not prompt:
        return None
    if all(isinstance(each, int) and not isinstance(each, bool) for each in prompt):
        return as_tokens(prompt)
    return await _text(prompt[0], ask) if len(prompt) == 1 and isinstance(prompt[0], str) else None


async def _text(text: str, ask: Ask) -> Tokens | None:
    question = {"content": text, "add_special": True, "parse_special": True}
    answer = await ask("/tokenize", msgspec.json.encode(question))
    return None if answer is None else as_tokens(decoded(answer, _Tokens).tokens)


def in_slot(body: bytes, number: int) -> bytes:
    """The same request, for one slot. `body` is an object with fields, and says nothing of slots."""
    opening, brace, rest = body.partition(b"{")
    return b'%b%b"id_slot":%d,"cache_prompt":true,%b' % (opening, brace, number, rest)
