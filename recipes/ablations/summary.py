"""From measurements to tables: differences within a seed, with Student's t interval over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from gemworks.data.writing import read_json, replace_file, replace_json
from recipes.ablations.measuring import released_cache
from recipes.ablations.plan import Plan, arms, attention_name, attention_settings, student_name
from recipes.ablations.running import collect

LESSONS = ("scratch", "small", "large")

Measured = Mapping[str, Any]  # arm -> what running.py measured of it


class Interval(NamedTuple):
    """A mean and half of its 95 % interval (nan of fewer than two values), over `number` seeds."""

    mean: float
    half: float
    number: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} +- {self.half:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of values and half the width of Student's t interval."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5 if n > 1 else float("nan")
    return Interval(float(np.mean(values)) if n else float("nan"), float(half), n)


def difference(measured: Measured, pairs: Sequence[tuple[str, str]], value=lambda arm: arm["loss"]) -> Interval:
    """Return the interval of value(a) - value(b) over those pairs of arms of which both are there."""
    return interval([value(measured[a]) - value(measured[b]) for a, b in pairs if a in measured and b in measured])


def students(measured: Measured, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each budget: mean losses, and differences between lessons."""
    rows = []
    for budget, steps in plan.budgets:

        def names(lesson: str, budget: str = budget) -> list[str]:
            return [student_name(lesson, budget, seed) for seed in plan.seeds]

        rows.append(
            {
                "budget": budget,
                "tokens": steps * plan.rows * plan.tokens,
                **{lesson: _mean(measured, names(lesson)) for lesson in LESSONS},
                "small - scratch": difference(measured, list(zip(names("small"), names("scratch"), strict=True))),
                "large - scratch": difference(measured, list(zip(names("large"), names("scratch"), strict=True))),
                "large - small": difference(measured, list(zip(names("large"), names("small"), strict=True))),
            }
        )
    return rows


def curves(measured: Measured, plan: Plan) -> dict[str, list[tuple[int, Interval]]]:
    """Return (tokens, loss over the seeds) at the points of the longest run, for each lesson, and differences."""
    budget = max(plan.budgets, key=lambda one: one[1])[0]
    runs = {
        lesson: {s: measured[n]["curve"] for s in plan.seeds if (n := student_name(lesson, budget, s)) in measured}
        for lesson in LESSONS
    }
    found: dict[str, list[tuple[int, Interval]]] = {}
    for lesson, by_seed in runs.items():
        points = list(zip(*by_seed.values(), strict=True))
        found[lesson] = [(one[0]["tokens"], interval([p["loss"] for p in one])) for one in points]
        both = [seed for seed in by_seed if seed in runs["scratch"]]
        if lesson != "scratch":
            pairs = [zip(by_seed[seed], runs["scratch"][seed], strict=True) for seed in both]
            found[f"{lesson} - scratch"] = [
                (one[0][0]["tokens"], interval([a["loss"] - b["loss"] for a, b in one]))
                for one in zip(*pairs, strict=True)
            ]
    return found


def attention(measured: Measured, plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each setting: perplexity, its difference to the common setting, bytes of keys and values."""
    rows = []
    for ratio, window in attention_settings(plan):
        names = [attention_name(ratio, window, seed) for seed in plan.seeds]
        base = [attention_name(plan.ratio, plan.window, seed) for seed in plan.seeds]
        pairs = list(zip(names, base, strict=True))
        found = [measured[name] for name in names if name in measured]
        rows.append(
            {
                "ratio": ratio,
                "window": window,
                "perplexity": float(np.mean([_perplexity(arm) for arm in found])) if found else float("nan"),
                "difference": difference(measured, pairs, _perplexity),
                "percent": difference(measured, pairs, lambda arm: 100 * arm["loss"]),  # 100 d(ln ppl), about 1 %
                "far": difference(measured, pairs, _far),
                "bytes": found[0]["cache_bytes"] if found else 0,
            }
        )
    return rows


def write(out: Path, plan: Plan, figures: Path) -> str:
    """Write results.json, summary.md and the pictures of all that is measured; return the summary."""
    measured = collect(out, arms(plan))
    path = out / "cache.json"
    cache = read_json(path, "bytes of caches") if path.is_file() else released_cache()
    replace_json(path, cache)
    replace_json(out / "results.json", {"plan": asdict(plan), "arms": measured, "cache": cache})
    text = tables(measured, cache, plan)
    replace_file(out / "summary.md", text.encode())
    from recipes.ablations.figures import draw

    figures.mkdir(parents=True, exist_ok=True)
    draw(measured, cache, plan, figures)
    return text


def tables(measured: Measured, cache: Sequence[Mapping[str, Any]], plan: Plan) -> str:
    """Return all tables as Markdown."""
    by_budget, by_setting, by_point = students(measured, plan), attention(measured, plan), curves(measured, plan)
    seeds = min([row["large - scratch"].number for row in by_budget], default=0)
    parts = [f"Students ({seeds} seeds; loss in nats a token, differences within a seed with 95 % intervals)\n"]
    parts.append(_table(("tokens", *LESSONS, *list(by_budget[0])[-3:]), [_budget_row(row) for row in by_budget]))
    parts.append("\nThe long run's curve\n")
    columns = [by_point.get(name, []) for name in (*LESSONS, "small - scratch", "large - scratch")]
    rows = [
        (f"{one[0][0]:,}", *(f"{x.mean:.3f}" for _, x in one[:3]), *(str(x) for _, x in one[3:]))
        for one in zip(*columns, strict=True)
    ]
    parts.append(_table(("tokens", *LESSONS, "small - scratch", "large - scratch"), rows))
    seeds = min([row["difference"].number for row in by_setting], default=0)
    parts.append(f"\nAttention ({seeds} seeds; differences to {plan.ratio}:1 with a window of {plan.window})\n")
    head = ("local:global", "window", "perplexity", "difference", "in %", "in %, past position 256", "KV bytes")
    parts.append(_table(head, [_attention_row(row) for row in by_setting]))
    parts.append("\nBytes of keys and values of one sequence, 1B's shape, bf16\n")
    contexts = sorted({row["context"] for row in cache})
    named = list(dict.fromkeys(row["name"] for row in cache))
    sizes = {(row["name"], row["context"]): row["bytes"] for row in cache}
    rows = [(name, *(f"{sizes[name, context] / 2**20:,.1f} MiB" for context in contexts)) for name in named]
    parts.append(_table(("layers", *(f"{context:,} tokens" for context in contexts)), rows))
    return "\n".join(parts)


def _budget_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{row['tokens']:,}", *(f"{row[name]:.3f}" for name in LESSONS), *(str(row[k]) for k in list(row)[-3:]))


def _attention_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['ratio']}:1",
        str(row["window"]),
        f"{row['perplexity']:.3f}",
        *(str(row[name]) for name in ("difference", "percent", "far")),
        f"{row['bytes']:,}",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _mean(measured: Measured, names: Sequence[str]) -> float:
    found = [measured[name]["loss"] for name in names if name in measured]
    return float(np.mean(found)) if found else float("nan")


def _far(arm: Mapping[str, Any]) -> float:
    """100 x the loss of the last range of positions that has targets."""
    return 100 * [loss for loss in arm["by_position"] if loss is not None][-1]


def _perplexity(arm: Mapping[str, Any]) -> float:
    return float(np.exp(arm["loss"]))
