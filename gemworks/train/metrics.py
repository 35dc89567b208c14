"""The record of a run: one JSON object a line in metrics.jsonl, in the order of the steps, each step once.

A run that continues takes away the lines of steps that it will make again, and a last line that was cut short.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gemworks.weights.atomic import replacing

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """Appends records; open while a run is."""

    def __init__(self, directory: Path, first_step: int):
        self.path = directory / METRICS_FILE
        if self.path.is_file():
            kept = [json.dumps(record) + "\n" for record in read(self.path) if record["step"] <= first_step]
            with replacing(self.path, needed=sum(map(len, kept)), force=True) as partial:
                partial.write_text("".join(kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record. NaN and infinity, which JSON does not have, become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._file.write(json.dumps(clean) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a line that is not whole is left out."""

    def records(lines: Iterable[str]):
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue

    return list(records(path.read_text(encoding="utf-8").splitlines()))
