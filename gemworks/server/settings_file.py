"""Settings from a TOML file and from options over it; what is unknown or of a wrong type is refused with its line.

host = "0.0.0.0"
[models]
names = ["gemma3:1b"]
[limits]
body_bytes = "20MB"
"""

import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from gemworks.errors import ConfigError, StorageError
from gemworks.server.settings import Help, Settings, described, sections

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def read_settings(file: Path | None, options: Mapping[str, tuple[str, Any]] | None = None) -> Settings:
    """Return the settings of a file (None: the defaults) with `options` over it.

    options: dotted name ("models.context") -> what messages call it ("--context") and its value; None is "not said".
    Raises ConfigError or StorageError.
    """
    text = _read(file) if file is not None else ""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not TOML: {error}.") from error
    where = _Lines(file, text)
    values = _flat(said, where)
    base = file.parent if file is not None else Path()
    checked = {name: _value(name, value, where, base) for name, value in values.items()}
    for name, (shown, value) in (options or {}).items():
        if value is not None:
            checked[name] = _value(name, value, lambda _, shown=shown: shown, Path())
    return _built(checked)


def resolved(settings: Settings) -> Iterator[tuple[str, str, bool]]:
    """Yield every setting as (dotted name, value as TOML writes it, whether it is the default). No secrets in it."""
    plain = Settings()
    for name, kind in sections().items():
        ours, theirs = (getattr(settings, name), getattr(plain, name)) if name else (settings, plain)
        for one in described(kind):
            value = getattr(ours, one)
            yield _dotted(name, one), written(value), value == getattr(theirs, one)


def written(value: Any) -> str:
    """A value as TOML writes it; a dash for one that is not set. Passwords in addresses are masked."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:_}" if isinstance(value, int) and abs(value) > 65_535 else f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(written(one) for one in value)}]"
    masked = re.sub(r"://[^/@]*@", "://***@", str(value))
    escaped = masked.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@cache
def _known() -> dict[str, tuple[Any, Help]]:
    """Dotted name -> type and help of every setting."""
    return {_dotted(name, one): told for name, kind in sections().items() for one, told in described(kind).items()}


def _dotted(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{file} (--config) cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not TOML: it must be UTF-8.") from error


class _Lines:
    """Says where in a file a setting stands. tomllib does not tell, so tables and keys are looked for once more."""

    def __init__(self, file: Path | None, text: str):
        self._file = file
        self._lines: dict[str, int] = {}
        table = ""
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
                table = _unquoted(header[1])
                self._lines.setdefault(table, number)
            elif key := re.match(
                r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", line
            ):
                self._lines.setdefault(_dotted(table, _unquoted(key[1])), number)

    def __call__(self, name: str) -> str:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            if number := self._lines.get(".".join(parts[:end])):
                return f"{self._file}, line {number}: {name}"
        return f"{self._file}: {name}"


def _unquoted(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))


def _flat(said: dict[str, Any], where: _Lines) -> dict[str, Any]:
    """Dotted name -> value. Raises ConfigError naming every unknown one, the nearest known one and its line."""
    flat, wrong = {}, []
    for name, value in said.items():
        if name in sections() and not isinstance(value, dict):
            raise ConfigError(f"{where(name)} is a section: write [{name}] and its settings below.")
        if isinstance(value, dict) and name not in sections():
            near = get_close_matches(name, [one for one in sections() if one], n=1)
            wrong.append(f"{where(name)} is no section.{f' Did you mean [{near[0]}]?' if near else ''}")
            continue
        inner = {_dotted(name, key): one for key, one in value.items()} if isinstance(value, dict) else {name: value}
        for dotted, one in inner.items():
            if dotted in _known():
                flat[dotted] = one
            else:
                wrong.append(f"{where(dotted)} is no setting.{_nearest(dotted)}")
    if wrong:
        raise ConfigError("\n".join([*wrong[:10], "All settings: docs/serve.md."]))
    return flat


def _nearest(name: str) -> str:
    found = get_close_matches(name, _known(), n=1, cutoff=0.75)
    if not found:  # the right name in the wrong section
        tails = {full.rpartition(".")[2]: full for full in _known()}
        found = [tails[one] for one in get_close_matches(name.rpartition(".")[2], tails, n=1, cutoff=0.75)]
    return f" Did you mean {found[0]}?" if found else ""


def _value(name: str, value: Any, where: Any, base: Path) -> Any:
    """`value` as the setting's type wants it, in its range. Paths in a file are relative to it."""
    hint, told = _known()[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kind = next(one for one in kinds if one is not type(None))
    if kind is int and name.endswith("_bytes") and isinstance(value, str):
        value = _size(value, where(name))
    if kind is Path and isinstance(value, str | Path):
        made: Any = base / Path(value).expanduser()
    elif kind is float and type(value) is int:
        made = float(value)
    elif kind == tuple[str, ...] and isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        made = tuple(value)
    elif isinstance(kind, type) and type(value) is kind:
        made = value
    else:
        said = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}
        raise ConfigError(f"{where(name)} must be {said.get(kind, 'a list of texts')}, got {written(_plain(value))}.")
    told.check(where(name), made)
    return made


def _plain(value: Any) -> Any:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else value


def _size(text: str, name: str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)b?\s*", text.lower())
    if match is None:
        raise ConfigError(f'{name} must be a size such as 20MB, got "{text}".')
    return int(float(match[1]) * _UNITS[match[2]])


def _built(values: Mapping[str, Any]) -> Settings:
    by_section: dict[str, dict[str, Any]] = {name: {} for name in sections()}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        by_section[section][key] = value
    made = {name: kind(**by_section[name]) for name, kind in sections().items() if name}
    return Settings(**by_section[""], **made)
