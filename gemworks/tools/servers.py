"""MCP servers on stdio as tools, through the official client library.

The library is asynchronous and a server lives as long as its session, so each server has a thread with an event loop of
its own. A server is a program: by default it runs in the sandbox like any tool. What it tells of its tools (names,
descriptions, schemas) is data of a stranger: checked, cleaned, and no right is given by it. Its requests to us
(sampling, roots, elicitation) are not answered.
"""

import asyncio
import concurrent.futures
import logging
import os
import shutil
import threading
import time
from typing import Any

from gemworks.errors import BackendError, ConfigError
from gemworks.tools.output import clean_text
from gemworks.tools.sandbox.runner import Outcome, Sandbox
from gemworks.tools.toolbox import Tool, make_tool

_START_S = 30.0
_MOST_TOOLS = 256
_MAX_RESULT_CHARS = 1 << 20
_WAKE_S = 0.1  # how soon a call hears that it was stopped
_INSTALL = 'pip install "gemworks[tools]"'


class Server:
    """One running server. `close` ends it; it ends with this process in any case."""

    def __init__(self, name: str, command: list[str], sandbox: Sandbox | None, *, call_s: float):
        try:
            import mcp
        except ImportError as error:
            raise ConfigError(
                f"tools of MCP servers need the library mcp, which is not installed: {_INSTALL}"
            ) from error
        program = shutil.which(command[0]) if command else None
        if program is None:
            raise ConfigError(f"{name}: the server's program must exist, got {' '.join(command) or 'nothing'}.")
        self.name, self._call_s = name, call_s
        whole = [os.path.abspath(program), *command[1:]]
        line = sandbox.command(whole) if sandbox else whole
        self._where = f"server {name} in {sandbox.means}" if sandbox else f"server {name}, not shut in"
        self._parameters = mcp.StdioServerParameters(command=line[0], args=line[1:], cwd="/")
        self._loop = asyncio.new_event_loop()
        self._session: Any = None
        self._listed: list[Any] = []
        self._stop: asyncio.Event | None = None
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._serve, name=f"mcp-{name}", daemon=True)
        self._thread.start()
        try:
            self._ready.result(_START_S)
        except Exception as error:
            self.close()
            raise BackendError(f"{name}: the MCP server does not start: {_text(error) or 'no answer'}.") from error

    def tools(self, cost: float) -> list[Tool]:
        """Its tools as NAME_TOOL."""
        found = []
        for one in self._listed[:_MOST_TOOLS]:
            told = {"name": f"{self.name}_{one.name}", "description": one.description}
            told |= {"parameters": _of(one, "input_schema"), "returns": _of(one, "output_schema")}
            own = one.name

            def run(values: dict[str, Any], stop: threading.Event, own: str = own) -> Outcome:
                return self._call(own, values, stop)

            found.append(make_tool(told, run, cost=cost, where=self._where))
        return found

    def close(self) -> None:
        """End the server: its stdin closes, and it is killed where that does not help."""
        if self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _call(self, tool: str, values: dict[str, Any], stop: threading.Event) -> Outcome:
        if not self._thread.is_alive():
            return Outcome(status="failed", error=f"the server {self.name} has ended")
        waiting = asyncio.run_coroutine_threadsafe(self._session.call_tool(tool, values), self._loop)
        deadline = time.monotonic() + self._call_s
        while not waiting.done() and not stop.is_set() and time.monotonic() < deadline:
            concurrent.futures.wait([waiting], min(_WAKE_S, max(deadline - time.monotonic(), 0)))
        try:
            result = waiting.result(0)
        except concurrent.futures.TimeoutError:
            waiting.cancel()
            if stop.is_set():
                return Outcome(status="stopped", error="it was stopped; what the server began may go on")
            return Outcome(
                status="limit", error=f"the server {self.name} gave no answer in {self._call_s:g} s (call_s)"
            )
        except Exception as error:
            return Outcome(status="failed", error=clean_text(f"{type(error).__name__}: {error}")[:4000])
        texts = [part.text if part.type == "text" else f"[{part.type}]" for part in result.content]
        text = clean_text("\n".join(texts))
        if len(text) > _MAX_RESULT_CHARS:
            return Outcome(status="limit", error=f"its result is larger than {_MAX_RESULT_CHARS:,} characters")
        if _of(result, "is_error"):
            return Outcome(status="failed", error=text[:4000] or "no reason given")
        structured = _of(result, "structured_content")
        return Outcome(status="ok", value=text if structured is None else structured)

    def _serve(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as error:  # told to whoever waits for the start; afterwards calls fail
            if not self._ready.done():
                self._ready.set_exception(RuntimeError(_text(error)))
        finally:
            self._loop.close()

    async def _live(self) -> None:
        import mcp

        # The library logs what a server sends that is no message, with a traceback; the call's result tells enough.
        logging.getLogger("mcp.client.stdio").setLevel(logging.CRITICAL)
        self._stop = asyncio.Event()
        with open(os.devnull, "w") as nowhere:
            async with (
                mcp.stdio_client(self._parameters, errlog=nowhere) as (reading, writing),
                mcp.ClientSession(reading, writing) as session,
            ):
                await session.initialize()
                listed = await session.list_tools()
                self._session, self._listed = session, list(listed.tools)
                self._ready.set_result(None)
                await self._stop.wait()


def _of(thing: Any, name: str) -> Any:
    """An attribute by its name in version 2 of the library, or in version 1 (inputSchema)."""
    head, *rest = name.split("_")
    return (
        getattr(thing, name, None)
        if hasattr(thing, name)
        else getattr(thing, head + "".join(map(str.title, rest)), None)
    )


def _text(error: BaseException) -> str:
    """The innermost reason: task groups wrap errors in groups of errors."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return clean_text(str(error))[:500]
