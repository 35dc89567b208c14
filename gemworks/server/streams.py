"""Answers over HTTP while they are made, and what happens when nobody reads them any more.

An answer is one async generator of bytes that does all of a call: admission, the model, the prompt, the tokens. What
it raises before its first piece becomes an HTTP status; afterwards the status is sent, and it becomes an error piece. A
client that goes away closes the generator, and leaving its contexts frees what the call held. A client that reads
slowly holds its own generator and no other: a piece is awaited until the socket took it.

A stream that waits takes 32 KB, of which uvicorn's connection is a third: one task for the answer and one that waits
for the client's going away, no task group.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")

_MERGED = 64  # items that wait for a slow reader before the streams do


class ClientGone(Exception):
    """Whoever asked has closed the connection: there is nobody to answer."""


class JSONBytes(Response):
    """JSON that was written already."""

    media_type = "application/json"


class EventStream(Response):
    """A stream whose first piece was made; the rest follows as it is made.

    failed: an exception as the piece that tells it.
    """

    def __init__(
        self,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
        watch: "Watch",
        *,
        media_type: str,
        failed: Callable[[Exception], bytes],
    ):
        super().__init__(media_type=media_type)
        self._first, self._pieces, self._watch, self._failed = first, pieces, watch, failed
        del self.headers["content-length"]
        # Proxies would collect the pieces otherwise (nginx: proxy_buffering).
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer to its end, or until the client is gone."""
        try:
            await self._watch.run(self._send(send))
        except ClientGone:
            return

    async def _send(self, send: Send) -> None:
        pieces = self._pieces
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            piece: bytes | None = self._first
            self._first = b""
            while piece is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                try:
                    piece = await anext(pieces, None)
                except Exception as error:  # of the answer, not of the connection
                    await send({"type": "http.response.body", "body": self._failed(error), "more_body": True})
                    break
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await pieces.aclose()


class Watch:
    """Notices that the client is gone while an answer is made. The request's body must have been read."""

    def __init__(self, request: Request):
        self._gone = asyncio.ensure_future(_gone(request.receive))

    async def run(self, work: Coroutine[Any, Any, _Result], *, last: bool = True) -> _Result:
        """Return the result of `work`, in this task. Raises ClientGone, having cancelled it, when the client goes away.

        last: nothing of this request follows.
        """
        task = asyncio.current_task()
        assert task is not None
        hit = False

        def cancel(_: object) -> None:
            nonlocal hit
            hit = True
            task.cancel()

        self._gone.add_done_callback(cancel)
        try:
            return await work
        except asyncio.CancelledError:
            if hit and task.uncancel() == 0:
                raise ClientGone from None
            raise
        finally:
            self._gone.remove_done_callback(cancel)
            if last:
                self._gone.cancel()

    def stop(self) -> None:
        """Watch no longer; what still runs ends as if the client were gone."""
        self._gone.cancel()


async def open_stream(
    request: Request,
    pieces: AsyncGenerator[bytes, None],
    *,
    media_type: str = SSE,
    failed: Callable[[Exception], bytes],
) -> Response:
    """Return the response that streams `pieces`, once the first one is made; what was raised until then is raised."""
    watch = Watch(request)
    try:
        first = await watch.run(anext(pieces), last=False)
    except ClientGone:
        await pieces.aclose()
        return _nobody()
    except BaseException:
        watch.stop()
        await pieces.aclose()
        raise
    return EventStream(first, pieces, watch, media_type=media_type, failed=failed)


async def finished(request: Request, answer: Coroutine[Any, Any, Response]) -> Response:
    """Return the response of `answer`, which is cancelled when the client goes away."""
    try:
        return await Watch(request).run(answer)
    except ClientGone:
        return _nobody()


async def merged(streams: Sequence[AsyncGenerator[_Item, None]]) -> AsyncGenerator[tuple[int, _Item], None]:
    """Yield (which stream, its item) of several streams as they come; closing it closes them."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    ready: asyncio.Queue[tuple[int, _Item] | BaseException | None] = asyncio.Queue(maxsize=_MERGED)

    async def pump(place: int, stream: AsyncGenerator[_Item, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await ready.put((place, item))
        except Exception as error:
            await ready.put(error)
        else:
            await ready.put(None)

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            got = await ready.get()
            if isinstance(got, BaseException):
                raise got
            if got is None:
                left -= 1
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


def _nobody() -> Response:
    # 499 as nginx logs it: the connection is closed, so nobody reads this.
    return Response(status_code=499)
