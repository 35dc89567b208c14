"""gemworks train: a run from its recipe, continued where it was if it was stopped."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemworks.cli import console

if TYPE_CHECKING:
    from gemworks.train.recipe import Recipe


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name in recipes/, or FILE.py[:function].")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change: optimizer.peak=3e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Directory of the run. Default: runs/RECIPE.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Directory whose tokenizer goes with the trained model.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print recipe, memory and sharding, and leave.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Continue a run whose recipe is not the same.")
    ] = False,
) -> None:
    """Train a model. Run the same command again to continue a run that was stopped."""
    from gemworks.train.assemble import assemble, find_recipe
    from gemworks.train.export import export
    from gemworks.train.loop import train as train_run
    from gemworks.train.metrics import METRICS_FILE, read
    from gemworks.train.plots import write_report
    from gemworks.train.recipe import flat, with_settings

    made = with_settings(find_recipe(recipe), settings or [])
    if dry_run:
        return _print_plan(made)
    directory = out or Path("runs") / Path(recipe.partition(":")[0]).stem
    directory.mkdir(parents=True, exist_ok=True)
    with _stop_on_signals() as should_stop, _view(made) as look:
        result = train_run(
            assemble(made), directory, observe=[look], should_stop=should_stop, accept_changes=accept_changes
        )
    write_report(
        directory / "report.html", f"Training run {directory.name}", flat(made), read(directory / METRICS_FILE)
    )
    if not result.is_done:
        console.note(f"Stopped after step {int(result.state.step):,} of {made.steps:,}, saved. Run it again to go on.")
        return
    export(directory / "model", made, result.state, tokenizer=tokenizer)
    console.line(f"Wrote {directory / 'model'} and {directory / 'report.html'}.")


def _print_plan(recipe: "Recipe") -> None:
    from gemworks.model.costs import num_parameters
    from gemworks.parallel.plan import check_batch, make_plan
    from gemworks.train.forward import parameter_shapes
    from gemworks.train.memory import plan_memory
    from gemworks.train.recipe import flat

    mesh = recipe.execution.mesh
    check_batch(mesh, rows=recipe.rows // recipe.accumulate, tokens=recipe.tokens)
    plan = make_plan(recipe.model, parameter_shapes(recipe.model), mesh)
    console.pairs([(name, str(value)) for name, value in flat(recipe).items() if name != "model.layers"])
    console.line()
    tokens = recipe.rows * recipe.tokens
    console.line(
        f"{num_parameters(recipe.model):,} parameters, {tokens:,} tokens a step, "
        f"{tokens * recipe.steps:,} in all; {mesh}"
    )
    console.line()
    memory = plan_memory(recipe, plan)
    rows = [(name.replace("_", " "), console.size(value)) for name, value in memory._asdict().items()]
    console.columns(("on each device", "bytes"), [*rows, ("in all", console.size(memory.total))], right=(1,))
    console.line()
    console.columns(("parameters", "shape", "divided over", "parts"), plan.table(), right=(3,))


@contextmanager
def _stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM end the run with a checkpoint; the second ends it at once."""
    stopped: list[int] = []
    before = {}

    def note(number: int, _frame: Any) -> None:
        stopped.append(number)
        signal.signal(number, before[number])
        console.note("stopping after this step; once more stops at once, without a checkpoint")

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield lambda: bool(stopped)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _view(recipe: "Recipe") -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Show records: a bar with the last figures in a terminal, else about a hundred lines in all."""
    import sys

    if not sys.stderr.isatty():
        every = max(1, recipe.steps // 100)

        def tell(record: Mapping[str, Any]) -> None:
            if record["step"] % every == 0 or record["step"] == recipe.steps:
                console.note(f"step {record['step']:,} of {recipe.steps:,}   {_figures(record)}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=recipe.steps, figures="compiling")
        yield lambda record: bar.update(task, completed=record["step"], figures=_figures(record))


def _figures(record: Mapping[str, Any]) -> str:
    mfu = f"   {record['mfu']:.1%} of peak" if "mfu" in record else ""
    return (
        f"loss {record['loss']:.4f}   gradient {record['grad_norm']:.3f}   rate {record['rate']:.2e}   "
        f"{record['tokens_per_second']:,.0f} tokens/s{mfu}"
    )
