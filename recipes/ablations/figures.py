"""The studies as two pictures, drawn from the measurements alone. Needs matplotlib (the extra `bench`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.ablations.plan import Plan
from recipes.ablations.summary import LESSONS, Interval, Measured, attention, curves, students

_COLORS = {"scratch": "tab:gray", "small": "tab:orange", "large": "tab:blue"}
_LABELS = {"scratch": "from scratch", "small": "small teacher", "large": "large teacher"}
_DPI = 84


def draw(measured: Measured, cache: Sequence[Mapping[str, Any]], plan: Plan, folder: Path) -> None:
    """Write studies-students.png and studies-attention.png; panels without measurements stay empty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _curves(left, curves(measured, plan))
    _gains(middle, curves(measured, plan))
    _teachers(right, students(measured, plan))
    figure.savefig(folder / "studies-students.png", dpi=_DPI)

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    rows = attention(measured, plan)
    _differences(left, [row for row in rows if row["window"] == plan.window], "ratio", "local layers to a global one")
    _differences(middle, [row for row in rows if row["ratio"] == plan.ratio], "window", "window, tokens")
    _cache(right, cache)
    low, high = zip(left.get_ylim(), middle.get_ylim(), strict=True)
    for axes in (left, middle):
        axes.set_ylim(min(low), max(high))
    figure.savefig(folder / "studies-attention.png", dpi=_DPI)


def _curves(axes: Any, found: Mapping[str, list[tuple[int, Interval]]]) -> None:
    for lesson in LESSONS:
        points = found[lesson]
        x = [tokens / 1e6 for tokens, _ in points]
        axes.plot(x, [one.mean for _, one in points], "o-", ms=3, color=_COLORS[lesson], label=_LABELS[lesson])
    axes.set(title="Student, mean of the seeds", xlabel="million tokens", ylabel="held-out loss, nats")
    axes.legend(frameon=False)


def _gains(axes: Any, found: Mapping[str, list[tuple[int, Interval]]]) -> None:
    axes.axhline(0, color="black", lw=0.8)
    for lesson, shift in (("small", -0.006), ("large", 0.006)):
        points = found.get(f"{lesson} - scratch", [])
        _bars(axes, [t / 1e6 + shift for t, _ in points], [x for _, x in points], _COLORS[lesson], _LABELS[lesson])
    axes.set(title="Distilled - from scratch (same colors)", xlabel="million tokens", ylabel="difference, nats (95 %)")


def _teachers(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.axhline(0, color="black", lw=0.8)
    _bars(axes, range(len(rows)), [row["large - small"] for row in rows], "tab:purple", "")
    axes.set_xticks(range(len(rows)), [f"{row['tokens'] / 1e6:.2f}M" for row in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set(title="Large - small teacher", xlabel="tokens of the student", ylabel="difference, nats (95 %)")


def _differences(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    rows = sorted(rows, key=lambda row: row[name])
    axes.axhline(0, color="black", lw=0.8)
    _bars(axes, range(len(rows)), [row["percent"] for row in rows], "tab:blue", "")
    axes.set_xticks(range(len(rows)), [f"{row[name]}:1" if name == "ratio" else str(row[name]) for row in rows])
    axes.set(xlabel=label, ylabel="perplexity, difference in % (95 %)", title=f"By {name}")


def _cache(axes: Any, cache: Sequence[Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(row["name"] for row in cache):
        points = [(row["context"], row["bytes"] / 2**20) for row in cache if row["name"] == name]
        style = "--" if "512" not in name and "global" not in name else "-"
        axes.plot(*zip(*points, strict=True), style, marker="o", ms=3, label=name)
    contexts = sorted({row["context"] for row in cache})
    axes.set(title="Keys and values, 1B's shape", xlabel="context, tokens", ylabel="MiB a sequence")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(contexts, [f"{context // 1024}K" for context in contexts])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(top=8 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=7, loc="upper left")


def _bars(axes: Any, x: Sequence[float] | range, values: Sequence[Interval], color: str, label: str) -> None:
    means, halves = [one.mean for one in values], [one.half for one in values]  # nan of a single seed: no bar
    axes.errorbar(x, means, halves, fmt="o", ms=4, capsize=3, color=color, label=label or None)
