"""The report as text: one table a model, the peaks it was measured beside, and what became of the targets."""

from collections.abc import Iterable
from typing import Any

_UNITS = {"start": "s to first token", "memory": "MB over weights and KV"}
_TITLES = {
    "decode": "decode, 64 tokens from an empty context",
    "prefill": "prefill, 512 tokens",
    "batch": "8 texts decoded together (128 in, 32 out)",
    "prefill-8k": "prefill, 8,192 tokens",
    "decode-8k": "decode, 32 tokens after 8,192",
    "matmul": "a prefill of 512 without attention and head",
    "start": "a fresh process, 16 tokens of prompt",
    "memory": "a fresh process, 512 in, 32 out",
}
_ORDER = tuple(_TITLES)


def text(report: dict[str, Any]) -> str:
    """Return the report of one model as lines of text."""
    return "\n".join([*_head(report), *_tables(report), *_verdicts(report["targets"])])


def _head(report: dict[str, Any]) -> Iterable[str]:
    peaks = report["peaks"]
    yield f"{report['model']}, {peaks['threads']} threads"
    if peaks["why_missing"]:
        yield f"  peaks not measured: {peaks['why_missing']}"
    else:
        read, int8, fma = (_number(peaks[name]) for name in ("read_gb_s", "int8_gmac_s", "fma_gmac_s"))
        yield (
            f"  peaks: {read} GB/s read, {int8} GMAC/s int8 ({peaks['int8_name']}), "
            f"{fma} GMAC/s fp32 ({peaks['fma_name']})"
        )
    for row in report["answers"]:
        if row["agree"] is None:
            yield f"  answers not compared: {row['ours']} and {row['rival']}, {row['why_not_compared']}"
            continue
        agree = "agree" if row["agree"] else "DISAGREE"
        yield (
            f"  answers {agree}: {row['ours']} and {row['rival']}, scores {row['relative_distance']:.1%} apart, "
            f"{row['same_tokens']} of {row['prompts']} next tokens alike"
        )


def _tables(report: dict[str, Any]) -> Iterable[str]:
    width = max((len(name) for by_system in report["rows"].values() for name in by_system), default=0)
    for row in sorted(report["rows"], key=_ORDER.index):
        yield ""
        yield f"  {_TITLES[row]}, {_UNITS.get(row, 'tokens/s')}"
        for name, figures in report["rows"][row].items():
            yield f"    {name:<{width}}  {_line(row, figures)}"


def _line(row: str, figures: dict[str, Any]) -> str:
    scale = 1e-6 if row == "memory" else 1.0
    values = [value * scale for value in figures["values"]]
    line = f"{_number(figures['median'] * scale):>8}  ({_number(min(values))} to {_number(max(values))})"
    for name, unit in (("gb_s", "GB/s"), ("gmac_s", "GMAC/s")):
        if name in figures:
            share = figures["peak_share"]
            line += f"  {_number(figures[name])} {unit}" + (f", {share:.0%} of the peak" if share is not None else "")
    return line + (f"  ours {figures['ours_over_it']:.2f}x" if "ours_over_it" in figures else "")


def _verdicts(targets: list[dict[str, Any]]) -> Iterable[str]:
    if targets:
        yield ""
        yield "  targets"
    for target in targets:
        state = {True: "met", False: "MISSED", None: "not measured"}[target["is_met"]]
        scale = 1e-6 if target["text"].startswith("memory") else 1.0
        value = " -" if target["value"] is None else f" {_number(target['value'] * scale)}"
        sign = "<=" if target["is_upper"] else ">="
        yield f"    {state:<12}  {target['text']}:{value} (wanted {sign} {_number(target['bound'] * scale)})"


def _number(value: float | None) -> str:
    """Three digits that say something, without an exponent."""
    if value is None:
        return "?"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
