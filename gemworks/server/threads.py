"""Work beside the event loop."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def in_daemon(work: Callable[..., _Result], *arguments: Any) -> _Result:
    """Run minutes of work (loading, compiling) in a thread of its own that the process does not wait for at its end.

    Cancelling this leaves the thread running; its result is then dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_Result] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def run() -> None:
        try:
            told: tuple[Callable[[Any], None], Any] = future.set_result, work(*arguments)
        except BaseException as error:
            told = future.set_exception, error
        try:
            loop.call_soon_threadsafe(settle, *told)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits
            return

    threading.Thread(target=run, daemon=True, name="gemworks-load").start()
    return await future
