"""gemworks tune: a model and a file of conversations in, an adapter or a model out; again after a stop goes on."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemworks.cli import console

if TYPE_CHECKING:
    from gemworks.train.tune import Outcome, Prepared

_CHOSEN = "Default: chosen, and shown before the start."


_Method = Annotated[
    str, typer.Option(metavar="NAME", help="lora, dora, qlora, full, prompt; dpo learns from preferences.")
]
_Validation = Annotated[
    str, typer.Option(metavar="SHARE|FILE", help="What is held out: a share, or a file; 0 for nothing.")
]
_Patience = Annotated[
    int, typer.Option(metavar="N", min=0, help="Stop after N examinations without a better loss; 0 never.")
]
_Long = Annotated[str, typer.Option(metavar="HOW", help="Conversations longer than a row: truncate, skip or stop.")]
_Bad = Annotated[str, typer.Option(metavar="HOW", help="Lines that cannot be learned from: stop or skip.")]
_Style = Annotated[str | None, typer.Option(metavar="NAME", help="How calls are written: python or json.")]
_Recipe = Annotated[
    str | None, typer.Option(metavar="NAME", help="Take all from a recipe: a name in recipes/, or FILE.py[:function].")
]
_Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe's setting.")]
_Epochs = Annotated[float | None, typer.Option(metavar="N", help="Default: 3; dpo: 1.")]
_Steps = Annotated[int | None, typer.Option(metavar="N", min=1, help="In place of --epochs.")]
_Rate = Annotated[float | None, typer.Option(metavar="R", help=f"Largest learning rate. {_CHOSEN}")]
_Batch = Annotated[int | None, typer.Option(metavar="TOKENS", min=1, help=f"Tokens of a step. {_CHOSEN}")]
_Length = Annotated[int | None, typer.Option(metavar="T", min=2, help=f"Tokens of a row. {_CHOSEN}")]
_Rank = Annotated[int | None, typer.Option(metavar="R", min=1, help="Of the adapter. Default: 16.")]
_Alpha = Annotated[float | None, typer.Option(metavar="A", help="Of the adapter. Default: twice the rank.")]
_Targets = Annotated[str, typer.Option(metavar="NAMES", help="Matrices to adapt, as in q,v. Default: all.")]
_Samples = Annotated[int, typer.Option(metavar="N", min=0, help="Prompts that are answered at examinations.")]


def tune(
    model: Annotated[str, typer.Argument(help="gemma3:1b, a directory or a file, as for: gemworks run.")],
    data: Annotated[list[str], typer.Argument(help="JSONL files or directories: conversations, or preferences.")],
    method: _Method = "lora",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Default: runs/DATA-METHOD.")] = None,
    epochs: _Epochs = None,
    steps: _Steps = None,
    rate: _Rate = None,
    batch: _Batch = None,
    length: _Length = None,
    rank: _Rank = None,
    alpha: _Alpha = None,
    targets: _Targets = "",
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")] = False,
    soft_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Length of a tuned prompt.")] = 20,
    beta: Annotated[float, typer.Option(metavar="B", help="dpo: how dear it is to leave the base.")] = 0.1,
    validation: _Validation = "0.05",
    patience: _Patience = 3,
    samples: _Samples = 2,
    bad: _Bad = "stop",
    long: _Long = "truncate",
    tool_style: _Style = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another order, another beginning.")] = 0,
    recipe: _Recipe = None,
    settings: _Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and leave.")] = False,
) -> None:
    """Adapt a model to conversations or preferences of your own. The same command again goes on where it stopped."""
    asked = dict(locals())  # before anything else is named here
    prepared = _prepare(asked, directory := out or Path("runs") / f"{Path(data[0]).name.partition('.')[0]}-{method}")
    _print_plan(prepared, directory)
    if not dry_run:
        _run(prepared, directory)


def _prepare(asked: dict[str, Any], directory: Path) -> "Prepared":
    from gemworks.train.assemble import find_recipe
    from gemworks.train.tune import prepare
    from gemworks.train.tuning import TuneOptions

    known = {field.name for field in fields(TuneOptions)}
    told: dict[str, Any] = {name: value for name, value in asked.items() if name in known}
    told["validation"] = _validation(asked["validation"])
    options = TuneOptions(**told)
    with console.loading("reading") as progress:
        return prepare(
            asked["model"],
            asked["data"],
            options,
            out=directory,
            budget=_budget(),
            recipe=None if asked["recipe"] is None else find_recipe(asked["recipe"]),
            settings=asked["settings"] or [],
            progress=progress,
        )


def _run(prepared: "Prepared", directory: Path) -> None:
    import sys

    from gemworks.cli.train import stop_on_signals
    from gemworks.cli.train_view import view
    from gemworks.train.metrics import METRICS_FILE, read
    from gemworks.train.plots import write_report
    from gemworks.train.recipe import flat
    from gemworks.train.tune import tune as run

    command = shlex.join(["gemworks", *sys.argv[1:]])
    with stop_on_signals() as should_stop, view(prepared.recipe, directory) as look:
        outcome = run(
            prepared, directory, observe=[look, _tell_examination()], should_stop=should_stop, command=command
        )
    records = read(directory / METRICS_FILE)
    write_report(directory / "report.html", f"Tuning run {directory.name}", flat(prepared.recipe), records)
    _print_outcome(prepared, outcome, directory)


def _print_plan(prepared: "Prepared", directory: Path) -> None:
    from gemworks.train.tune_card import method_text, num_trained

    recipe, report = prepared.recipe, prepared.report
    trained, source = num_trained(recipe), prepared.source
    tokens = recipe.rows * recipe.tokens
    parts = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
    rows = [
        ("model", f"{prepared.model}, {prepared.num_parameters:,} parameters"),
        ("trains", f"{method_text(recipe)}: {trained:,} parameters"),
        ("data", f"{report.used:,} to learn from, {report.held_out:,} held out, of {report.read:,} lines"),
        ("tokens", f"{report.tokens:,}, of which {report.learned:,} are learned"),
        ("rows", f"{source.num_rows:,} of {recipe.tokens:,} tokens, {source.fill:.1%} full"),
        ("a step", f"{recipe.rows} rows{parts}, {tokens:,} tokens"),
        ("steps", f"{recipe.steps:,}, {recipe.steps * recipe.rows / source.num_rows:.1f} epochs"),
        ("rate", f"{recipe.optimizer.peak:g}, {recipe.schedule.kind}, {recipe.schedule.warm_up} steps up"),
        ("memory", f"{console.size(prepared.needed)} of {console.size(prepared.budget)}, by arithmetic"),
        (
            "examined",
            f"every {recipe.execution.examine_every:,} steps" if prepared.held or prepared.samples else "never",
        ),
        ("writes", str(directory / prepared.final)),
    ]
    console.pairs(rows)
    console.line()
    for lines, what in ((report.skipped, "skipped"), (report.cut, "cut")):
        if lines.total:
            console.warn("\n".join([f"{lines.total:,} lines are {what}:", *lines.shown()]))
    if prepared.held is None and prepared.options.validation:
        console.warn("no conversation falls into the share that is held out: there is no validation and no early stop.")
    if prepared.needed > prepared.budget:
        console.warn("a step needs more memory than there is, by arithmetic. Lower --batch or --length.")


def _tell_examination() -> Callable[[Mapping[str, Any]], None]:
    """An observer that writes what an examination found."""
    told: list[float] = []

    def tell(record: Mapping[str, Any]) -> None:
        if "validation_loss" in record:
            loss = record["validation_loss"]
            best = "" if told and loss >= min(told) else ", the best so far"
            told.append(loss)
            console.note(f"step {record['step']:,}: validation loss {loss:.4f}{best}")
        for one in record.get("samples", ()):
            console.note(f"  {_end(one['prompt'])} -> {_end(one['answer'])}   (the data says {_end(one['wanted'])})")

    return tell


def _print_outcome(prepared: "Prepared", outcome: "Outcome", directory: Path) -> None:
    steps = prepared.recipe.steps
    if not outcome.is_done:
        console.note(f"Stopped after step {outcome.step:,} of {steps:,}, saved. Run it again to go on.")
        return
    if outcome.best is not None:
        console.line(
            f"Validation loss {outcome.before:.4f} before, {outcome.best:.4f} after step {outcome.best_step:,}"
            + (": nothing better came, so the run ended." if outcome.stopped_early else ".")
        )
    console.line(f"Wrote {outcome.path} and {directory / 'report.html'}. Try it:")
    model = shlex.quote(prepared.model)
    path = shlex.quote(str(outcome.path))
    console.line(f"  gemworks run {path}" if prepared.final == "model" else f"  gemworks run {model} --adapter {path}")


def _validation(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _budget() -> int:
    """Bytes that a step may take: of the first device, or where it does not say 0.9 of what the machine has free."""
    import jax

    from gemworks import machine

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit") or 0.9 * machine.memory().available)


def _end(text: str) -> str:
    """The end of a text in one line."""
    return repr(text if len(text) <= 60 else "..." + text[-57:])
