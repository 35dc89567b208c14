"""What every call of a model goes through, in all APIs: draining, the queue, the key's limits, the books at the end.

    async with calls.admit(request, route="chat", model=name) as call:
        call.charge(prompt_tokens, max_tokens)
        ... call.first_token(), call.token() ...
        call.done(completion)

A call that leaves without `done` was cancelled (its client went away, or its task was) or failed. Event loop only.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gemworks.errors import CapacityError, LimitError
from gemworks.server.keys import Caller
from gemworks.server.limits import Limits, Ticket
from gemworks.server.record import Record

if TYPE_CHECKING:
    from starlette.requests import Request

    from gemworks.llm.answers import Completion
    from gemworks.server.metrics import Metrics, ModelMetrics

# A guess of how long the queue is full, where nothing has been answered yet.
_FIRST_GUESS_S = 1.0
_LONGEST_GUESS_S = 60.0


class Call:
    """One admitted call. `key` and `priority` are the engine's (fairness among keys)."""

    __slots__ = (
        "_calls",
        "_clock",
        "_drawn",
        "_is_done",
        "_last",
        "_max_tokens",
        "_metrics",
        "_record",
        "_ticket",
        "key",
        "priority",
    )

    def __init__(
        self, calls: "Calls", record: Record, ticket: Ticket, metrics: "ModelMetrics", key: str, priority: int
    ):
        self._calls, self._record, self._ticket, self._metrics = calls, record, ticket, metrics
        self._clock = calls.clock
        self._drawn = 0
        self._last = 0.0  # when the last token came; 0 before the first
        self._is_done = False
        self.key, self.priority = key, priority

    @property
    def id(self) -> str:
        """The request's id, for messages and logs of the engine."""
        return self._record.id

    def charge(self, prompt_tokens: int, max_tokens: int | None = None) -> None:
        """Count what the call may take against its key's tokens, before anything is computed. Raises LimitError.

        max_tokens of all its answers together; None (until the context is full) counts what is drawn at the end.
        """
        try:
            self._ticket.charge(prompt_tokens + (max_tokens or 0))
        except LimitError:
            self._metrics.refused("tokens")
            raise
        self._record.prompt_tokens += prompt_tokens

    def first_token(self) -> None:
        """Note that the first token came; `token` does it too. Where there are none, that the call left the queue."""
        if self._last == 0.0:
            self._last = now = self._clock()
            self._record.first_token_s = now - self._record.started
            self._metrics.first_token(self._record.first_token_s)
            self._calls.left_queue(now)

    def token(self, count: int = 1) -> None:
        """Note that `count` tokens came together. About a microsecond."""
        self._drawn += count
        last = self._last
        if last == 0.0:
            self.first_token()
            return
        self._last = now = self._clock()
        if count:
            self._metrics.inter_token((now - last) / count, count)

    def done(
        self, answers: "Completion | Sequence[Completion] | None" = None, *, prompt_tokens: int | None = None
    ) -> None:
        """Note what the call took: its completions, or the prompt alone where it has none (embeddings, scores)."""
        record, self._is_done = self._record, True
        made: Sequence[Any] = () if answers is None else answers if isinstance(answers, Sequence) else (answers,)
        if prompt_tokens is not None:
            record.prompt_tokens = prompt_tokens
        for answer in made:
            record.completion_tokens += answer.completion_tokens
            record.finish_reasons.append(answer.finish_reason)
        if made:
            first = made[0]
            record.prompt_tokens = record.prompt_tokens or first.prompt_tokens
            cached = first.timings.cached_tokens
            if prompt_tokens is not None:  # of several prompts
                cached = min(sum(answer.timings.cached_tokens for answer in made), prompt_tokens)
            record.cached_tokens = cached
            record.image_tokens = first.image_tokens
            record.queue_s = first.timings.queue_s

    def ended(self, error: BaseException | None) -> None:
        """Close the books; by `Calls.admit` alone."""
        record = self._record
        is_cancel = isinstance(error, asyncio.CancelledError | GeneratorExit)
        if self._is_done:
            record.outcome = "done"
        elif error is None or is_cancel:
            record.outcome = "cancelled"
        else:
            record.outcome = "refused" if isinstance(error, CapacityError) else "failed"
            record.error = type(error).__name__
        if self._last == 0.0:
            self._calls.left_queue(self._clock())
        if not self._is_done:
            record.completion_tokens = self._drawn
        is_free = not self._is_done and self._drawn == 0 and not is_cancel
        self._ticket.settle(0 if is_free else record.prompt_tokens + record.completion_tokens)
        self._ticket.close()
        self._metrics.ended(record)


class Calls:
    """Admits calls. queue: how many may wait for their first token.

    finished(record) is told of each request at its end, stopping(running) when draining begins.
    """

    def __init__(
        self,
        queue: int,
        limits: Limits,
        metrics: "Metrics",
        finished: Callable[[Record], Any],
        *,
        stopping: Callable[[int], Any] = lambda running: None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.clock = clock
        self.draining = False
        self._queue, self._limits, self._metrics = queue, limits, metrics
        self._finished, self._stopping = finished, stopping
        self.waiting = 0
        self.running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._pace_s = 0.0  # between two calls that left the queue, smoothed
        self._left = 0.0

    @asynccontextmanager
    async def admit(self, request: "Request", *, route: str, model: str | None) -> AsyncIterator[Call]:
        """Let a call of a model begin. Raises LimitError or, while draining, CapacityError."""
        state = request.state
        record: Record = state.record
        record.call, record.model = route, self._metrics.label(model)
        call = self._enter(record, state)
        record.enter()
        error: BaseException | None = None
        try:
            yield call
        except BaseException as raised:
            error = raised
            raise
        finally:
            call.ended(error)
            self.running -= 1
            if self.running == 0:
                self._idle.set()
            record.leave(self._finished)

    def _enter(self, record: Record, state: Any) -> Call:
        caller: Caller = state.caller
        metrics = self._metrics.of(record.model)
        try:
            if self.draining:
                metrics.refused("draining")
                raise CapacityError("this server is stopping and takes no new calls. Try again in a moment.")
            if self.waiting >= self._queue:
                metrics.refused("queue")
                wait = self.retry_after_s()
                raise LimitError(
                    f"{self.waiting:,} calls wait already, as many as this server lets wait. "
                    f"Try again in {wait:.0f} s.",
                    retry_after_s=wait,
                )
            try:
                ticket = self._limits.enter(caller)
            except LimitError:
                metrics.refused("key")
                raise
        except CapacityError as error:
            record.outcome, record.error = "refused", type(error).__name__
            raise
        state.ticket = ticket
        self.waiting += 1
        self.running += 1
        self._idle.clear()
        return Call(self, record, ticket, metrics, state.fair_key, caller.priority)

    def left_queue(self, now: float) -> None:
        """Note that a call got its first token, or ended without one."""
        self.waiting -= 1
        if self._left:
            self._pace_s += 0.1 * (min(now - self._left, _LONGEST_GUESS_S) - self._pace_s)
        self._left = now

    def retry_after_s(self) -> float:
        """Return when a full queue may have room: the time in which a tenth of it was taken in, 1 to 60 s."""
        return min(max(self._pace_s * self._queue / 10, _FIRST_GUESS_S), _LONGEST_GUESS_S)

    def drain(self) -> None:
        """Refuse new calls from now on; those that run go on."""
        if not self.draining:
            self.draining = True
            self._stopping(self.running)

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()
