"""Answers of a run on disk: one line of JSON an item, so that a run that was stopped goes on where it was.

{"gemworks_eval": 1, "task": ..., "model": ..., ...}     what was asked; a run with another does not go on
{"id": "weather-1", ...}                                 one answer, scored
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemworks.errors import ConfigError, StorageError

_VERSION = 1


class Results:
    """The answers of one model to one task; `path` None keeps them in memory only.

    `about` is what the answers depend on (model, task, options); a file with another is refused. A line that a crash
    left half written is dropped.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]):
        self.records: dict[str, dict[str, Any]] = {}
        self._path = path
        # As JSON would bring it back.
        self._about = json.loads(json.dumps({"gemworks_eval": _VERSION, **about}))
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                self._read(path)
            else:
                path.write_text(json.dumps(self._about) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: results cannot be kept there: {error.strerror or error}.") from error

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep one answer; `record["id"]` says whose."""
        self.records[str(record["id"])] = dict(record)
        if self._path is None:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"{self._path}: results cannot be kept: {error.strerror or error}.") from error

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", "replace").splitlines()
        try:
            about, *records = [json.loads(line) for line in lines]
            known = {str(record["id"]): record for record in records}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is no file of results ({error}). Give --out another name.") from error
        if about != self._about:
            other = _differences(about, self._about)
            raise ConfigError(
                f"{path}: holds answers to something else: {other}.\nGive --out another name, or delete the file."
            )
        self.records = known
        if len(whole) != len(data):
            os.truncate(path, len(whole))


def _differences(theirs: Any, ours: Mapping[str, Any]) -> str:
    if not isinstance(theirs, dict):
        return "it has no header"
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{name} is {str(theirs.get(name))[:60]}, not {str(ours.get(name))[:60]}" for name in names)
