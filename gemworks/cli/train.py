"""gemworks train: a run from its recipe, continued where it was if it was stopped; alone or as one of several."""

import os
import signal
from collections.abc import Callable, Iterator
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
    coordinator: Annotated[
        str | None,
        typer.Option(
            "--coordinator", metavar="HOST:PORT", help="Train as one of several processes; auto: as the cluster says."
        ),
    ] = None,
    processes: Annotated[int | None, typer.Option("--processes", help="How many there are.")] = None,
    process: Annotated[int | None, typer.Option("--process", help="Which this is; 0 listens at HOST:PORT.")] = None,
    watched: Annotated[
        bool, typer.Option("--watched", hidden=True, help="Set where another gemworks started this process.")
    ] = False,
) -> None:
    """Train a model. Run the same command again to continue a run that was stopped."""
    directory = out or Path("runs") / Path(recipe.partition(":")[0]).stem
    if dry_run:
        return _print_plan(recipe, settings or [])
    directory.mkdir(parents=True, exist_ok=True)
    if coordinator is None:
        if processes is not None or process is not None:
            raise typer.BadParameter("--processes and --process go with --coordinator.")
        return _train(recipe, settings or [], directory, tokenizer, accept_changes)
    log = directory / f"process-{'auto-' + str(os.getpid()) if process is None else process}.log"
    if not watched:
        from gemworks.cli.watch import watch

        given = {"--out": out, "--tokenizer": tokenizer, "--coordinator": coordinator}
        given |= {"--processes": processes, "--process": process}
        flags = [text for name, value in given.items() if value is not None for text in (name, str(value))]
        flags += ["--accept-changes"] * accept_changes
        raise typer.Exit(watch(["train", recipe, *(settings or []), *flags, "--watched"], directory, log))
    _train_together(
        log, (coordinator, processes, process), (recipe, settings or [], directory, tokenizer, accept_changes)
    )


def _train_together(log: Path, peers: tuple[str, int | None, int | None], what: tuple[Any, ...]) -> None:
    """One process's share of a run: whatever ends it ends it at once, or it would wait for the others for ever."""
    import traceback

    from gemworks.cli.watch import log_native_output
    from gemworks.errors import GemworksError
    from gemworks.parallel import multihost

    log_native_output(log)
    code = 1
    try:
        multihost.connect(*peers)
        return _train(*what)
    except GemworksError as error:
        console.error(str(error))
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BaseException as error:
        if multihost.is_lost_peer(error):
            console.error(str(multihost.lost(what[2] / "checkpoints")))
            code = 2
        else:
            traceback.print_exc()
    multihost.leave(code)


def _train(name: str, settings: list[str], directory: Path, tokenizer: Path | None, accept_changes: bool) -> None:
    from gemworks.cli.train_view import view
    from gemworks.parallel import multihost
    from gemworks.train.assemble import assemble, find_recipe
    from gemworks.train.export import export, gathered
    from gemworks.train.loop import train as train_run
    from gemworks.train.metrics import METRICS_FILE, read
    from gemworks.train.plots import write_report
    from gemworks.train.recipe import flat, with_settings

    recipe = multihost.together(lambda: with_settings(find_recipe(name), settings))
    run = multihost.together(lambda: assemble(recipe))
    with stop_on_signals() as should_stop, view(recipe, directory) as look:
        result = train_run(run, directory, observe=[look], should_stop=should_stop, accept_changes=accept_changes)
    state = gathered(result.state) if result.is_done else result.state
    is_first, step = multihost.is_first(), int(state.step)
    multihost.part()
    if not is_first:
        return
    write_report(
        directory / "report.html", f"Training run {directory.name}", flat(recipe), read(directory / METRICS_FILE)
    )
    if not result.is_done:
        console.note(f"Stopped after step {step:,} of {recipe.steps:,}, saved. Run it again to go on.")
        return
    export(directory / "model", recipe, state, tokenizer=tokenizer)
    console.line(f"Wrote {directory / 'model'} and {directory / 'report.html'}.")


def _print_plan(name: str, settings: list[str]) -> None:
    from gemworks.model.costs import num_parameters
    from gemworks.parallel.plan import check_batch, make_plan
    from gemworks.train.assemble import find_recipe
    from gemworks.train.forward import parameter_shapes
    from gemworks.train.memory import plan_memory
    from gemworks.train.recipe import flat, with_settings

    recipe: Recipe = with_settings(find_recipe(name), settings)
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
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM end the run with a checkpoint; the second ends it at once.

    As one of several, so does the end of the process that started this one.
    """
    stopped: list[int] = []
    before = {}
    parent = os.getppid()

    def note(number: int, _frame: Any) -> None:
        stopped.append(number)
        signal.signal(number, before[number])
        console.note("stopping after this step; once more stops at once, without a checkpoint")

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, note)
    try:
        yield lambda: bool(stopped) or os.getppid() != parent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
