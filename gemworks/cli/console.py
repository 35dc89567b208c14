"""Writing to the terminal: answers and tables to stdout, everything else to stderr, plain text where nobody watches.

The only way the commands print. rich is imported when something moves on the screen: `gemworks list` starts fast.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_RESET = "\x1b[0m"
GREY, BOLD, RED, YELLOW = "\x1b[90m", "\x1b[1m", "\x1b[31m", "\x1b[33m"

# A model's answer may hold escape sequences; a terminal must not obey them. Tab and newline pass.
_UNPRINTABLE = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\t\n"}


def write(text: str) -> None:
    """Write `text` to stdout as it is and flush; in a terminal without control characters."""
    sys.stdout.write(text.translate(_UNPRINTABLE) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def line(text: str = "") -> None:
    """Write one line to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Write a line about what happens to stderr; grey in a terminal."""
    sys.stderr.write(styled(text, GREY, sys.stderr) + "\n")
    sys.stderr.flush()


def warn(text: str) -> None:
    """Write a warning to stderr."""
    sys.stderr.write(styled("Warning: ", YELLOW, sys.stderr) + text + "\n")
    sys.stderr.flush()


def error(text: str) -> None:
    """Write the one message of a command that cannot go on to stderr."""
    sys.stderr.write(styled("Error: ", RED, sys.stderr) + text + "\n")
    sys.stderr.flush()


def styled(text: str, style: str, stream: Any) -> str:
    """`text` in a style if `stream` is a terminal, else as it is."""
    return f"{style}{text}{_RESET}" if stream.isatty() else text


def emit_json(value: Any) -> None:
    """Write one JSON object to stdout, whole, indented in a terminal."""
    line(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Write a table to stdout, columns aligned with spaces; those in `right` to the right."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    for number, row in enumerate((headers, *rows)):
        cells = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        text = "   ".join(cells).rstrip()
        line(styled(text, BOLD, sys.stdout) if number == 0 else text)


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Write names and values to stdout, the values in one column."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        head, *more = value.split("\n")
        line(f"{styled(name.ljust(width), GREY, sys.stdout)}   {head}".rstrip())
        for text in more:
            line(f"{' ' * width}   {text}".rstrip())


def size(num_bytes: float) -> str:
    """Bytes as people read them, in powers of ten as the hub and the report count: 815 MB, 2.0 GB."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def confirm(question: str, *, default: bool) -> bool:
    """Ask in the terminal; Enter is `default`."""
    answer = ask(f"{question} [{'Y/n' if default else 'y/N'}] ")
    return answer in ("y", "yes") or (default and answer == "")


def ask(question: str) -> str | None:
    """What is typed after `question`, in lower case without spaces around it; None after Ctrl-D."""
    sys.stderr.write(question)
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer:
        sys.stderr.write("\n")
        return None
    return answer.strip().lower()


def can_ask() -> bool:
    """True where a person reads stderr and types into stdin."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


class ProgressBar:
    """A bar on the screen, called as progress(done, total)."""

    def __init__(self, bar: Any, task: Any):
        self._bar, self._task = bar, task

    def __call__(self, done: int, total: int) -> None:
        """Draw how far it is."""
        self._bar.update(self._task, completed=done, total=total)

    def named(self, what: str) -> Callable[[int, int], None]:
        """The same bar for another piece of work: its name changes with the first call."""

        def update(done: int, total: int) -> None:
            self._bar.update(self._task, completed=done, total=total, description=f"[bright_black]{what}")

        return update


@contextlib.contextmanager
def loading(what: str) -> Iterator[ProgressBar | None]:
    """Draw a bar on stderr while a block runs; yields progress(done, total), or None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield ProgressBar(bar, bar.add_task(f"[bright_black]{what}", total=None))


@contextlib.contextmanager
def counting(what: str) -> Iterator[ProgressBar | None]:
    """As `loading`, for things that are counted, with the time that is left."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield ProgressBar(bar, bar.add_task(f"[bright_black]{what}", total=None))


@contextlib.contextmanager
def waiting(what: str = "") -> Iterator[Callable[[], None]]:
    """Turn a small spinner on stderr until the yielded function is called or the block ends."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console

    status = Console(stderr=True).status(f"[bright_black]{what}")
    status.start()
    try:
        yield status.stop
    finally:
        status.stop()
