"""What a run shows while it trains: in a terminal the curve of the loss and the last figures, else lines of text."""

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from gemworks.cli import console

if TYPE_CHECKING:
    from gemworks.train.recipe import Recipe

Record = Mapping[str, Any]

_LINES = 100  # about, of a run that nobody watches
_HEIGHT = 8  # rows of the curve
_EIGHTHS = [" ", *(chr(0x2581 + i) for i in range(8))]  # a cell filled from below, by eighths


@contextmanager
def view(recipe: "Recipe", directory: Path) -> Iterator[Callable[[Record], None]]:
    """Yield what takes the record of every step. A run that continues shows the curve from its start."""
    from gemworks.parallel import multihost

    if not multihost.is_first():
        yield lambda record: None
    elif not sys.stderr.isatty():
        yield _teller(recipe.steps)
    else:
        from rich.console import Console
        from rich.live import Live

        from gemworks.train.metrics import METRICS_FILE, read

        path = directory / METRICS_FILE
        screen = Screen(recipe.steps, read(path) if path.is_file() else [])
        terminal = Console(stderr=True)
        with Live(screen, console=terminal, refresh_per_second=4) as live:
            yield screen.add
            live.refresh()


def _teller(steps: int) -> Callable[[Record], None]:
    every, pace = max(1, steps // _LINES), Pace(steps)

    def tell(record: Record) -> None:
        pace.add(record)
        if record["step"] % every == 0 or record["step"] == steps:
            console.note(f"step {record['step']:,} of {steps:,}   " + "   ".join(figures(record, pace.left())))

    return tell


class Pace:
    """How long the rest will take: the median of the last steps, which the compiler's first one does not move."""

    def __init__(self, steps: int):
        self._steps, self._last = steps, 0
        self._seconds: deque[float] = deque(maxlen=50)

    def add(self, record: Record) -> None:
        """Take a step."""
        self._last = record["step"]
        self._seconds.append(record["seconds"])

    def left(self) -> float:
        """Seconds."""
        return median(self._seconds) * (self._steps - self._last) if self._seconds else 0.0


def figures(record: Record, seconds_left: float) -> list[str]:
    """The last step in words."""
    shown = [
        f"loss {record['loss']:.4f}",
        f"gradient {record['grad_norm']:.3f}",
        f"rate {record['rate']:.2e}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if "mfu" in record:
        shown.append(f"{record['mfu']:.1%} of peak")
    shown.append(f"memory {console.size(_memory())}")
    if seconds_left:
        shown.append(f"{_duration(seconds_left)} left")
    return shown


class Screen:
    """The curve and the figures: what rich.live draws."""

    def __init__(self, steps: int, history: Sequence[Record] = ()):
        self._steps, self._pace = steps, Pace(steps)
        self._points = [(one["step"], one["loss"]) for one in history if one.get("loss") is not None]
        self._record: Record | None = None
        self._started = time.perf_counter()

    def add(self, record: Record) -> None:
        """Take a step."""
        self._record = record
        self._pace.add(record)
        if isfinite(record["loss"]):
            self._points.append((record["step"], record["loss"]))

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        width = max(20, min(options.max_width, 110))
        if self._record is None:
            waited = _duration(time.perf_counter() - self._started)
            yield Text(f"compiling the step, {waited}", style="bright_black")
            return
        cells = _EIGHTHS if console.encoding.startswith("utf") else " " + "#" * 8
        for line in curve(self._points, width - 10, _HEIGHT, cells):
            yield Text(line, style="cyan")
        done = self._record["step"]
        yield Text(f"{'step':>8}  {self._points[0][0]:<8,}{done:>{width - 18},}" if self._points else "")
        yield ProgressBar(total=self._steps, completed=done, width=width)
        shown = [f"step {done:,} of {self._steps:,}", *figures(self._record, self._pace.left())]
        for part in (shown[:4], shown[4:]):
            yield Text("   ".join(part), no_wrap=True, overflow="ellipsis")


def curve(points: Sequence[tuple[int, float]], width: int, height: int, cells: Sequence[str] = _EIGHTHS) -> list[str]:
    """Return the lines of a filled curve over the steps, means where a column has several; `cells` from empty to full.

    The scale is from the least to the largest of the columns, both written at the side.
    """
    if not points:
        return []
    first, last = points[0][0], points[-1][0]
    width = min(width, len(points))
    columns: list[list[float]] = [[] for _ in range(width)]
    for step, value in points:
        columns[min(width - 1, (step - first) * width // max(1, last - first + 1))].append(value)
    means = [sum(column) / len(column) for column in columns if column]
    low, high = min(means), max(means)
    levels = [round(1 + (mean - low) / (high - low or 1) * (8 * height - 1)) for mean in means]
    lines = []
    for row in range(height - 1, -1, -1):
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        lines.append(f"{label}  " + "".join(cells[max(0, min(8, level - 8 * row))] for level in levels))
    return lines


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _memory() -> int:
    """Most bytes so far, of the first device, or where it does not say of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return stats.get("peak_bytes_in_use") or most
