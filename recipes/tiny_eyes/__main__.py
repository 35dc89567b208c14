"""Command line of the recipe. A run that was stopped goes on where it was when it is started again."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from gemworks.errors import GemworksError
from gemworks.weights.atomic import check_target
from recipes.tiny_eyes.card import said
from recipes.tiny_eyes.evaluation import Score, evaluate
from recipes.tiny_eyes.recipe import EyesRecipe

_TINY = Path(__file__).parents[2] / "gemworks" / "assets" / "tiny"


def main(
    out: Annotated[Path | None, typer.Option(help="The directory to write.")] = None,
    work: Annotated[Path | None, typer.Option(help="Where stages are kept; default: OUT with .work behind it.")] = None,
    seed: Annotated[int, typer.Option(help="Everything random follows from it.")] = EyesRecipe().seed,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is there.")] = False,
    evaluate_only: Annotated[bool, typer.Option("--evaluate", help="Ask a model about pictures it never saw.")] = False,
    model: Annotated[Path, typer.Option(help="The model that --evaluate asks.")] = _TINY,
    scenes: Annotated[int, typer.Option(help="Held-out scenes of each kind of question.", min=1)] = 1000,
) -> None:
    """Train `tiny` with eyes from nothing, or evaluate one."""
    console = Console(stderr=True)
    if out is None and not evaluate_only:
        console.print("Say where to write the model (--out DIRECTORY), or --evaluate.")
        sys.exit(2)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    try:
        if out is not None:
            check_target(out, force=force, kind="directory")  # before the minutes, not after
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            bar = progress.add_task("starting", total=1)

            def report(what: str, done: int, total: int) -> None:
                progress.update(bar, description=what, completed=done, total=total or None)

            if out is None:
                scores = evaluate(model, seed=seed, number=scenes, report=report)
            else:
                from recipes.tiny_eyes.build import make  # needs the [train] extra

                recipe = EyesRecipe(held_scenes=scenes).seeded(seed)
                kept = work or out.with_name(f"{out.name}.work")
                scores = make(out, recipe, work=kept, force=force, report=report).scores
    except GemworksError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        sys.exit(130)
    Console().print(_table(scores))


def _table(scores: list[Score]) -> Table:
    table = Table("question", "words", "right (95 %)", "with crops")
    for one in scores:
        words = "new" if one.is_new_words else "known"
        table.add_row(one.kind, words, said(one), f"{one.cropped_right} of {one.cropped_number}")
    return table


if __name__ == "__main__":
    typer.run(main)
