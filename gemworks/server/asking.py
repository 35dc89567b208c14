"""From a checked body to an engine's answer: admission, the model, the prompt in a thread, the call."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Request

if TYPE_CHECKING:
    from gemworks.engine.handle import Handle
    from gemworks.llm import LLM
    from gemworks.llm.asking import Ask, Prepared
    from gemworks.server.calls import Call
    from gemworks.server.host import Loaded

_Result = TypeVar("_Result")

# Rendering holds the interpreter but for the tokenizer and the decoding of pictures: two threads, so that a large
# picture delays no text.
_THREADS = 2


@asynccontextmanager
async def asked(
    request: Request, model: str | None, *, route: str, keep_alive: float | None = None
) -> "AsyncIterator[tuple[Loaded, Call]]":
    """Admit a call and hold its model loaded until it ends. Raises what either refuses it with."""
    state = request.app.state
    name = model or state.host.default
    async with (
        state.services.calls.admit(request, route=route, model=name) as call,
        state.host.use(name, keep_alive=keep_alive) as loaded,
    ):
        yield loaded, call


async def prepare(llm: "LLM", prompt: str | Sequence, **told: Any) -> "Prepared":
    """Return a call of LLM.prepare, rendered and checked in a thread. Raises RequestError, CapacityError."""
    return await in_thread(lambda: llm.prepare(prompt, **told))


def submit(llm: "LLM", prepared: "Prepared") -> "Ask":
    """Queue a prepared call. Whoever leaves before its end must `cancel` it."""
    return llm.submit(prepared)


def cancel(ask: "Ask") -> None:
    """End what is left of a call; nothing where it has ended.

    Closing `achunks()` is not enough: a generator that was never read runs none of its body.
    """
    ask.cancel()


async def ended(ask: "Ask") -> "Handle":
    """Return the handle of a call of kind "score" or "embed" when it holds the result; cancelled, so is the call."""
    try:
        return await ask.afinish()
    finally:
        cancel(ask)


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """Run `work` beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_threads(), work)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="render")
