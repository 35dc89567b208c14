"""A filter run's report as one HTML page: no script, no file or address besides itself, plots as inline SVG."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gemworks.data.examining import BINS, bin_edges
from gemworks.data.rules import RULES
from gemworks.data.writing import replace_file

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.2rem .7rem;text-align:left;border-bottom:1px solid #e3e6ea}td.n,th.n{text-align:right}
.plots{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;width:19.5rem}figcaption{font-size:.82rem;color:#56606e}
pre{white-space:pre-wrap;background:#f5f6f8;padding:.6rem;font-size:.82rem;max-height:14rem;overflow:auto}
.keep{fill:#2a7f62}.drop{fill:#c2543c}.bar{fill:#4a6fa5}.limit{stroke:#c2543c;stroke-width:1.5;stroke-dasharray:4 3}
@media(prefers-color-scheme:dark){body{color:#dfe4ea;background:#14181d}td,th{border-color:#2c333c}
pre{background:#1d2329}figcaption{color:#98a2ae}text{fill:#98a2ae}}
"""


def write_html(path: Path, report: dict[str, Any], samples: dict[str, list[dict[str, Any]]]) -> None:
    """Write the page of a report (as in report.json) with samples of its rejects."""
    kept, total = report["kept"], report["documents"]
    parts = [
        f"<h1>Filter report</h1><p>{kept:,} of {total:,} documents kept ({_share(kept, total)}), "
        f"{report['kept_bytes']:,} of {report['text_bytes']:,} bytes.",
        f" {report['broken']:,} broken lines skipped.</p>" if report["broken"] else "</p>",
        "<h2>Rejected, by reason</h2>",
        bars([(name, row["documents"]) for name, row in report["rejected"].items()], "drop"),
        _reasons(report["rejected"], total),
    ]
    if report["masked"]:
        rows = [(name, f"{row['times']:,}", f"{row['documents']:,}") for name, row in report["masked"].items()]
        parts += ["<h2>Masked</h2>", _table(("kind", "times", "documents"), rows)]
    for kind, groups in report["groups"].items():
        parts += [f"<h2>By {escape(kind)}</h2>", _groups(kind, groups)]
    parts += [
        "<h2>Scores</h2><p>Documents by score; the dashed line is the limit of the rule.</p>",
        '<div class="plots">',
    ]
    parts += [histogram(name, bins) for name, bins in report["histograms"].items() if sum(bins)]
    parts += (
        ["</div>", "<h2>Broken lines</h2><pre>" + escape("\n".join(report["broken_lines"])) + "</pre>"]
        if report["broken"]
        else ["</div>"]
    )
    parts += ["<h2>Samples of what was rejected</h2>", *_samples(samples)]
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Filter report</title><style>{_STYLE}</style>"
    replace_file(path, (page + "\n".join(parts) + "</html>\n").encode("utf-8", "replace"))


def bars(rows: Sequence[tuple[str, float]], style: str = "bar", most: int = 20) -> str:
    """Return horizontal bars as SVG, the first `most` rows."""
    rows = rows[:most]
    if not rows:
        return "<p>Nothing.</p>"
    top = max(value for _, value in rows) or 1
    lines = [f'<svg width="640" height="{22 * len(rows)}" role="img">']
    for i, (name, value) in enumerate(rows):
        y, width = 22 * i, max(1.0, 340 * value / top)
        lines.append(
            f'<text x="190" y="{y + 15}" text-anchor="end" font-size="12" fill="currentColor">{escape(name)}</text>'
            f'<rect class="{style}" x="198" y="{y + 4}" width="{width:.1f}" height="14"/>'
            f'<text x="{204 + width:.1f}" y="{y + 15}" font-size="12" fill="currentColor">{value:,.0f}</text>'
        )
    return "".join(lines) + "</svg>"


def histogram(name: str, bins: Sequence[int]) -> str:
    """Return the histogram of a rule's scores; the first and last bar are what lies outside the range."""
    rule, (low, high) = RULES[name], bin_edges(name)
    top, step = max(bins), 300 / len(bins)
    lines = ['<figure><svg width="300" height="104" role="img">']
    for i, count in enumerate(bins):
        height = 80 * (count / top) ** 0.5 if count else 0  # square root: the few near the limit are to be seen
        lines.append(
            f'<rect class="bar" x="{i * step:.1f}" y="{84 - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}"/>'
        )
    for limit in (rule.low, rule.high):
        if limit is not None and low <= limit <= high:
            x = step * (1 + BINS * (limit - low) / (high - low))
            lines.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="84"/>')
    lines.append(
        f'<text x="0" y="100" font-size="11" fill="currentColor">{low:g}</text>'
        f'<text x="300" y="100" text-anchor="end" font-size="11" fill="currentColor">{high:g}</text></svg>'
    )
    return "".join(lines) + f"<figcaption><b>{escape(name)}</b>: {escape(rule.what)}</figcaption></figure>"


def _reasons(rejected: dict[str, dict[str, int]], total: int) -> str:
    rows = [
        (name, f"{row['documents']:,}", _share(row["documents"], total), f"{row['bytes']:,}", _limits(name))
        for name, row in rejected.items()
    ]
    return _table(("reason", "documents", "share", "bytes", "limit"), rows)


def _limits(name: str) -> str:
    rule = RULES.get(name)
    if rule is None:
        return ""
    low = f"at least {rule.low:g} " if rule.low is not None else ""
    return f"{low}{f'at most {rule.high:g} ' if rule.high is not None else ''}({rule.what})"


def _groups(kind: str, groups: dict[str, dict[str, int]]) -> str:
    largest = sorted(groups.items(), key=lambda item: -item[1].get("bytes", 0))
    rows = [
        (
            name,
            f"{c['documents']:,}",
            f"{c['kept']:,}",
            f"{c['bytes']:,}",
            f"{c['kept_bytes']:,}",
        )
        for name, c in largest[:100]
    ]
    return bars([(name, c["kept_bytes"]) for name, c in largest], "keep", 12) + _table(
        (kind, "documents", "kept", "bytes", "kept bytes"), rows
    )


def _samples(samples: dict[str, list[dict[str, Any]]]) -> Iterable[str]:
    for reason in sorted(samples):
        yield f"<details><summary>{escape(reason)} ({len(samples[reason])})</summary>"
        for one in samples[reason][:5]:
            where = f"{one['file']}, line {one['line']}: score {one['score']:g}, limit {one['limit']:g}"
            yield f"<p>{escape(where)}</p><pre>{escape(one['text'])}</pre>"
        yield "</details>"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th{' class=n' if i else ''}>{escape(text)}</th>" for i, text in enumerate(headers))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"
