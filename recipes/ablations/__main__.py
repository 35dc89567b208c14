"""Command line of the studies. A run that was stopped goes on where it was when it is started again."""

import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console

from gemworks.errors import GemworksError
from recipes.ablations.plan import STUDIES, Plan, arms

_CORPUS = Path(__file__).resolve().parents[3] / "shared/data/corpus/facts-*.jsonl.xz"


def main(
    out: Annotated[Path, typer.Option(help="Where corpus, runs and results are kept.")],
    only: Annotated[str, typer.Option(help="Studies to run; results are of all that is there.")] = ",".join(STUDIES),
    corpus: Annotated[Path, typer.Option(help="JSONL files of text, with *.")] = _CORPUS,
    figures: Annotated[Path | None, typer.Option(help="Where pictures go; default: OUT.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the arms and leave.")] = False,
) -> None:
    """Run what is missing of the studies, then write results.json, summary.md and the pictures."""
    console, plan = Console(stderr=True), Plan()
    wanted = [arm for arm in arms(plan) if arm.study in only.split(",")]
    if dry_run:
        for arm in wanted:
            console.print(f"{arm.name}: {arm.recipe.steps} steps of {plan.rows} x {plan.tokens} tokens", markup=False)
        return
    if find_spec("matplotlib") is None:  # before the hour, not after
        console.print('the pictures need matplotlib, and it is not installed. pip install "gemworks[bench]"')
        sys.exit(2)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))  # arms that differ in the seed share programs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    try:
        from recipes.ablations.corpus import prepare
        from recipes.ablations.running import run_arms
        from recipes.ablations.summary import write

        console.print("preparing the text")
        made = prepare(out / "corpus", str(corpus), plan)
        with console.status("starting") as status:
            tell = status.update if sys.stderr.isatty() else _every(console, 50)
            done = run_arms(out, wanted, made, plan, tell, lambda: bool(stopped))
        console.print(write(out, plan, figures or out), markup=False, soft_wrap=True)
    except GemworksError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        sys.exit(2)
    if not done:
        console.print("Stopped; the same command goes on from here.")
        sys.exit(130)


def _every(console: Console, number: int):
    """Tell every so many steps where nobody watches."""
    count = [0]

    def tell(text: str) -> None:
        count[0] += 1
        if count[0] % number == 1:
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return tell


if __name__ == "__main__":
    typer.run(main)
