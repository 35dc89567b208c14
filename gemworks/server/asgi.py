"""What the middlewares share: ASGI's types, a header's value, an error as an answer."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gemworks.server.errors import http_error

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def header(scope: Scope, name: bytes) -> str:
    """The value of a request's header, "" where it has none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


async def send_error(scope: Scope, send: Send, error: Exception, *, close: bool = False, more: bool = False) -> None:
    """Answer with an error in the shape of the API that was asked."""
    told = http_error(error, scope["path"], request_id=scope["state"]["id"])
    body = json.dumps(told.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))} | told.headers
    if close:
        headers["connection"] = "close"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": told.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": more})
