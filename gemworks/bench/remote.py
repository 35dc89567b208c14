"""Starting workers and talking to them: a `Remote` has a system's methods and runs them in the worker's process."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

from gemworks import env
from gemworks.bench.system import SystemSpec
from gemworks.errors import BackendError


class Remote:
    """A system in another process. Close it, or use it in a `with`. Raises BackendError where the worker does."""

    def __init__(self, spec: SystemSpec, log: Path):
        """`log` gets what the worker prints."""
        self.spec = spec
        self._log = log
        self._folder = tempfile.TemporaryDirectory(prefix="gemworks-bench-")
        # The worker's Python may have no gemworks, and must not see this one's other packages.
        Path(self._folder.name, "gemworks").symlink_to(Path(__file__).parents[1])
        changes = {"GEMWORKS_THREADS": str(spec.threads), "GEMWORKS_BACKEND": "xla" if spec.engine == "xla" else None}
        if spec.python:
            changes["PYTHONPATH"] = self._folder.name
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [spec.python or sys.executable, "-m", "gemworks.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                env=env.for_child(changes),
            )
        try:
            self._exchange(spec.to_json())
        except BackendError:
            self.close()
            raise

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda **arguments: self._exchange({"do": name, "with": arguments})

    def close(self) -> None:
        """End the worker."""
        stdin, stdout = self._pipes()
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()
        self._folder.cleanup()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _exchange(self, message: dict[str, Any]) -> Any:
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise BackendError(f"{self.spec.name}: its process ended with {code}. What it said is in {self._log}.")
        reply = json.loads(line)
        if "error" in reply:
            raise BackendError(f"{self.spec.name}: {reply['error'].rstrip('.')}. What it said is in {self._log}.")
        return reply["result"]
