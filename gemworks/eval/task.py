"""What is measured: a TOML file of a kind and its settings, or the name of a set that ships.

name = "capitals"                # default: the file's
kind = "match"
data = "capitals.jsonl"          # beside this file
template = "The capital of {country} is"
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gemworks.errors import ConfigError
from gemworks.eval.intervals import Figure
from gemworks.eval.reading import Table, read_toml

SETS = Path(__file__).parent / "sets"


class Task(Protocol):
    """A kind with its settings and data.

    digest: a hash of both. An item is a dict with at least `id`; a record is what `ask` brings back for it.
    """

    name: str
    kind: str
    digest: str

    def items(self, llm: Any) -> list[dict[str, Any]]:
        """What the model is asked, in a fixed order."""
        ...

    def ask(self, llm: Any, item: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begin one item; what comes back waits for the model and scores its answer."""
        ...

    def figures(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], dict[str, list[Figure]]]:
        """Figures of all records, and by group."""
        ...


def names() -> list[str]:
    """The sets that ship."""
    return sorted(path.stem for path in SETS.glob("*.toml"))


def find_task(told: str) -> Task:
    """The task of a name or a file: TOML, or .jsonl of function calls. Raises ConfigError or StorageError."""
    path = Path(told).expanduser()
    if told in names():
        return read_task(SETS / f"{told}.toml")
    if path.suffix == ".jsonl":
        from gemworks.eval.kinds.calls import Calls

        return Calls.of_file(path)
    if path.suffix != ".toml":
        raise ConfigError(f"a task is one of {', '.join(names())}, a .toml file or a .jsonl file of calls, got {told}.")
    return read_task(path)


def read_task(path: Path) -> Task:
    """The task of a TOML file."""
    from gemworks.eval.kinds import KINDS

    table = Table(read_toml(path), str(path))
    name, kind = table.take("name", str, path.stem), table.take("kind", str)
    table.take("description", str, "")
    if kind not in KINDS:
        raise table.wrong(f"kind must be one of {', '.join(KINDS)}, got {kind}")
    task = KINDS[kind]().read(name, table, path.parent)
    table.end()
    return task
