"""What an engine's error answer means for our client. The engine's own words are shown only where the request is at
fault; for trouble of the engine they become a note on the exception, for the log."""

import re
from typing import Any

import msgspec

from sekisho.core.errors import (
    ContextTooLong,
    EngineFailed,
    EngineTimeout,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    SekishoError,
    TooLarge,
    UnsupportedParameter,
)
from sekisho.core.events import Failed

_CONTEXT_CODES = {"exceed_context_size_error", "context_length_exceeded", "context_window_exceeded"}
_CONTEXT_WORDS = re.compile(
    r"context[ _-]?(?:length|size|window)|maximum model length|max_model_len|(?:prompt|input) (?:is )?too long"
    r"|input \(\d+ tokens\) is too large|too many tokens|exceeds? (?:the )?(?:available |maximum )?context",
    re.IGNORECASE,
)
_MEDIA_WORDS = re.compile(
    r"\b(?:image|audio|video|multi-?modal|vision)\b.{0,60}\bnot (?:be )?supported|mmproj"
    r"|(?:not support|not a multi-?modal).{0,60}\b(?:image|audio|video|multi-?modal|vision|model)\b",
    re.IGNORECASE,
)
# The words of chat templates (Qwen, Mistral, Gemma and their kin).
_PLACE_WORDS = re.compile(
    r"system message must be (?:at the beginning|first)|only .{0,20}system (?:message|role|prompt)"
    r"|system (?:messages?|role|prompt) (?:is |are )?only .{0,40}(?:beginning|first|start)|roles must alternate",
    re.IGNORECASE,
)
# llama.cpp, of a call in the history whose arguments are no JSON.
_HISTORY_WORDS = re.compile(r"parse tool call arguments as JSON", re.IGNORECASE)
_BUSY_WORDS = re.compile(r"queue|busy|slot|overload|capacity|too many|rate", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_MAX_WORDS = 500
_RETRY_S = 2.0
_MAX_RETRY_S = 3600.0


class MisplacedInstructions(InvalidRequest):
    """The model's template does not take the messages in this order of roles: see `wire.instructions`."""


def failed(error: SekishoError) -> Failed:
    """The same error as an event, for a stream that has begun."""
    return Failed(error.id, error.error_code, error.type, error.message, error.status, error.retry_after_s)


def upstream_error(status: int, body: bytes, retry_after: str | None = None) -> SekishoError:
    """The error for an engine's answer with an error status. `retry_after` is the value of its header."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = body.decode(errors="replace")
    return from_object(status, decoded, retry_after)


def from_object(status: int, decoded: Any, retry_after: str | None = None) -> SekishoError:
    """As `upstream_error`, for a body that is already parsed: an error frame in a stream, for example."""
    words, codes, param = _read(decoded)
    wait_s = _seconds(retry_after)
    error: SekishoError
    if status in (400, 413, 422, 500) and (_CONTEXT_CODES & codes or _CONTEXT_WORDS.search(words)):
        return ContextTooLong(words or "The prompt is longer than the model's context.", param=param)
    if status in (400, 422, 500, 501) and _MEDIA_WORDS.search(words):
        return UnsupportedParameter(
            "The model takes no images, audio or video of this kind.", param=param or "messages"
        )
    if status in (400, 422, 500) and _PLACE_WORDS.search(words):
        return MisplacedInstructions("The model's chat template refuses this order of roles.", param="messages")
    if status in (400, 422) or (status == 500 and _HISTORY_WORDS.search(words)):
        return InvalidRequest(words or "The engine refused the request.", param=param)
    if status == 413:
        return TooLarge(words or "The request is too large for the engine.", param=param)
    if status == 501:
        return UnsupportedParameter(words or "The engine does not support this request.", param=param)
    if status in (401, 403):
        error = EngineUnavailable("The engine refused this server's own key.", code="engine_refused_key")
    elif status == 404:
        error = EngineUnavailable("The engine does not know its model or this kind of request.")
    elif status in (408, 504):
        error = EngineTimeout("The engine took too long.")
    elif status == 429 or (status in (503, 529) and "loading" not in words.lower() and _BUSY_WORDS.search(words)):
        error = Overloaded("The engine is busy.", retry_after_s=wait_s or _RETRY_S)
    elif status in (502, 503, 529):
        loading = "loading" in words.lower()
        told = "The engine is still loading the model." if loading else "The engine is not available."
        error = EngineUnavailable(told, retry_after_s=wait_s or _RETRY_S)
    elif "does not match the expected" in words:  # llama.cpp, when a model with tools breaks its template's format
        error = EngineFailed("The model's answer does not have the form that its chat template promises.")
    else:
        error = EngineFailed("The engine failed to answer.")
    error.add_note(f"engine answered {status}: {words}")
    return error


def from_frame(value: Any) -> SekishoError:
    """The error in a frame of a stream that began with 200; its own `code` or `status` says what kind it is."""
    status = 500
    if isinstance(value, dict):
        for name in ("code", "status", "status_code"):
            given = value.get(name)
            if isinstance(given, str) and given.isdecimal() and len(given) == 3:
                given = int(given)
            if isinstance(given, int) and 400 <= given <= 599:
                status = given
                break
        else:
            status = 400 if value.get("type") in ("invalid_request_error", "BadRequestError") else 500
    return from_object(status, {"error": value})


def _read(decoded: Any) -> tuple[str, set[str], str | None]:
    """Message, codes and parameter out of the shapes that engines use."""
    value = decoded
    if isinstance(value, dict) and value.get("error"):
        value = value["error"]
    if isinstance(value, str):
        return _words(value), set(), None
    if not isinstance(value, dict):
        return "", set(), None
    message = value.get("message") or value.get("detail") or value.get("error") or ""
    if not isinstance(message, str):
        message = msgspec.json.encode(message).decode()
    codes = {code for name in ("type", "code") if isinstance(code := value.get(name), str)}
    param = value.get("param")
    return _words(message), codes, param if isinstance(param, str) and param else None


def _words(text: str) -> str:
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= _MAX_WORDS else text[: _MAX_WORDS - 1] + "…"


def _seconds(retry_after: str | None) -> float | None:
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None  # a date: our own default is near enough
    return min(seconds, _MAX_RETRY_S) if seconds > 0 else None
