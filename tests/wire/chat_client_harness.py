"""A turn that is sent to an engine, and errors as engines tell them."""

from typing import Any

from sekisho.core.turn import Message, Turn


def turn(*messages: Message, **fields: Any) -> Turn:
    return Turn(**{"id": "chatcmpl-7", "protocol": "chat", "model": "m", "messages": messages, **fields})


LLAMA = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 4096,
    }
}
VLLM = {
    "object": "error",
    "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}
VLLM_NEW = {
    "error": {
        "message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096",
        "type": "BadRequestError",
        "param": "messages",
        "code": 400,
    }
}
