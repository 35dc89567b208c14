"""A process of its own that answers a line of JSON with a line of JSON; what it prints besides goes to a log."""

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gemworks import env
from gemworks.errors import BackendError


class Child:
    """The process, started. Close it, or use it in a `with`."""

    def __init__(self, command: Sequence[str], *, name: str, log: Path, changes: Mapping[str, str | None]):
        """`changes` are to its environment (env.for_child); `name` is what errors call it."""
        self.name, self._log = name, log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                env=env.for_child(dict(changes)),
            )

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a message and return the reply. Raises BackendError for one with an "error", and where none comes."""
        stdin, _ = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
        return self.reply()

    def reply(self) -> dict[str, Any]:
        """Return what it says next, as `ask` does."""
        line = self._pipes()[1].readline()
        reply = json.loads(line) if line else {"error": f"its process ended with {self.process.wait()}"}
        if "error" in reply:
            raise BackendError(f"{self.name}: {reply['error'].rstrip('.')}. What it said is in {self._log}.")
        return reply

    def close(self) -> None:
        """End the process."""
        stdin, stdout = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        stdout.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        return self.process.stdin, self.process.stdout
