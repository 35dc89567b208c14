"""Starting workers and talking to them: a `Remote` has a system's methods and runs them in the worker's process."""

import sys
import tempfile
from pathlib import Path

from gemworks.bench.child import Child
from gemworks.bench.system import SystemSpec
from gemworks.errors import BackendError


class Remote:
    """A system in another process. Close it, or use it in a `with`. Raises BackendError where the worker does."""

    def __init__(self, spec: SystemSpec, log: Path):
        """`log` gets what the worker prints."""
        self.spec = spec
        self._folder = tempfile.TemporaryDirectory(prefix="gemworks-bench-")
        # The worker's Python may have no gemworks, and must not see this one's other packages.
        Path(self._folder.name, "gemworks").symlink_to(Path(__file__).parents[1])
        changes = {"GEMWORKS_THREADS": str(spec.threads), "GEMWORKS_BACKEND": "xla" if spec.engine == "xla" else None}
        if spec.python:
            changes["PYTHONPATH"] = self._folder.name
        command = [spec.python or sys.executable, "-m", "gemworks.bench.worker"]
        self._child = Child(command, name=spec.name, log=log, changes=changes)
        try:
            self._child.ask(spec.to_json())
        except BackendError:
            self.close()
            raise

    def __getattr__(self, name: str):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda **arguments: self._child.ask({"do": name, "with": arguments})["result"]

    def close(self) -> None:
        """End the worker."""
        self._child.close()
        self._folder.cleanup()

    def __enter__(self) -> "Remote":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
