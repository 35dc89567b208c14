"""gemworks pull: fetch a model from the hub."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from gemworks.cli import console


def pull(
    model: Annotated[str, typer.Argument(help="gemma3:1b, gemma3:4b-it-qat, org/repo, org/repo:Q8_0 ...")],
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Another hub (HF_ENDPOINT does the same). Your token is sent to it."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of a sentence.")] = False,
) -> None:
    """Fetch a model from the Hugging Face hub. Stopped or killed, the next pull goes on where it ended."""
    fetched = fetch(model, endpoint=endpoint)
    if json:
        console.emit_json(
            {
                "model": model,
                "repository": fetched.repository,
                "path": str(fetched.path),
                "fetched_bytes": fetched.fetched_bytes,
            }
        )
    elif fetched.fetched_bytes:
        console.line(f"{model} is ready ({console.size(fetched.fetched_bytes)} fetched). Try: gemworks run {model}")
    else:
        console.line(f"{model} is up to date.")


def fetch(model: str, *, endpoint: str | None = None):
    """Pull `model` with bars on stderr and return what download.pull returns. `run` calls it for a missing model."""
    from gemworks.weights import download

    choose = _choose if console.can_ask() else None
    try:
        with _bars() as progress:
            return download.pull(model, endpoint=endpoint, choose=choose, progress=progress, notify=console.note)
    except KeyboardInterrupt:
        console.note("Stopped. What has been fetched is kept; the next pull goes on from there.")
        raise


def _choose(files: list[str]) -> str:
    """Ask which of several GGUF files to fetch; Enter is the first, which is the format that suits most machines."""
    sys.stderr.write("This repository has several files:\n")
    for number, name in enumerate(files, 1):
        sys.stderr.write(f"  {number:2d}  {name}\n")
    while True:
        sys.stderr.write("Which one? [1] ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if not answer:
            raise typer.Abort
        answer = answer.strip() or "1"
        if answer.isdecimal() and 1 <= int(answer) <= len(files):
            return files[int(answer) - 1]
        if answer in files:
            return answer


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """One bar a file on stderr in a terminal; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = {}

        def progress(file: str, done: int, total: int) -> None:
            if file not in tasks:
                # What an earlier pull fetched must not count as speed.
                tasks[file] = bar.add_task(file, total=total if total >= 0 else None, completed=done)
            bar.update(tasks[file], completed=done, total=total if total >= 0 else None)

        yield progress
