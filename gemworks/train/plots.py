"""A run's curves as one HTML file without anything from outside: loss, gradient norm, rate, tokens a second."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemworks.weights.atomic import replacing

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _POINTS = 720, 240, 70, 30, 600
_CURVES = (
    ("loss", "loss, nats a token"),
    ("nll", "negative log-likelihood of the next token, nats"),
    ("divergence", "divergence from the teacher's targets, nats"),
    ("grad_norm", "norm of the gradient before clipping"),
    ("rate", "learning rate"),
    ("tokens_per_second", "tokens a second"),
    ("mfu", "part of the measured matmul peak (MFU)"),
)
_STYLE = "body{font:14px sans-serif;max-width:760px;margin:2em auto}svg{background:#fafafa}td{padding:2px 12px 2px 0}"


def write_report(path: Path, title: str, recipe: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write the curves and the recipe of a run. Curves that no record has are left out."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1><p>{len(records):,} recorded steps.</p>")
    for key, label in _CURVES:
        points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
        if len(points) > 1 and not (key == "nll" and all(r.get("loss") == r.get("nll") for r in records)):
            parts.append(f"<h3>{html.escape(label)}</h3>{curve(points)}")
    cells = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in recipe.items())
    parts.append(f"<h3>recipe</h3><table>{cells}</table>")
    text = "\n".join(parts)
    with replacing(path, needed=len(text), force=True) as partial:
        partial.write_text(text, encoding="utf-8")


def curve(points: Sequence[tuple[float, float]]) -> str:
    """Return one curve as SVG with the range of both axes; of many points a mean for each pixel and a half."""
    points = _thinned(points)
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    span = (high - low) or abs(high) or 1.0

    def place(x: float, y: float) -> str:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1)
        return f"{_LEFT + across * (_WIDTH - _LEFT - 10):.1f},{10 + (high - y) / span * (_HEIGHT - _BOTTOM - 10):.1f}"

    line = " ".join(place(x, y) for x, y in points)
    labels = (
        (4, 18, f"{high:.4g}"),
        (4, _HEIGHT - _BOTTOM, f"{low:.4g}"),
        (_LEFT, _HEIGHT - 8, f"step {xs[0]:g}"),
        (_WIDTH - 90, _HEIGHT - 8, f"step {xs[-1]:g}"),
    )
    texts = "".join(f'<text x="{x}" y="{y}" font-size="12">{text}</text>' for x, y, text in labels)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}">{texts}'
        f'<polyline fill="none" stroke="#2563a8" stroke-width="1.5" points="{line}"/></svg>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / _POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
