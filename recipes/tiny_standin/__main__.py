"""Command line of the recipe. Ctrl-C at any time leaves nothing behind."""

import os
import sys
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gemworks.errors import GemworksError
from gemworks.weights.atomic import check_target
from recipes.tiny_standin.build import make
from recipes.tiny_standin.card import Result
from recipes.tiny_standin.recipe import Recipe, tiny_config


def main(
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = Recipe().seed,
    steps: Annotated[int, typer.Option(help="Training steps.", min=1)] = Recipe().steps,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there.")] = False,
) -> None:
    """Train the tiny stand-in model from nothing and write it as a model directory."""
    console = Console(stderr=True)
    jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))  # see training.begin
    recipe = Recipe(seed=seed, steps=steps)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    try:
        check_target(out, force=force, kind="directory")  # before the minutes, not after
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            bar = progress.add_task("starting", total=1)

            def report(what: str, done: int, total: int) -> None:
                progress.update(bar, description=what, completed=done, total=total)

            result = make(out, recipe, tiny_config, force=force, report=report)
    except GemworksError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        sys.exit(130)
    console.print(_table(result))
    console.print(f"{out}: {result.num_parameters:,} parameters, {result.total_s:.0f} s")


def _table(result: Result) -> Table:
    table = Table("task", "as shipped", "fp32")
    for task, share in result.accuracy.items():
        table.add_row(task, f"{share:.1%}", f"{result.accuracy_fp32[task]:.1%}")
    return table


if __name__ == "__main__":
    typer.run(main)
