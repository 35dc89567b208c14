"""From the start of a process to its first token, and the most memory it takes: a fresh process each time."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gemworks import env
from gemworks.bench.one_answer import FIRST
from gemworks.bench.system import SystemSpec
from gemworks.errors import BackendError


@dataclass(frozen=True, slots=True)
class Start:
    """One process: seconds to its first token, its peak memory (None where the system does not tell), its context."""

    first_s: float
    peak_bytes: int | None
    context: int


def start(spec: SystemSpec, ids: list[int], count: int, log: Path) -> Start:
    """Answer `ids` with `count` tokens in a new process, as a user's script would. Raises BackendError if it fails."""
    format, embed = spec.formats
    asked = {"path": spec.path, "quant": format, "embed": embed, "ids": ids, "count": count}
    changes = {"GEMWORKS_THREADS": str(spec.threads)}
    with log.open("ab") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "gemworks.bench.one_answer", json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env.for_child(changes),
        )
        with process:
            assert process.stdout is not None
            first = process.stdout.readline()
            first_s = time.perf_counter() - started
            rest = process.stdout.read()
    if process.returncode != 0 or first.strip() != FIRST:
        raise BackendError(f"{spec.name}: a fresh process ended with {process.returncode}; what it said is in {log}.")
    return Start(first_s, **json.loads(rest))
