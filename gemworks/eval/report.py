"""Results of several models and tasks as one HTML page: no script, nothing from outside, intervals drawn as SVG."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gemworks.data.writing import replace_file
from gemworks.eval.intervals import Figure

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.2rem .9rem .2rem 0;text-align:left;border-bottom:1px solid #e3e6ea;vertical-align:middle}
.group td:first-child{padding-left:1.2rem}.note{color:#56606e;font-size:.85rem}
.range{stroke:#4a6fa5;stroke-width:2}.point{fill:#4a6fa5}.axis{stroke:#c9ced6}
@media(prefers-color-scheme:dark){body{color:#dfe4ea;background:#14181d}td,th{border-color:#2c333c}}
"""
_WIDTH, _HEIGHT = 160, 16


def write_html(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of results (TaskResult.as_dict), models side by side. Raises StorageError."""
    parts = [
        "<h1>Evaluation</h1><p class=note>95 % intervals: Wilson's for shares, of a ratio over texts for bits per byte "
        "and perplexity. Two models differ where their intervals are apart; where they overlap these items may not "
        "tell.</p>"
    ]
    for task in dict.fromkeys(str(result["task"]) for result in results):
        parts += _task(task, [result for result in results if result["task"] == task])
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>"
    replace_file(path, (page + "\n".join(parts) + "</html>\n").encode("utf-8", "replace"))


def _task(name: str, results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"<h2>{escape(name)}</h2><p class=note>{escape(str(results[0]['kind']))}, "
    yield f"digest {escape(str(results[0]['about'].get('digest', ''))[:12])}</p>"
    head = "".join(f"<th>{escape(str(result['model']))}</th>" for result in results)
    yield f"<table><tr><th></th>{head}</tr>"
    yield from _rows([_figures(result["figures"]) for result in results], "")
    for group in dict.fromkeys(group for result in results for group in result["groups"]):
        yield f"<tr><th colspan={1 + len(results)}>{escape(group)}</th></tr>"
        yield from _rows([_figures(result["groups"].get(group, [])) for result in results], "group")
    yield "</table>"
    for result in results:
        skipped = len(result["skipped"])
        if skipped:
            yield f"<p class=note>{escape(str(result['model']))}: {skipped:,} items were longer than its context.</p>"


def _figures(told: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    return {str(one["name"]): Figure(**one) for one in told}


def _rows(columns: Sequence[Mapping[str, Figure]], style: str) -> Iterator[str]:
    for name in dict.fromkeys(name for column in columns for name in column):
        figures = [column.get(name) for column in columns]
        ends = [x for f in figures if f is not None for x in (f.value, f.low, f.high) if x is not None]
        is_share = any(f.is_share for f in figures if f is not None)
        low, high = (0.0, 1.0) if is_share or not ends else (min(ends), max(ends))
        better = next((f.is_better for f in figures if f is not None), "")
        cells = "".join(f"<td>{_cell(figure, low, high)}</td>" for figure in figures)
        yield f"<tr class={style or 'all'}><td>{escape(name)}{_hint(better)}</td>{cells}</tr>"


def _hint(better: str) -> str:
    return " <span class=note>(lower is better)</span>" if better == "lower" else ""


def _cell(figure: Figure | None, low: float, high: float) -> str:
    if figure is None or figure.value is None:
        return "<span class=note>none</span>"

    def x(value: float) -> float:
        return 6 + (_WIDTH - 12) * (value - low) / ((high - low) or 1.0)

    middle = _HEIGHT / 2
    lines = f'<line class="axis" x1="6" x2="{_WIDTH - 6}" y1="{middle}" y2="{middle}"/>'
    if figure.low is not None and figure.high is not None:
        lines += f'<line class="range" x1="{x(figure.low):.1f}" x2="{x(figure.high):.1f}" y1="{middle}" y2="{middle}"/>'
    lines += f'<circle class="point" cx="{x(figure.value):.1f}" cy="{middle}" r="4"/>'
    svg = f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{lines}</svg>'
    return f"{svg}<br>{escape(figure.shown())}"
