"""The error tree.

SekishoError              has an HTTP status, OpenAI's `type` and `code`, a message for the client, an id for the log
├── RequestError          the caller can mend it (4xx)
│   ├── InvalidRequest    400, names the parameter
│   ├── UnsupportedParameter 400, a real parameter of the protocol that this server or engine cannot honour
│   ├── ContextTooLong    400 context_length_exceeded
│   ├── Unauthenticated   401
│   ├── Forbidden         403
│   ├── NotFound          404 (also another key's object: existence is not told)
│   ├── MethodNotAllowed  405
│   ├── BodyTimeout       408, the body came too slowly
│   ├── AlreadyDecided    409, somebody was first at this ticket
│   ├── TicketExpired     410, the ticket's time is over: a late decision revives nothing
│   ├── TooLarge          413
│   ├── HeadTooLarge      431
│   ├── RateLimited       429 rate_limit_exceeded, with Retry-After
│   └── QuotaSpent        429 insufficient_quota
├── ServiceError          operational trouble of our own (5xx), never shown as 401
│   ├── EngineUnavailable 503, engine down or restarting
│   ├── EngineFailed      502, engine broke during the turn
│   ├── EngineTimeout     504
│   ├── Overloaded        503, queue full
│   ├── Draining          503, server is shutting down
│   ├── StoreUnavailable  503
│   └── BookUnavailable   503, the audit book cannot be written or read: nothing is answered without its record
└── (anything else that is raised is a programmer's error: 500, logged with its traceback, told without it)
"""

from typing import ClassVar

from sekisho.core import ids


class SekishoError(Exception):
    """An operational error. `message` is shown to the client; `id` stands in the answer and in the log."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.error_code = code or type(self).code
        self.id = ids.new("err")


class RequestError(SekishoError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidRequest(RequestError):
    code = "invalid_value"


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class ContextTooLong(RequestError):
    code = "context_length_exceeded"


class Unauthenticated(RequestError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(RequestError):
    status = 403
    type = "permission_error"
    code = "permission_denied"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class BodyTimeout(RequestError):
    status = 408
    code = "body_timeout"


class AlreadyDecided(RequestError):
    status = 409
    code = "already_decided"


class TicketExpired(RequestError):
    status = 410
    code = "ticket_expired"


class TooLarge(RequestError):
    status = 413
    code = "request_too_large"


class HeadTooLarge(RequestError):
    status = 431
    code = "head_too_large"


class RateLimited(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class QuotaSpent(RequestError):
    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class ServiceError(SekishoError):
    status = 503
    code = "service_unavailable"


class EngineUnavailable(ServiceError):
    code = "engine_unavailable"


class EngineFailed(ServiceError):
    status = 502
    code = "engine_failed"


class EngineTimeout(ServiceError):
    status = 504
    code = "engine_timeout"


class Overloaded(ServiceError):
    code = "overloaded"


class Draining(ServiceError):
    code = "draining"


class StoreUnavailable(ServiceError):
    code = "store_unavailable"


class BookUnavailable(ServiceError):
    code = "book_unavailable"
