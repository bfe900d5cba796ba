"""OpenAI's Responses protocol, server side: pure, from bytes to a turn and from events to bytes."""

from sekisho.wire.openai_error import error_body
from sekisho.wire.responses.decode import ResponsesRequest, decode
from sekisho.wire.responses.encoder import ResponsesEncoder, encoder
from sekisho.wire.responses.history import resolve, to_messages, with_history
from sekisho.wire.responses.stored import cancelled, deleted, input_items_page, sealed_items

__all__ = [
    "ResponsesEncoder",
    "ResponsesRequest",
    "cancelled",
    "decode",
    "deleted",
    "encoder",
    "error_body",
    "input_items_page",
    "resolve",
    "sealed_items",
    "to_messages",
    "with_history",
]
