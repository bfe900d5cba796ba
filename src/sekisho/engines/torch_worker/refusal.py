"""Why a request is not answered, in the form in which OpenAI tells it."""

from typing import Any

CONTEXT = "context_length_exceeded"


class Refused(Exception):
    """`status` 400: the request is at fault. `code` `context_length_exceeded`: it is too long."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status, self.code = message, param, status, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def too_long(message: str) -> Refused:
    return Refused(message, param="messages", code=CONTEXT)
