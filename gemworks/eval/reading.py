"""Task and case files, checked: what is wrong with one is named by file and line."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemworks.errors import ConfigError, StorageError

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class Table:
    """The keys of one TOML file or JSON line, taken one by one; `where` begins every error."""

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: must be an object, got {_short(values)}.")
        self.where = where
        self._all: dict[str, Any] = values
        self._values: dict[str, Any] = dict(values)
        self._known: list[str] = []

    def take(self, name: str, kind: type, default: Any = ...) -> Any:
        """The value of a key; of `kind`, where a whole number is a number too. Without `default` it must be there."""
        self._known.append(name)
        if name not in self._values:
            if default is ...:
                raise self.wrong(f"must have {name}, {_WORDS[kind]}")
            return default
        value = self._values.pop(name)
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(f"{name} must be {_WORDS[kind]}, got {_short(value)}")
        return value

    def texts(self, name: str, default: Any = ...) -> list[str]:
        """The value of a key that is a list of texts."""
        found = self.take(name, list, default)
        if not all(isinstance(one, str) for one in found):
            raise self.wrong(f"{name} must be a list of texts, got {_short(found)}")
        return found

    def number(self, name: str, default: float, least: float, most: float = float("inf"), *, whole: bool = True) -> Any:
        """The value of a key that is a number in a range."""
        value = self.take(name, int if whole else float, default)
        if not least <= value <= most:
            span = f"{least:,g} or more" if most == float("inf") else f"between {least:,g} and {most:,g}"
            raise self.wrong(f"{name} must be {span}, got {value}")
        return value

    def all(self) -> dict[str, Any]:
        """Every key and value there ever was; those that nobody took are taken."""
        self._values.clear()
        return dict(self._all)

    def end(self) -> None:
        """Refuse keys that nobody took."""
        if self._values:
            raise self.wrong(f"has no {', '.join(self._values)}; known: {', '.join(self._known)}")

    def wrong(self, text: str) -> ConfigError:
        """The error that this table is wrong, to be raised."""
        return ConfigError(f"{self.where}: {text}.")


def read_bytes(path: Path, what: str) -> bytes:
    """The content of a file; StorageError where there is none. `what` is its name in the error."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: the {what} cannot be read: {error.strerror or error}.") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(read_bytes(path, "task").decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: a task must be TOML in UTF-8: {error}.") from error


def read_lines(path: Path, what: str = "data") -> list[Table]:
    """The objects of a JSONL file, one a line; empty lines are skipped."""
    found = []
    for number, line in enumerate(read_bytes(path, what).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            found.append(Table(json.loads(line.decode("utf-8")), where))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{where}: must be one JSON object in UTF-8: {error}.") from error
    if not found:
        raise ConfigError(f"{path}: has no line. A {what} file is JSON Lines, one object a line.")
    return found


def digest(table: Mapping[str, Any], *files: Path) -> str:
    """SHA-256 of a task: its keys and the content of its files."""
    hasher = hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode())
    for file in files:
        hasher.update(hashlib.sha256(read_bytes(file, "data")).digest())
    return hasher.hexdigest()


def filled(template: str, values: Mapping[str, Any], where: str) -> str:
    """A template with {name} replaced by an item's values."""
    try:
        return template.format_map(dict(values))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: the template {_short(template)} cannot be filled: {error!r}.") from error


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
