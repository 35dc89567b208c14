"""A process of a run of several, watched: where jax ends it from within, somebody is left to say what happened.

    gemworks train --coordinator ...     this process: passes signals on, and says why the other one ended
      gemworks train ... --watched       the one that computes; what libraries write goes to DIRECTORY/process-I.log

jax's coordinator ends a process in C++ when another one is gone, with a page about its own tasks.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemworks.cli import console

_EXIT_ERROR = 2


def watch(arguments: Sequence[str], directory: Path, log: Path) -> int:
    """Run `gemworks ARGUMENTS` in a process group of its own and return its exit code; signals go to it once."""
    child = subprocess.Popen([sys.executable, "-m", "gemworks", *arguments], process_group=0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: child.send_signal(number))
    code = child.wait()
    if code >= 0:
        return code
    if code == -signal.SIGABRT:
        from gemworks.parallel.multihost import lost

        console.error(f"{lost(directory / 'checkpoints')}\nWhat jax said is in {log}.")
    else:
        console.error(
            f"this process of the run was ended by {signal.Signals(-code).name}"
            f"{' (by the machine, if memory ran out)' if code == -signal.SIGKILL else ''}; the others end too.\n"
            f"Start all processes again: they continue from the last whole checkpoint in {directory / 'checkpoints'}."
        )
    return _EXIT_ERROR


def log_native_output(log: Path) -> None:
    """Send what C++ libraries write to a file; Python's own streams stay."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        stream.flush()
        kept = os.dup(number)
        os.dup2(file, number)
        setattr(sys, name, os.fdopen(kept, "w", buffering=1, encoding="utf-8", errors=stream.errors))
    os.close(file)
