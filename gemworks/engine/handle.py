"""A request on its way, as its caller holds it: events come from the engine's thread, to a thread or an event loop."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import Any

from gemworks.engine.types import Request, Timings, TokenEvent, TokenLogprob


class Handle:
    """Iterate over it (`for`, or `async for`) to get a request's events; its n answers come mixed, by `event.index`.

    One reader. Leaving the loop before the end cancels the request and frees what it holds. What went wrong with the
    request is raised from the loop. After the last event, `scores` (kind "score") or `embedding` (kind "embed", [D]
    fp32) is there.
    """

    def __init__(self, request: Request, cancel: Callable[["Handle", int | None], None]):
        self.request = request
        self.scores: list[TokenLogprob | None] | None = None
        self.embedding: Any = None
        self._cancel = cancel
        self._answers = request.n if request.kind == "generate" else 1
        self._timings = [Timings()] * self._answers
        self._open = self._answers  # that have not ended
        self._items: deque[TokenEvent | BaseException] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None

    @property
    def is_done(self) -> bool:
        """Whether its last event was made; it may still be unread."""
        return self._open == 0

    def timings(self, index: int = 0) -> Timings:
        """Return the times and counts of one answer, as of its latest event."""
        return self._timings[index]

    def wait_first(self) -> None:
        """Wait until there is an event to read."""
        with self._changed:
            while not self._items:
                self._changed.wait()

    def cancel(self, index: int | None = None) -> None:
        """End the request now, or one of its answers: what is open gets one last event, finish_reason "cancelled"."""
        self._cancel(self, index)

    def __iter__(self) -> Generator[TokenEvent, None, None]:
        """Wait for and yield events to the end."""
        ended = 0
        try:
            while ended < self._answers:
                with self._changed:
                    while not self._items:
                        self._changed.wait()
                    item = self._items.popleft()
                if isinstance(item, BaseException):
                    ended = self._answers
                    raise item
                ended += item.finish_reason is not None
                yield item
        finally:
            if ended < self._answers:
                self.cancel()

    async def __aiter__(self) -> AsyncGenerator[TokenEvent, None]:
        """Yield events to the end without blocking the running event loop."""
        loop, arrived, ended = asyncio.get_running_loop(), asyncio.Event(), 0
        with self._changed:
            self._wake = partial(loop.call_soon_threadsafe, arrived.set)
        try:
            while ended < self._answers:
                arrived.clear()
                with self._changed:
                    item = self._items.popleft() if self._items else None
                if item is None:
                    await arrived.wait()
                    continue
                if isinstance(item, BaseException):
                    ended = self._answers
                    raise item
                ended += item.finish_reason is not None
                yield item
        finally:
            self._wake = None
            if ended < self._answers:
                self.cancel()

    # -- the engine's side ---------------------------------------------------------------------------------------

    def push(self, event: TokenEvent, timings: Timings) -> None:
        """Hand over an event."""
        self._timings[event.index] = timings
        if event.finish_reason is not None:
            self._open -= 1
        self._put(event)

    def fail(self, error: BaseException) -> None:
        """End the request with an error, once."""
        if self._open:
            self._open = 0
            self._put(error)

    def _put(self, item: TokenEvent | BaseException) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()
            wake = self._wake
        if wake is not None:
            try:
                wake()
            except RuntimeError:  # its event loop was closed: nobody reads any more
                self._wake = None
