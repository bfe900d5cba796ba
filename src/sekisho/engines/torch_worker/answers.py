"""Pieces of text in the forms of OpenAI: chat and raw completions, streamed and whole."""

import time
from typing import Any

from sekisho.core import ids
from sekisho.engines.torch_worker.sequence import End, Piece, TokenLogprob


class Form:
    """One answer's wrapping. `chunk` and `last` are frames of a stream, `whole` is an answer at once."""

    prefix = ""
    kind = ""
    streamed_kind = ""

    def __init__(self, model: str, *, with_logprobs: bool) -> None:
        self._head = {"id": ids.new(self.prefix), "created": int(time.time()), "model": model}
        self._with_logprobs = with_logprobs

    def opening(self) -> dict[str, Any] | None:
        return None

    def chunk(self, piece: Piece) -> dict[str, Any]:
        return self._frame([{**self._said(piece), "finish_reason": None}])

    def last(self, end: End) -> dict[str, Any]:
        return self._frame([{**self._said(Piece()), **_reason(end)}])

    def usage(self, end: End) -> dict[str, Any]:
        return {**self._frame([]), "usage": usage(end)}

    def whole(self, pieces: list[Piece], end: End) -> dict[str, Any]:
        noted = [each for piece in pieces for each in piece.logprobs]
        joined = Piece("".join(piece.text for piece in pieces), noted)
        choice = {**self._message(joined), **_reason(end)}
        return {**self._head, "object": self.kind, "choices": [choice], "usage": usage(end)}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head, "object": self.streamed_kind, "choices": choices}

    def _said(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _message(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError


class ChatForm(Form):
    prefix = "chatcmpl"
    kind = "chat.completion"
    streamed_kind = "chat.completion.chunk"

    def opening(self) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return self._frame([{"index": 0, "delta": delta, "finish_reason": None}])

    def _said(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text else {}
        return {"index": 0, "delta": delta, **self._logprobs(piece)}

    def _message(self, piece: Piece) -> dict[str, Any]:
        return {"index": 0, "message": {"role": "assistant", "content": piece.text}, **self._logprobs(piece)}

    def _logprobs(self, piece: Piece) -> dict[str, Any]:
        if not self._with_logprobs:
            return {}
        content = [
            {**_token(each.token, each.logprob), "top_logprobs": [_token(*one) for one in each.best]}
            for each in piece.logprobs
        ]
        return {"logprobs": {"content": content}}


class CompletionForm(Form):
    prefix = "cmpl"
    kind = streamed_kind = "text_completion"

    def _said(self, piece: Piece) -> dict[str, Any]:
        said: dict[str, Any] = {"index": 0, "text": piece.text}
        if self._with_logprobs:
            said["logprobs"] = _parallel(piece.logprobs)
        return said

    _message = _said


def usage(end: End) -> dict[str, Any]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _reason(end: End) -> dict[str, Any]:
    return {"finish_reason": end.reason, "stop_reason": end.stop}


def _token(token: str, logprob: float) -> dict[str, Any]:
    broken = "\ufffd" in token  # part of a character: its bytes are not known here
    return {"token": token, "logprob": logprob, "bytes": None if broken else list(token.encode())}


def _parallel(noted: list[TokenLogprob]) -> dict[str, Any]:
    """The old form: lists side by side."""
    return {
        "tokens": [each.token for each in noted],
        "token_logprobs": [each.logprob for each in noted],
        "top_logprobs": [dict(each.best) for each in noted],
    }
