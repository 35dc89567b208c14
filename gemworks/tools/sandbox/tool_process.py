"""The tool's own process, once it is shut in: build the module, call the function, send one frame, end.

A frame on the result's pipe is: nonce (32 bytes), length (8 digits of hex), that many bytes of JSON. Who does not
know the nonce (a library that prints to every descriptor, a program the tool started) cannot send one. The tool
itself runs beside this code and could: it may say about its own result what it likes, and the parent checks that
against the schema.
"""

import contextlib
import json
import os
import sys
import types
from typing import Any

_MAX_MESSAGE = 4000


def run(config: dict[str, Any], fd: int) -> None:
    """Do one job, "call" or "describe", and end the process."""
    try:
        answer = encoded(_describe(config) if config["job"] == "describe" else _call(config))
    except BaseException as error:  # SystemExit and KeyboardInterrupt of a tool are failures of that tool too
        answer = encoded(_failure(error, config["file"]))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    send(fd, config["nonce"], answer)
    os._exit(0)


def encoded(answer: dict[str, Any]) -> bytes:
    """The JSON of a frame; TypeError or ValueError where the result is none."""
    return json.dumps(answer, allow_nan=False).encode()


def send(fd: int, nonce: str, payload: bytes) -> None:
    """Write one frame."""
    data = memoryview(nonce.encode() + b"%08x" % len(payload) + payload)
    while data:
        data = data[os.write(fd, data) :]


def _module(config: dict[str, Any]) -> types.ModuleType:
    """The tool's module from its source, and modules it may import that are sent along."""
    for name, source in config["modules"].items():
        _execute(name, source, f"<{name}>")
    return _execute(config["module"], config["source"], config["file"])


def _execute(name: str, source: str, file: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__file__ = file
    if not source:
        module.__path__ = []  # an empty package
    sys.modules[name] = module
    exec(compile(source, file, "exec"), module.__dict__)
    return module


def _call(config: dict[str, Any]) -> dict[str, Any]:
    function: Any = _module(config)
    for part in config["function"].split("."):
        function = getattr(function, part)
    values = config["arguments"]
    if config["convert"]:
        from gemworks.tools import declare

        try:
            values = declare.converted(function, values)
        except declare.WrongValue as error:
            return {"invalid": str(error)[:_MAX_MESSAGE]}
    result = function(**values, **config["bound"])
    if hasattr(result, "__await__"):
        import asyncio

        result = asyncio.run(_awaited(result))
    if config["convert"]:
        result = declare.dumped(function, result)
    return {"value": result}


async def _awaited(coroutine: Any) -> Any:
    return await coroutine


def _describe(config: dict[str, Any]) -> dict[str, Any]:
    module = _module(config)
    from gemworks.tools import declare

    return {"value": declare.describe_module(module, tuple(config["bound_names"]))}


def _failure(error: BaseException, file: str) -> dict[str, Any]:
    """The error in words: its kind, its text and the tool's own line where it happened."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, MemoryError):
        return {"failed": "MemoryError: more memory than the policy's memory_bytes", "line": line}
    try:
        text = str(error)
    except Exception:
        text = ""
    return {"failed": f"{type(error).__name__}: {text}"[:_MAX_MESSAGE] if text else type(error).__name__, "line": line}
