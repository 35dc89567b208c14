"""The report as a picture: decode under the bandwidth's ceiling, prefill under the arithmetic's. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemworks.bench.random_model import config_of
from gemworks.bench.work import matmul_macs
from gemworks.errors import BackendError

_STYLES = {
    "ours": ("o", "tab:blue"),
    "xla": ("s", "tab:gray"),
    "llama.cpp": ("^", "tab:red"),
    "openvino": ("D", "tab:green"),
}
_RIGHT = ("ours", "xla")  # whose labels stand to the right of their points; the rivals' to the left
_LABEL_WIDTH, _LABEL_HEIGHT = 75, 8.5  # points of the page
_WIDE = 1.6  # how far the ceilings are drawn past the first and the last point


def check_matplotlib() -> None:
    """Raise BackendError where there is no matplotlib: before hours of measuring, not after."""
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BackendError('--plot needs matplotlib, and it is not installed. pip install "gemworks[bench]"') from error


def draw(reports: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture of all models' reports to `path`; its suffix says the format."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, _points(reports, "decode", "gb_s"), _ceiling(reports, "read_gb_s"), "GB/s")
    left.set(title="Decode, one text", xlabel="GB read a token", ylabel="tokens/s")
    _panel(right, _points(reports, "prefill", "gmac_s"), _ceiling(reports, "int8_gmac_s"), "GMAC/s int8")
    right.set(title="Prefill, 512 tokens", xlabel="GMAC a token in the matrices", ylabel="tokens/s")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels) or 1, frameon=False)
    figure.savefig(path, dpi=150)


def _points(reports: Sequence[dict[str, Any]], row: str, rate: str) -> list[tuple[str, str, float, float]]:
    """(engine, label, work a token in 10^9, tokens/s) of every system of every model."""
    points = []
    for report in reports:
        for name, figures in report["rows"].get(row, {}).items():
            engine, _, kind = name.partition(" ")
            # Prefill's work is the model's, not the system's: all stand on one line for each model.
            by_shape = matmul_macs(config_of(report["model"])) / 1e9
            work = figures[rate] / figures["median"] if row == "decode" else by_shape
            points.append((engine, f"{report['model']} {kind}", work, figures["median"]))
    return points


def _ceiling(reports: Sequence[dict[str, Any]], name: str) -> float | None:
    found = [report["peaks"][name] for report in reports if report["peaks"][name]]
    return max(found) if found else None


def _panel(axes: Any, points: list[tuple[str, str, float, float]], ceiling: float | None, unit: str) -> None:
    """Points on logarithmic axes under the line tokens/s = peak / work; beneath it half and a tenth of the peak."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True, which="major", linewidth=0.3, alpha=0.6)
    for engine in dict.fromkeys(point[0] for point in points):
        marker, color = _STYLES[engine]
        work, rate = zip(*[point[2:] for point in points if point[0] == engine], strict=True)
        axes.plot(work, rate, marker, color=color, label=engine, markersize=7, zorder=4)
    if ceiling and points:
        ends = [min(p[2] for p in points) / _WIDE, max(p[2] for p in points) * _WIDE]
        for share, style in ((1.0, "-"), (0.5, "--"), (0.1, ":")):
            axes.plot(ends, [share * ceiling / x for x in ends], style, color="black", linewidth=1, zorder=1)
            text, end = (f"{ceiling:,.0f} {unit}", ends[0]) if share == 1.0 else (f"{share:.0%}", ends[1])
            axes.annotate(text, (end, share * ceiling / end), xytext=(3, 2), textcoords="offset points", fontsize=7)
    for (engine, text, work, rate), lift in zip(points, _lifts(axes, points), strict=True):
        is_right = engine in _RIGHT
        axes.annotate(
            text,
            (work, rate),
            xytext=(7 if is_right else -7, lift - 2),
            textcoords="offset points",
            ha="left" if is_right else "right",
            fontsize=7,
            color=_STYLES[engine][1],
            bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.4},
        )


def _lifts(axes: Any, points: list[tuple[str, str, float, float]]) -> list[float]:
    """How far each point's label goes up, in points of the page, so that none lies on another of its side."""
    axes.margins(x=0.16)
    axes.autoscale_view()
    scale = 72 / axes.figure.dpi
    places = [axes.transData.transform(point[2:]) * scale for point in points]
    lifts, taken = [0.0] * len(points), []
    for i in sorted(range(len(points)), key=lambda i: places[i][1]):
        x, y = places[i]
        is_right = points[i][0] in _RIGHT
        near = [top for side, other, top in taken if side == is_right and abs(other - x) < _LABEL_WIDTH]
        lifts[i] = max([0.0, *(top + _LABEL_HEIGHT - y for top in near)])
        taken.append((is_right, x, y + lifts[i]))
    return lifts
