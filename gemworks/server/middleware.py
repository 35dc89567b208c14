"""What every request passes before it reaches a route: pure ASGI, streams pass untouched, chunk by chunk.

    Requests   an id, a record, the log line and the metrics        (outermost: it sees every answer)
    CORS       Starlette's, where pages of other origins may ask
    Origins    pages that may not, and names that are not ours, are refused where no key protects the server (access.py)
    Access     the API key                                                                                   (access.py)
    Bodies     the length of a body

Nothing that a route raises gets past Requests: it answers 500 with the request's id, and the log gets the place.
"""

import asyncio
import contextlib
import re
import secrets
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from gemworks.server.access import LOOPBACK_ORIGIN, Access, Origins
from gemworks.server.asgi import App, Message, Receive, Scope, Send, header, send_error
from gemworks.server.errors import FieldError, TooLargeError
from gemworks.server.keys import Caller
from gemworks.server.record import Record, SlowReader
from gemworks.server.services import Services
from gemworks.server.settings import Settings

if TYPE_CHECKING:
    from starlette.applications import Starlette

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

# Carries a model's weights; its route checks the free space as they come.
_UNBOUNDED = "/api/blobs/"

# An answer of 413 is read more surely by a client that is not cut off while it still sends: this much is let in.
_LINGER_S = 2.0


def add_middlewares(app: "Starlette", settings: Settings, services: Services) -> None:
    """Put `app` behind all of them; what is added last is outermost."""
    cors = settings.cors
    app.add_middleware(Bodies, services=services)
    app.add_middleware(Access, services=services)
    app.add_middleware(Origins, services=services)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=cors.origins,
        allow_origin_regex=LOOPBACK_ORIGIN if cors.loopback else None,
        allow_methods=("*",),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after"),
    )
    app.add_middleware(Requests, services=services)


class Requests:
    """Gives each request its id and record, and closes the record when its answer is out."""

    def __init__(self, app: App, services: Services):
        self._app, self._services = app, services
        self._patience_s = services.settings.limits.stream_idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sent = header(scope, b"x-request-id")
        id = sent if _ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
        record = Record(id=id, method=scope["method"], path=scope["path"], traceparent=header(scope, b"traceparent"))
        state = scope.setdefault("state", {})
        client = scope.get("client")
        state |= {"id": id, "record": record, "caller": Caller(), "fair_key": client[0] if client else ""}
        name = (b"x-request-id", id.encode())

        patience = _Patience(self._patience_s)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                ticket = state.get("ticket")
                message["headers"] = [*message.get("headers", ()), name, *(ticket.headers() if ticket else ())]
            await patience.send(send, message)

        record.enter()
        try:
            await self._app(scope, receive, answer)
        except SlowReader:
            record.error = "SlowReader"
            raise  # uvicorn breaks the connection off
        except ClientDisconnect:  # while its body was read
            record.error = "ClientDisconnect"
        except Exception as error:
            record.error = record.error or type(error).__name__
            self._services.logs.defect(error, id=id)
            if record.status:  # too late for another one
                raise
            await send_error(scope, answer, error)
        finally:
            patience.end()
            record.route = _route(scope)
            record.leave(self._services.finished)


class _Patience:
    """Gives a client up that has read nothing for `seconds` to twice as long: SlowReader comes out of `send`.

    A timer looks now and then whether the same message is still being sent: 0.4 us a message, where a timeout around
    each costs 5.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._sender: asyncio.Task | None = None
        self._seen = self._count = 0
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    async def send(self, send: Send, message: Message) -> None:
        """Send one message."""
        if self._is_over:
            raise SlowReader
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        self._count += 1
        self._sender = asyncio.current_task()
        try:
            await send(message)
        except asyncio.CancelledError:
            if self._is_over and self._sender is not None and self._sender.uncancel() == 0:
                raise SlowReader from None
            raise
        finally:
            self._sender = None

    def end(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if self._sender is not None and self._seen == self._count:
            self._is_over = True
            self._sender.cancel()
            return
        self._seen = self._count if self._sender is not None else 0
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)


class Bodies:
    """Refuses a body above the limit: before reading any where its length is told, else as soon as it is passed.

    One that does not arrive in time is refused too.
    """

    def __init__(self, app: App, services: Services):
        limits = services.settings.limits
        self._app, self._limit, self._timeout_s = app, limits.body_bytes, limits.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, with 413 where its body is too long and 408 where it takes too long."""
        if scope["type"] != "http" or scope["path"].startswith(_UNBOUNDED):
            return await self._app(scope, receive, send)
        told = header(scope, b"content-length")
        if told.isdecimal() and (len(told) > 18 or int(told) > self._limit):
            return await self._refuse(scope, receive, send, self._too_long())
        end = asyncio.get_running_loop().time() + self._timeout_s
        length, is_read, has_begun = 0, False, False
        broken: FieldError | None = None

        async def limited() -> Message:
            nonlocal length, is_read, broken
            if is_read:  # whoever asks now waits for the client to go away
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                broken = _TooSlow(f"the body did not arrive within {self._timeout_s:g} s (limits.body_timeout_s).")
                raise _Broken from None
            length += len(message.get("body", b""))
            is_read = not message.get("more_body", False)
            if length > self._limit:
                broken = self._too_long()
                raise _Broken
            return message

        async def answer(message: Message) -> None:
            nonlocal has_begun
            if broken is None or has_begun:  # else it is what the route made of _Broken
                has_begun = True
                await send(message)

        with contextlib.suppress(_Broken):
            await self._app(scope, limited, answer)
        if broken is not None and not has_begun:
            await self._refuse(scope, receive, send, broken)

    def _too_long(self) -> FieldError:
        return TooLargeError(
            f"the body is longer than {self._limit:,} bytes, the most this server reads (limits.body_bytes).",
            code="body_too_large",
        )

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: FieldError) -> None:
        await send_error(scope, send, error, close=True, more=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                left = self._limit
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _TooSlow(FieldError):
    status = 408


class _Broken(Exception):
    """The body is refused. Never leaves this module."""


def _route(scope: Scope) -> str:
    """A request's route as a label, of a fixed list: what was refused before it was routed is found by its path."""
    route = scope.get("route")
    if route is not None:
        return getattr(route, "path", "")
    paths = {getattr(one, "path", "") for one in getattr(scope.get("app"), "routes", ())}
    return scope["path"] if scope["path"] in paths else ""
