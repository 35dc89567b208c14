"""gemworks eval: how good models are, with n and an interval beside every figure.

gemworks eval tools MODEL [CASES.jsonl]        function calls
gemworks eval MODEL... --tasks NAME_OR_FILE    anything that a task file describes
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemworks.cli import console
from gemworks.errors import ConfigError

if TYPE_CHECKING:
    from gemworks.eval import Figure, Task, TaskResult

_TOOLS = "tools"


def eval_(
    words: Annotated[
        list[str], typer.Argument(metavar="[tools] MODEL... [CASES]", help="Models; or tools, a model, a case file.")
    ],
    tasks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Sets that ship or task files, with commas between.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep answers there; run again to go on.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the first N items of each task.")] = None,
    execute: Annotated[
        Path | None, typer.Option(metavar="FILE.py", help="Run calls of its functions and compare results, too.")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page that compares the models.")] = None,
    context: Annotated[int | None, typer.Option(metavar="N", help="Prompt and answer together, in tokens.")] = None,
    dtype: Annotated[str, typer.Option(metavar="TYPE", help="auto, bfloat16 or float32.")] = "auto",
    quant: Annotated[str | None, typer.Option(metavar="FORMAT", help="Quantize: int4-b32, int8 ...")] = None,
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="An adapter, as PEFT saves it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object instead of tables.")] = False,
) -> None:
    """Measure models by tasks: function calls, likelihood, multiple choice, answers, long contexts, memorization."""
    models, wanted = _asked(words, tasks)
    found = [_find(one) for one in wanted]
    _check(models, found)
    options = {name: str(value) for name, value in {"quant": quant, "adapter": adapter}.items() if value}
    options |= {"dtype": dtype} if dtype != "auto" else {}
    loaded = {"dtype": dtype, "context": context, "quant": quant, "adapter": adapter}
    results: list[TaskResult] = []
    with _executing(found, execute):
        for model in models:
            results += _measure(model, found, loaded, options | ({"context": context} if context else {}), out, limit)
    told = [result.as_dict() for result in results]
    if json:
        console.emit_json({"results": told})
    else:
        for result in results:
            _show(result)
    if report is not None:
        from gemworks.eval import write_html

        write_html(report, told)
        console.note(f"Wrote {report}.")


def _asked(words: Sequence[str], tasks: str | None) -> tuple[list[str], list[str]]:
    """(models, tasks) of a command line."""
    if words[0] == _TOOLS:
        if tasks is not None:
            raise ConfigError("eval tools measures calls, and --tasks names what to measure: give one of them.")
        models = [word for word in words[1:] if not word.endswith((".jsonl", ".toml"))]
        files = [word for word in words[1:] if word.endswith((".jsonl", ".toml"))]
        if not models or len(files) > 1:
            raise ConfigError("eval tools needs a model and may have one case file: gemworks eval tools tiny my.jsonl")
        return models, files or [_TOOLS]
    if tasks is None:
        raise ConfigError("eval needs --tasks, as in: gemworks eval tiny --tasks needle; or: gemworks eval tools tiny")
    return list(words), [one.strip() for one in tasks.split(",") if one.strip()]


def _find(told: str) -> "Task":
    from gemworks.eval import find_task

    return find_task(told)


def _check(models: Sequence[str], tasks: Sequence["Task"]) -> None:
    """What would end the command after minutes is found before anything is loaded."""
    from gemworks.weights import hub

    if not tasks:
        raise ConfigError("--tasks must name at least one task.")
    names = [task.name for task in tasks]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two tasks are called {again[0]}; give one of them another name in its file.")
    for model in models:
        hub.resolve(model)


@contextlib.contextmanager
def _executing(tasks: Sequence[Any], file: Path | None) -> Iterator[None]:
    """Give the tasks of calls the functions of a file inside the context."""
    if file is None:
        yield
        return
    calls = [task for task in tasks if task.kind == "calls"]
    if not calls:
        raise ConfigError("--execute runs function calls, and none of the tasks has some.")
    from gemworks.tools import Toolbox

    box = Toolbox.from_file(file)
    for task in calls:
        task.execute = box
    try:
        yield
    finally:
        for task in calls:
            task.execute = None


def _measure(
    model: str,
    tasks: Sequence["Task"],
    loaded: Mapping[str, Any],
    options: Mapping[str, Any],
    out: Path | None,
    limit: int | None,
) -> list["TaskResult"]:
    from gemworks.eval import evaluate

    llm = _load(model, **loaded)
    results = []
    try:
        for task in tasks:
            own = {**options, **({"executed": True} if getattr(task, "execute", None) else {})}
            file = out / f"{_slug(model)}-{_slug(task.name)}.jsonl" if out else None
            with console.counting(f"{model}: {task.name}") as progress:
                done = evaluate(llm, task, model=model, out=file, limit=limit, options=own, progress=progress)
            results.append(done)
    finally:
        llm.close()
    return results


def _load(model: str, **options: Any) -> Any:
    from gemworks import LLM

    with console.loading(f"loading {model}") as progress:
        packing = progress.named(f"packing {model}") if progress else None
        return LLM(model, progress=progress, packing=packing, **options)


def _show(result: "TaskResult") -> None:
    console.line()
    console.line(f"{result.model}, {result.task}")
    rows = [_row(figure, "") for figure in result.figures]
    for group, figures in result.groups.items():
        rows += [_row(figure, group if len(figures) == 1 else f"{group}: {figure.name}") for figure in figures]
    console.columns(("figure", "value", "95 % interval", "n"), rows, right=(1, 2, 3))
    if result.skipped:
        console.note(f"{len(result.skipped):,} items were longer than the model's context and are in no figure.")


def _row(figure: "Figure", name: str) -> tuple[str, str, str, str]:
    digits, unit, factor = (1, " %", 100) if figure.is_share else (3, "", 1)

    def text(value: float | None) -> str:
        return "none" if value is None else f"{factor * value:.{digits}f}"

    between = f"{text(figure.low)} to {text(figure.high)}" if figure.low is not None else "none"
    value = "none" if figure.value is None else text(figure.value) + unit
    return f"  {name}" if name else figure.name, value, between, f"{figure.n:,}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
