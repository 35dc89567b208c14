"""The servers that are measured, each a process of its own, and the bare engine that ours stands on.

    ours              `gemworks serve`, as a user starts it
    llama-server      llama.cpp's own server: a program of a llama.cpp build, its path is an option
    llama_cpp.server  the server of llama-cpp-python, on uvicorn, where there is no llama-server: one answer at a time,
                      so it is named as what it is

The bare engine is `python -m gemworks.bench.serve_systems`: an LLM with the server's settings, asked below everything
that makes texts, for lines of JSON.
"""

import asyncio
import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemworks import env
from gemworks.bench.engine_load import Record, Timer, closed_loop, greedy
from gemworks.bench.serve_client import get_text
from gemworks.errors import BackendError

START_S = 600.0  # a 1B model packs and compiles in two minutes on two cores, the first time
READY = re.compile(r"Listening on http://([^:\s]+):(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """How a server is set up: model file or directory, format of ours, sizes, threads."""

    model: str
    quant: str | None
    context: int
    sequences: int
    threads: int
    queue: int = 512


class Server:
    """A server that runs. Close it, or use it in a `with`."""

    def __init__(self, name: str, command: Sequence[str], log: Path, *, threads: int, port: int | None):
        """`port`: where it will listen; None: it says so on stdout. Raises BackendError where it does not start."""
        self.name, self._log = name, log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE if port is None else stderr,
                stderr=stderr,
                env=env.for_child({"GEMWORKS_THREADS": str(threads)}),
            )
        self.host, self.port = "127.0.0.1", port or 0
        try:
            if port is None:
                self._wait_for_line()
            else:
                asyncio.run(self._wait_for_health())
        except BaseException:
            self.close()
            raise

    def resident_bytes(self) -> int:
        """Memory the process has resident now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.M)
        assert found is not None
        return int(found[1]) * 1024

    def close(self) -> None:
        """End the process, as a service manager does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _wait_for_line(self) -> None:
        assert self.process.stdout is not None
        until, said = time.monotonic() + START_S, ""
        while time.monotonic() < until:
            if select.select([self.process.stdout], [], [], 0.5)[0]:
                said += os.read(self.process.stdout.fileno(), 65536).decode(errors="replace")
            if found := READY.search(said):
                self.port = int(found[2])
                return
            self._check_alive()
        raise BackendError(f"{self.name} was not ready after {START_S:.0f} s. What it said is in {self._log}.")

    async def _wait_for_health(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                if '"ok"' in await get_text(self.host, self.port, "/health") or await self._has_models():
                    return
            self._check_alive()
            await asyncio.sleep(0.2)
        raise BackendError(f"{self.name} was not ready after {START_S:.0f} s. What it said is in {self._log}.")

    async def _has_models(self) -> bool:
        return '"object"' in await get_text(self.host, self.port, "/v1/models")

    def _check_alive(self) -> None:
        if (code := self.process.poll()) is not None:
            raise BackendError(f"{self.name} ended with {code}. What it said is in {self._log}.")


def start_ours(serving: Serving, folder: Path, log: Path) -> Server:
    """Start `gemworks serve` with a file of settings in `folder`."""
    settings = folder / "serve.toml"
    quant = f"quant = {json.dumps(serving.quant)}\n" if serving.quant else ""
    settings.write_text(
        f"host = '127.0.0.1'\nport = 0\nusage_file = {json.dumps(str(folder / 'usage.sqlite'))}\n"
        f"[models]\nnames = [{json.dumps(serving.model)}]\n{quant}"
        f"context = {serving.context}\nmax_sequences = {serving.sequences}\n"
        f"[limits]\nqueue = {serving.queue}\n[logs]\nlevel = 'warning'\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "gemworks", "serve", "--config", str(settings)]
    return Server("ours", command, log, threads=serving.threads, port=None)


def start_llama_server(program: Path, serving: Serving, log: Path) -> Server:
    """Start llama-server with a slot for each sequence and a context for each slot, and nothing kept of prompts."""
    port = _free_port()
    sizes = ["-np", str(serving.sequences), "-c", str(serving.sequences * serving.context), "--no-kv-unified"]
    threads = ["-t", str(serving.threads), "-tb", str(serving.threads)]
    command = [str(program), "-m", serving.model, "--host", "127.0.0.1", "--port", str(port), *sizes, *threads]
    command += ["--no-ui", "--no-cache-prompt", "--cache-ram", "0"]
    return Server("llama-server", command, log, threads=serving.threads, port=port)


def start_llama_cpp_python(serving: Serving, log: Path) -> Server:
    """Start the server of llama-cpp-python, which answers one request at a time."""
    port = _free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", serving.model, "--port", str(port)]
    command += ["--n_ctx", str(serving.context), "--n_threads", str(serving.threads)]
    return Server("llama_cpp.server", command, log, threads=serving.threads, port=port)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class BareEngine:
    """The engine of an LLM that is loaded as the server loads it, with nothing above."""

    def __init__(self, serving: Serving):
        from gemworks.llm import LLM

        self._llm = LLM(serving.model, quant=serving.quant, context=serving.context, max_sequences=serving.sequences)
        self._llm._engine.warm_up()

    def closed_loop(self, streams: Sequence[Sequence[tuple[list[int], int, float]]]) -> dict[str, Any]:
        """Answer (prompt, tokens, pause before) triples, all streams at once, each its own in turn.

        Returns times and counts.
        """
        timer = Timer()
        asked = [[greedy(prompt, count) for prompt, count, _ in stream] for stream in streams]
        pauses_s = [[pause_s for *_, pause_s in stream] for stream in streams]
        began = timer.now()
        records: list[Record] = asyncio.run(closed_loop(self._llm._engine, asked, timer, pauses_s))
        if errors := [record.error for record in records if record.error]:
            raise BackendError(errors[0])
        return {
            "seconds": max(record.times[-1] for record in records) - began,
            "first_s": [(record.prompt_tokens, record.ttft_s) for record in records if record.times],
            "answer_tokens": sum(len(record.tokens) for record in records),
            "prompt_tokens": sum(record.prompt_tokens for record in records),
        }


def bare_command(serving: Serving) -> list[str]:
    """Return the command of a worker with a BareEngine."""
    return [sys.executable, "-m", "gemworks.bench.serve_systems", json.dumps(asdict(serving))]


def main() -> None:
    """Load the bare engine, say so, then answer a line of JSON (closed_loop's streams) with a line."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        engine = BareEngine(Serving(**json.loads(sys.argv[1])))
        reply({"ready": True})
        for line in sys.stdin:
            reply(engine.closed_loop(json.loads(line)["streams"]))
    except Exception as error:
        traceback.print_exc()
        reply({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
