"""The engine's report as text, and the picture of a load. The picture needs matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemworks.bench.roofline import check_matplotlib
from gemworks.errors import ConfigError


def text(report: Mapping[str, Any]) -> str:
    """Return the report of one model as lines of text."""
    lines = [f"{report['model']}, up to {report['setting']['sequences']} sequences"]
    for name, figures in report["scenarios"].items():
        lines += ["", f"  {name}", *_LINES[name](figures), *_verdicts(figures.get("targets", ()))]
    return "\n".join(lines)


def _load(figures: Mapping[str, Any]) -> Iterable[str]:
    refused = f", {figures['refused']} refused" if figures["refused"] else ""
    yield f"    {figures['requests']} requests{refused} in {figures['seconds']:.1f} s"
    yield f"    tokens/s            {_number(figures['tokens_per_second'])} drawn"
    yield f"                        {_number(figures['prompt_tokens_per_second'])} of prompts"
    yield from _latencies(figures, "    ")
    for by in ("by_kind", "by_key"):
        for name, some in figures[by].items():
            yield f"    {name}"
            yield from _latencies(some, "      ")
    yield f"    batch occupancy     {figures['occupancy']:.0%}"
    yield f"    prompt from cache   {figures['cached_share']:.0%}"
    yield f"    preemptions         {figures['preemptions']:,.0f}"
    if figures["host_share"] is not None:
        yield f"    host's share        {figures['host_share']:.1%} of step time"
    for error in figures["errors"]:
        yield f"    error               {error.splitlines()[0]}"


def _prefix(figures: Mapping[str, Any]) -> Iterable[str]:
    yield f"    first token         {_ms(figures['first_ttft_s'])} ms, then {_ms(figures['second_ttft_s'])} ms"
    yield f"    tokens from cache   {', '.join(f'{count:,}' for count in figures['cached_tokens'])}"


def _chat(figures: Mapping[str, Any]) -> Iterable[str]:
    yield f"    {len(figures['computed'])} turns, {figures['tokens']:,} tokens"
    yield f"    computed a turn     {', '.join(map(str, figures['computed']))}"
    first, last = figures["ttft_s"][1], figures["ttft_s"][-1]
    yield f"    first token         {_ms(first)} ms at turn 2, {_ms(last)} ms at the last"


def _fairness(figures: Mapping[str, Any]) -> Iterable[str]:
    for name in ("idle", "busy"):
        yield f"    {name}"
        yield from _latencies(figures[name], "      ")


def _speculation(figures: Mapping[str, Any]) -> Iterable[str]:
    for what, by in figures["decode_per_second"].items():
        ratio, same = figures["ratios"][what], figures["same_text"][what]
        told = "same text" if same else "OTHER TEXT"
        times = "?" if ratio is None else f"{ratio:.2f}x"
        drafts = "{accepted:,} of {proposed:,} guesses right".format(**figures["drafts"][what])
        rates = f"{_number(by['off'])} tokens/s without, {_number(by['on'])} with"
        yield f"    {what:<18}  {rates}: {times}, {told}, {drafts}"


def _host(figures: Mapping[str, Any]) -> Iterable[str]:
    if figures["step_ms"] is not None:
        yield f"    a step              {figures['step_ms']:.1f} ms, the host's part {figures['host_ms']:.2f} ms"
    yield f"    device idle         {figures['idle_share']:.1%} of the time"
    yield f"    tokens/s            {_number(figures['tokens_per_second'])}"
    yield f"    batch occupancy     {figures['occupancy']:.0%}"


def _streams(figures: Mapping[str, Any]) -> Iterable[str]:
    for row in figures["answers"]:
        agree = "agree" if row["agree"] else "DISAGREE"
        yield f"    answers {agree}: {row['ours']} and {row['rival']}, scores {row['relative_distance']:.1%} apart"
    for streams, row in figures["rows"].items():
        yield f"    {streams} streams, 128 in, 64 out"
        for system, by in row.items():
            if system == "resident_bytes":
                continue
            total, decoded = by["tokens_per_second"], by["decode_per_second"]
            yield (
                f"      {system:<26} {_number(total['median']):>7} tokens/s in all ({_spread(total['values'])}), "
                f"decoded {_number(decoded['median'])} ({_spread(decoded['values'])})"
            )


_LINES = {
    "load": _load,
    "prefix": _prefix,
    "chat": _chat,
    "fairness": _fairness,
    "speculation": _speculation,
    "host": _host,
    "streams": _streams,
}


def _latencies(figures: Mapping[str, Any], indent: str) -> Iterable[str]:
    for name, title in (("ttft_s", "first token"), ("inter_token_s", "between tokens")):
        found = figures[name]
        if found is not None:
            told = ", ".join(f"{key} {_ms(value)}" for key, value in found.items())
            yield f"{indent}{title:<{24 - len(indent)}}{told} ms"


def _verdicts(targets: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for target in targets:
        state = {True: "met", False: "MISSED", None: "not measured"}[target["is_met"]]
        value = "-" if target["value"] is None else f"{target['value']:.3g}"
        sign = "<=" if target["is_upper"] else ">="
        yield f"    {state:<12}  {target['text']}: {value} (wanted {sign} {target['bound']:g})"


def _spread(values: Sequence[float]) -> str:
    return f"{_number(min(values))} to {_number(max(values))}"


def _ms(seconds: float) -> str:
    return _number(1000 * seconds)


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def check_plot(names: Sequence[str]) -> None:
    """Raise ConfigError or BackendError where no picture could be drawn: before measuring, not after."""
    if "load" not in names:
        raise ConfigError(f'--plot draws a load: add load to --scenario, got "{",".join(names)}".')
    check_matplotlib()


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the picture of all models' loads to `path`; its suffix says the format.

    What share of the requests had their first token, and of the tokens came, within a time.
    """
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"ttft_s": "Time to the first token", "gaps_s": "Time between tokens"}
    loads = [(report["model"], report["scenarios"]["load"]) for report in reports if "load" in report["scenarios"]]
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for model, load in loads:
            values = sorted(load["samples"][name])
            shares = [(i + 1) / len(values) for i in range(len(values))]
            axes.step([1000 * value for value in values], shares, where="post", label=model)
        for share in (0.5, 0.95, 0.99):
            axes.axhline(share, color="black", linewidth=0.4, linestyle=":")
            axes.annotate(f"p{share:.0%}"[:-1], (0, share), xycoords=("axes fraction", "data"), fontsize=7)
        axes.set(title=title, xlabel="ms", ylabel="share", ylim=(0, 1.01))
        if any(load["samples"][name] for _, load in loads):  # nothing has no logarithm
            axes.set_xscale("log")
        axes.grid(True, which="major", linewidth=0.3, alpha=0.6)
    if loads:
        panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)
