"""Exceptions as HTTP errors, in the shape of the API that was asked.

    OpenAI   {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
    Ollama   {"error": "..."}, for every path below /api/

The message is the exception's own text. What nobody foresaw is told with the request's id alone: its text may hold what
a user wrote, so it goes to the log of the operator and not to whoever asks.
"""

import math
from typing import Any, NamedTuple

from gemworks.errors import (
    AccessError,
    BackendError,
    CapacityError,
    CheckpointError,
    ContextLengthError,
    GemworksError,
    LimitError,
    NotFoundError,
    RequestError,
    StorageError,
)


class FieldError(RequestError):
    """One caller's fault, in one field of the body. `param` is the field, `code` what programs tell it by."""

    status = 400

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class UnsupportedError(FieldError):
    """A field that means something elsewhere and is not supported here: refused, because ignoring it would answer
    another question."""

    def __init__(self, param: str, why: str = "", *, got: Any = None):
        told = f"{param} is not supported here" + (f", got {got!r:.80}" if got is not None else "")
        super().__init__(f"{told}. {why}".strip(), param=param, code="unsupported_parameter")


class TooLargeError(FieldError):
    """A body or an image above the server's limit. Becomes HTTP 413."""

    status = 413


class MissingError(FieldError):
    """A stored thing that is not there (a response by id). Becomes HTTP 404."""

    status = 404


class HTTPError(NamedTuple):
    """What is sent: the status, the body as an object, and headers beside the usual ones."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


class _Kind(NamedTuple):
    status: int
    type: str
    code: str | None = None
    param: str | None = None


def is_ollama(path: str) -> bool:
    """Whether a path belongs to the Ollama API."""
    return path.startswith("/api/") or path == "/api"


def http_error(error: BaseException, path: str, *, request_id: str = "", draining: bool = False) -> HTTPError:
    """Return what a failed request of `path` is answered."""
    shape = ollama_error if is_ollama(path) else openai_error
    return shape(error, request_id=request_id, draining=draining)


def openai_error(error: BaseException, *, request_id: str = "", draining: bool = False) -> HTTPError:
    """Return an exception in OpenAI's shape."""
    kind = _kind(error, draining)
    told = {
        "message": _message(error, request_id),
        "type": kind.type,
        "param": getattr(error, "param", None) or kind.param,
        "code": getattr(error, "code", None) or kind.code,
    }
    return HTTPError(kind.status, {"error": told}, _headers(error, kind.status))


def ollama_error(error: BaseException, *, request_id: str = "", draining: bool = False) -> HTTPError:
    """Return an exception in Ollama's shape."""
    status = _kind(error, draining).status
    return HTTPError(status, {"error": _message(error, request_id)}, _headers(error, status))


def status_error(status: int, message: str, path: str) -> HTTPError:
    """Return an error of HTTP itself (no such path, no such method) in the shape of the API that was asked."""
    if is_ollama(path):
        return HTTPError(status, {"error": message}, {})
    kind = "invalid_request_error" if status < 500 else "server_error"
    return HTTPError(status, {"error": {"message": message, "type": kind, "param": None, "code": None}}, {})


def _kind(error: BaseException, draining: bool) -> _Kind:
    if isinstance(error, FieldError):
        return _Kind(error.status, "invalid_request_error")
    if isinstance(error, ContextLengthError):
        return _Kind(400, "invalid_request_error", "context_length_exceeded", "messages")
    if isinstance(error, NotFoundError):
        return _Kind(404, "invalid_request_error", "model_not_found", "model")
    if isinstance(error, AccessError):
        if error.forbidden:
            return _Kind(403, "permission_error", "permission_denied")
        return _Kind(401, "invalid_request_error", "invalid_api_key")
    if isinstance(error, LimitError):
        return _Kind(429, "rate_limit_error", "rate_limit_exceeded")
    if isinstance(error, CapacityError):
        return _Kind(503, "server_error", "draining") if draining else _Kind(429, "rate_limit_error", "no_room")
    if isinstance(error, (CheckpointError, StorageError, BackendError)):
        return _Kind(500, "server_error")
    if isinstance(error, (RequestError, GemworksError)):
        return _Kind(400, "invalid_request_error")
    return _Kind(500, "server_error", "internal_error")


def _message(error: BaseException, request_id: str) -> str:
    if isinstance(error, GemworksError):
        return str(error)
    return f"The server has a defect that this request met; its log tells more, under request id {request_id or '-'}."


def _headers(error: BaseException, status: int) -> dict[str, str]:
    if isinstance(error, LimitError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after_s)))}
    if status in (429, 503):
        return {"retry-after": "1"}
    return {"www-authenticate": "Bearer"} if status == 401 else {}
