"""uvicorn's HTTP with a limit on the time in which a request's line and headers arrive.

uvicorn closes a connection that is idle between two requests. One that sends nothing at all, or a header now and then,
it keeps for ever, and a few thousand of those use up what a process may open. A body's time is middleware.py's.
"""

from asyncio import TimerHandle, Transport

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MESSAGE = b"the request's headers did not arrive in time (limits.header_timeout_s)."
_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%s" % (len(_MESSAGE), _MESSAGE)
)


class Protocol(HttpToolsProtocol):
    """One connection. Use a subclass that `with_timeout` makes."""

    header_timeout_s = 30.0

    def __init__(self, *arguments, **told):
        super().__init__(*arguments, **told)
        self._headers_due: TimerHandle | None = None
        self._has_begun = False  # a request whose headers are not whole

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for a first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; what leaves the connection idle (an empty line) does not stop the clock."""
        super().data_received(data)
        if self._headers_due is None and self.timeout_keep_alive_task is None and self._is_idle():
            self._wait()

    def on_message_begin(self) -> None:
        """The first byte of a request: the rest of its headers is due."""
        super().on_message_begin()
        self._has_begun = True
        if self._headers_due is None:
            self._wait()

    def on_headers_complete(self) -> None:
        """All headers are there."""
        self._has_begun = False
        self._stop_waiting()
        super().on_headers_complete()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if not self.transport.is_closing():
            self._headers_due = self.loop.call_later(self.header_timeout_s, self._too_late)

    def _stop_waiting(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def _too_late(self) -> None:
        self._headers_due = None
        if self.transport.is_closing():
            return
        if not self._is_idle():  # the next request is late, and the answer to the one before is under way
            return self._wait()
        if self._has_begun:
            self.transport.write(_ANSWER)
        self.transport.close()


def with_timeout(header_timeout_s: float) -> type[Protocol]:
    """Return the protocol for uvicorn's `http`, with this time for headers."""
    return type("TimedProtocol", (Protocol,), {"header_timeout_s": header_timeout_s})
