"""Errors in the Messages shape. Its `request_id` is our error id: the one that stands in the log."""

from typing import Any

from sekisho.core.events import Failed
from sekisho.wire import jsonio
from sekisho.wire.base import ErrorView

_BY_STATUS = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    502: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# Other 503s (the store, say) are no sign of load: a client that shows the words should not show "overloaded".
_OVERLOADED = frozenset({"overloaded", "draining", "engine_unavailable"})


def error_type(status: int, code: str) -> str:
    if status == 503:
        return "overloaded_error" if code in _OVERLOADED else "api_error"
    return _BY_STATUS.get(status, "invalid_request_error" if status < 500 else "api_error")


def error_object(error: ErrorView | Failed) -> dict[str, Any]:
    """The whole object, as a body and as the data of an `error` event. `code` and `param` are extras of ours."""
    inner = {"type": error_type(error.status, error.code), "message": error.message, "code": error.code}
    if isinstance(error, ErrorView) and error.param is not None:
        inner["param"] = error.param
    return {"type": "error", "error": inner, "request_id": error.id}


def error_body(error: ErrorView) -> bytes:
    return jsonio.dump(error_object(error))
