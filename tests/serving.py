"""A real `gemworks serve` in a process of its own, on a port of its own."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gemworks import env

_START_S = 180
_STOP_S = 20


@dataclass
class Server:
    """A running server: its address, its process and what it has written so far."""

    url: str
    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"


@contextmanager
def serving(folder: Path, *arguments: str, models: tuple[str, ...] = ("tiny",)) -> Iterator[Server]:
    """Start `gemworks serve` with a home of its own, wait until it listens, and stop it with SIGTERM afterwards.

    Programs are compiled as requests need them: all of them would take longer than the tests. `--config` of `arguments`
    replaces this.
    """
    if "--config" not in arguments:
        config = folder / "serve.toml"
        config.write_text("[models]\nwarm_up = false\n")
        arguments = (*arguments, "--config", str(config))
    command = [sys.executable, "-m", "gemworks", "serve", *models, "--port", "0", *arguments]
    told = env.for_child({"GEMWORKS_HOME": str(folder / "home"), "GEMWORKS_HOST": None, "HF_HUB_OFFLINE": "1"})
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=told
    )
    lines: list[str] = []
    listening = threading.Event()
    reader = threading.Thread(target=_read, args=(process, lines, listening), daemon=True)
    reader.start()
    try:
        begun = time.monotonic()
        while not listening.wait(0.05):
            if process.poll() is not None or time.monotonic() - begun > _START_S:
                pytest.fail(f"{' '.join(command)} did not listen; it wrote:\n{''.join(lines)[-4000:]}")
        [url] = re.findall(r"Listening on (http\S+)", "".join(lines))[:1]
        yield Server(url, process, lines)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        assert process.stdout is not None
        process.stdout.close()


def _read(process: subprocess.Popen, lines: list[str], listening: threading.Event) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if "Listening on" in line:
            listening.set()
