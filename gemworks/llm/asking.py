"""A call in progress: events of the engine become pieces of text and finished answers."""

import dataclasses
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemworks.engine.types import Request
from gemworks.llm.answers import Answer, Chunk
from gemworks.llm.calling import Calling
from gemworks.llm.prompts import Prompt
from gemworks.llm.structured import Form
from gemworks.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemworks.engine.handle import Handle


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that can be computed: the engine's request, its prompt as rendered, the stop strings, the form of its
    answer and the functions that it may call."""

    request: Request
    prompt: Prompt
    stops: tuple[str, ...] = ()
    form: Form | None = None
    calling: Calling | None = None


class Ask:
    """The engine's handle and the texts that its answers become."""

    def __init__(self, handle: "Handle", asked: Prepared, *, tokenizer: Tokenizer, load_s: float):
        request = asked.request
        self._handle, self._load_s = handle, load_s
        self._prompt, self._form = asked.prompt, asked.form
        calling = asked.calling
        told: Any = {"marks": calling.marks} if calling else {}
        self._answers = [
            Answer(
                tokenizer,
                len(request.prompt),
                request.params,
                asked.stops,
                reader=calling.reader(asked.form) if calling else None,
                **told,
            )
            for _ in range(request.n)
        ]

    def chunks(self) -> Generator[Chunk, None, None]:
        """Yield pieces of text as they come; stop the engine where a stop string ends the last answer."""
        events = iter(self._handle)
        try:
            for event in events:
                if (chunk := self._push(event)) is not None:
                    yield chunk
                if self._is_done():
                    return
        finally:
            events.close()

    async def achunks(self) -> AsyncGenerator[Chunk, None]:
        """As `chunks`, for an event loop."""
        events = aiter(self._handle)
        try:
            async for event in events:
                if (chunk := self._push(event)) is not None:
                    yield chunk
                if self._is_done():
                    return
        finally:
            await events.aclose()

    def cancel(self) -> None:
        """End the request if it has not ended; for who stops before reading, as closing a generator does later."""
        self._handle.cancel()

    def finish(self) -> "Handle":
        """Wait for a request of a kind that draws no tokens, and return the handle, which has its result."""
        for _ in self._handle:
            pass
        return self._handle

    async def afinish(self) -> "Handle":
        """As `finish`, for an event loop; cancelling it cancels the request."""
        async for _ in self._handle:
            pass
        return self._handle

    def last(self) -> Any:
        """Wait for the end and return the Completion, or the list of n."""
        ended = {chunk.index: chunk.completion for chunk in self.chunks() if chunk.completion is not None}
        return ended[0] if len(self._answers) == 1 else [ended[i] for i in range(len(self._answers))]

    def _push(self, event) -> Chunk | None:
        answer = self._answers[event.index]
        if answer.is_done:
            return None  # events that were on their way when a stop string ended it
        timings = dataclasses.replace(self._handle.timings(event.index), load_s=self._load_s)
        encode_s = min(self._prompt.cost.seconds, timings.prefill_s)
        chunk = answer.push(event, dataclasses.replace(timings, prefill_s=timings.prefill_s - encode_s))
        if answer.is_done and event.finish_reason is None:
            self._handle.cancel(event.index)
        if chunk.completion is None or not (self._prompt.spans or self._form):
            return chunk
        told: dict[str, Any] = {"form": self._form}
        if self._prompt.spans:
            told |= {"image_tokens": self._prompt.image_tokens, "encode_s": encode_s}
        return dataclasses.replace(chunk, completion=dataclasses.replace(chunk.completion, **told))

    def _is_done(self) -> bool:
        return all(answer.is_done for answer in self._answers)
