"""A model answers the items of a task, some ahead of the one that is read: the engine computes them together."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemworks.errors import ContextLengthError
from gemworks.eval.intervals import Figure
from gemworks.eval.results import Results
from gemworks.eval.task import Task

# Requests that wait or run at once: enough to fill an engine of 8 sequences, few enough that a stop loses little.
_AHEAD = 16

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """What a model reached in a task.

    figures: of all items. groups: figures by category, length or position. skipped: items the model's context has no
    room for, by id; they are in no figure. records: every item's answer and score.
    """

    task: str
    kind: str
    model: str
    figures: list[Figure]
    groups: dict[str, list[Figure]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON has it, without the records."""
        return {
            "task": self.task,
            "kind": self.kind,
            "model": self.model,
            "figures": [figure.as_dict() for figure in self.figures],
            "groups": {name: [figure.as_dict() for figure in figures] for name, figures in self.groups.items()},
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "about": dict(self.about),
        }


def evaluate(
    llm: Any,
    task: Task,
    *,
    model: str,
    out: Path | None = None,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TaskResult:
    """Ask `llm` the items of `task` and score its answers.

    out: a file of results to go on with, or a new one. limit: only the first so many items. options: what else the
    answers depend on (how the model was loaded); kept in `out`, and compared when it goes on. Raises what the LLM
    raises, but an item for which the context has no room is skipped and counted.
    """
    started = time.perf_counter()
    items = task.items(llm)[:limit]
    about = {"task": task.name, "kind": task.kind, "digest": task.digest, "model": model, **(options or {})}
    results = Results(out, about)
    todo = deque(item for item in items if item["id"] not in results.records)
    done, waiting = len(items) - len(todo), deque[tuple[str, Callable[[], dict[str, Any]]]]()
    if progress is not None:
        progress(done, len(items))
    while todo or waiting:
        while todo and len(waiting) < _AHEAD:
            item = todo.popleft()
            try:
                waiting.append((item["id"], task.ask(llm, item)))
            except ContextLengthError as error:
                waiting.append((item["id"], lambda error=error: {"skipped": str(error)}))
        name, finish = waiting.popleft()
        results.add({"id": name, **finish()})
        done += 1
        if progress is not None:
            progress(done, len(items))
    records = [results.records[item["id"]] for item in items]
    answered = [record for record in records if "skipped" not in record]
    figures, groups = task.figures(answered)
    return TaskResult(
        task=task.name,
        kind=task.kind,
        model=model,
        figures=figures,
        groups=groups,
        skipped=[str(record["id"]) for record in records if "skipped" in record],
        seconds=time.perf_counter() - started,
        about=about | {"items": len(items)},
        records=records,
    )
