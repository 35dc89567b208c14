"""The model card of a tuning run: what was trained, on what, how it went, and the command that does it again."""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks.data.writing import replace_file
from gemworks.train.adapters.kinds import LoRA
from gemworks.train.dpo import DPO
from gemworks.train.metrics import METRICS_FILE, read
from gemworks.train.recipe import Recipe
from gemworks.train.trained import trained_shapes

if TYPE_CHECKING:
    from gemworks.train.tune import Outcome, Prepared

CARD = "README.md"


def num_trained(recipe: Recipe) -> int:
    """Return how many numbers a recipe trains."""
    total = 0
    for shape in trained_shapes(recipe).values():
        size = 1
        for width in shape:
            size *= width
        total += size
    return total


def method_text(recipe: Recipe) -> str:
    """Return what is trained, in a phrase."""
    adapter = recipe.adapter
    if adapter is None:
        return "all parameters"
    if not isinstance(adapter, LoRA):
        return f"a prompt of {adapter.tokens} vectors"
    kind = "DoRA" if adapter.dora else "rank-stabilized LoRA" if adapter.rslora else "LoRA"
    base = f" beside a base in {adapter.base}" if adapter.base else ""
    assert not isinstance(adapter.targets, str)
    return f"{kind} of rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.targets)}{base}"


def write_card(prepared: "Prepared", outcome: "Outcome", out: Path, command: str) -> None:
    """Write README.md beside what was trained."""
    text = "\n".join(_lines(prepared, outcome, read(out / METRICS_FILE), command)) + "\n"
    replace_file(outcome.path / CARD, text.encode())


def _lines(prepared: "Prepared", outcome: "Outcome", records: list[dict[str, Any]], command: str) -> list[str]:
    recipe, report = prepared.recipe, prepared.report
    lines = ["---", f"base_model: {prepared.name}", "tags:", "- gemworks", "- gemma3"]
    lines += ["library_name: peft"] if recipe.adapter is not None else []
    lines += ["---", "", f"# {prepared.model}, tuned", ""]
    what = "preferences" if isinstance(recipe.method, DPO) else "conversations"
    lines += [
        f"{method_text(recipe)[0].upper()}{method_text(recipe)[1:]}: {num_trained(recipe):,} of "
        f"{prepared.num_parameters:,} parameters, trained on {report.used:,} {what}. Use is under the terms of the "
        "base model and of the data.",
        "",
    ]
    lines += _table("Figures", _figures(outcome, records))
    lines += _table("Training", _training(prepared))
    lines += _table("Data", _data(prepared))
    if command:
        lines += ["## Again", "", "```", command, "```", ""]
    lines += _samples(records, outcome.best_step)
    return [*lines, f"Made by Gemworks {version('gemworks')}."]


def _figures(outcome: "Outcome", records: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = [("steps", f"{outcome.step:,}" + (" (validation found nothing better)" if outcome.stopped_early else ""))]
    if records:
        rows += [("loss of the first step", f"{records[0]['loss']:.4f}"), ("of the last", f"{records[-1]['loss']:.4f}")]
    if outcome.best is not None:
        rows += [("validation loss before", f"{outcome.before:.4f}"), ("after", f"{outcome.best:.4f}")]
        rows += [("after step", f"{outcome.best_step:,}")]
    kept = next((one for one in records if one["step"] == outcome.best_step), {})
    rows += [
        (name.replace("_", " "), f"{kept[name]:.4f}")
        for name in kept
        if name.startswith("validation_") and name != "validation_loss"
    ]
    return rows


def _training(prepared: "Prepared") -> list[tuple[str, str]]:
    recipe = prepared.recipe
    rows = [
        ("tokens of a row", f"{recipe.tokens:,}"),
        ("rows of a step", f"{recipe.rows:,}" + (f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else "")),
        ("epochs", f"{recipe.steps * recipe.rows / prepared.source.num_rows:.2f}"),
        ("optimizer", f"{recipe.optimizer.name}, betas {recipe.optimizer.b1} and {recipe.optimizer.b2}"),
        ("peak rate", f"{recipe.optimizer.peak:g}, {recipe.schedule.kind}, {recipe.schedule.warm_up} steps up"),
        ("products in", recipe.dtype),
        ("seed", str(recipe.seed)),
    ]
    return rows + ([("beta", f"{recipe.method.beta:g}")] if isinstance(recipe.method, DPO) else [])


def _data(prepared: "Prepared") -> list[tuple[str, str]]:
    report = prepared.report
    rows = [(f"`{Path(name).name}`", f"sha256 {digest}") for name, digest in report.files.items()]
    rows += [("lines read", f"{report.read:,}"), ("learned from", f"{report.used:,}")]
    rows += [("held out", f"{report.held_out:,}"), ("skipped", f"{report.skipped.total:,}")]
    rows += [("cut to the length of a row", f"{report.cut.total:,}")]
    return [*rows, ("tokens", f"{report.tokens:,}, of which {report.learned:,} are learned")]


def _samples(records: list[dict[str, Any]], step: int) -> list[str]:
    samples = next((one["samples"] for one in records if one["step"] == step and one.get("samples")), [])
    lines = ["## Samples", ""] if samples else []
    for one in samples:
        parts = (("Prompt", one["prompt"]), ("The data says", one["wanted"]), ("The model says", one["answer"]))
        for name, text in parts:
            lines += [f"{name}:", "", *("    " + line for line in text[-600:].splitlines()), ""]
    return lines


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    return [f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
