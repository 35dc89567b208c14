"""How good a model is, with n and an interval beside every figure. docs/eval.md tells how to use it. No jax.

    task.py        what is measured: a TOML file, or a set that ships in sets/
    kinds/         how: calls, perplexity, choice, match, needle, memorize
    running.py     a model answers a task's items, a few ahead of the one that is read
    results.py     answers on disk, so that a run that was stopped goes on
    intervals.py   Wilson's interval of a share, and the interval of a ratio
    report.py      one HTML page that compares models

Models come as gemworks.LLM, or as anything with its `prepare`, `submit`, `context` and `tokenizer`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemworks.eval.intervals import Figure, ratio, share
    from gemworks.eval.report import write_html
    from gemworks.eval.results import Results
    from gemworks.eval.running import TaskResult, evaluate
    from gemworks.eval.task import Task, find_task, read_task

__all__ = [
    "Figure",
    "Results",
    "Task",
    "TaskResult",
    "evaluate",
    "find_task",
    "ratio",
    "read_task",
    "share",
    "write_html",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module gemworks.eval has no attribute {name}")
    from gemworks.eval import intervals, report, results, running, task

    return next(getattr(home, name) for home in (intervals, results, running, task, report) if hasattr(home, name))
