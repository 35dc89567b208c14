"""`gemworks bench cpu`: ours, the xla twin and rivals in turns on the same shapes, beside the peaks of this machine.

Every system lives in a process of its own and sleeps while it is not asked. A row is measured in rounds (rounds.py),
and the peaks between rounds. Medians are reported. Before anything is timed, scores of the next token are compared.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemworks.bench import figures as figures_of
from gemworks.bench import rows as rows_of
from gemworks.bench.answers import compare
from gemworks.bench.peaks import Peaks, measure
from gemworks.bench.random_model import config_of
from gemworks.bench.remote import Remote
from gemworks.bench.rounds import Samples, interleaved
from gemworks.bench.starts import Start, start
from gemworks.bench.system import SystemSpec
from gemworks.bench.targets import verdicts
from gemworks.errors import BackendError, ConfigError
from gemworks.model import costs
from gemworks.model.config import TextConfig

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to measure of one model. `log` is the file that gets what the workers print."""

    model: str
    specs: list[SystemSpec]
    whats: tuple[str, ...]
    repeats: int
    threads: int
    log: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where systems run and peaks come from; tests put others in their place."""

    connect: Callable[[SystemSpec, Path], Any] = Remote
    peaks: Callable[[int], Peaks] = measure
    start: Callable[..., Start] = start


def check_whats(asked: str) -> tuple[str, ...]:
    """Return the rows that a comma-separated list names; "all" is all. Raises ConfigError for others."""
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    if names == ("all",):
        return rows_of.WHATS
    for name in names or ("",):
        if name not in rows_of.WHATS:
            raise ConfigError(f'--what must be all or some of {", ".join(rows_of.WHATS)}, got "{name}".')
    return names


def run(plan: Plan, say: Say, machine: Machine | None = None) -> dict[str, Any]:
    """Measure one model and return its part of the report (report.py). `say` is told what happens.

    A system that cannot be loaded or fails is told and left out.
    """
    machine = machine or Machine()
    config = config_of(plan.model)
    seen = [machine.peaks(plan.threads)]
    workers = _connect(plan, machine, say)
    try:
        answers = compare(config, workers, say)
        samples = _measure(plan, config, workers, lambda: seen.append(machine.peaks(plan.threads)), say)
        facts = {
            name: worker.prepare(context=rows_of.SHORT_CONTEXT, sequences=1) for name, (_, worker) in workers.items()
        }
    finally:
        for _, worker in workers.values():
            worker.close()
    samples |= _fresh_processes(plan, config, machine, say)
    peaks = figures_of.median_peaks(seen)
    specs = {spec.name: spec for spec in plan.specs}
    table = {
        row: {name: figures_of.figures(row, values, config, specs[name], peaks) for name, values in by_system.items()}
        for row, by_system in samples.items()
    }
    for by_system in table.values():
        figures_of.add_ratios(by_system)
    return {
        "model": plan.model,
        "peaks": asdict(peaks),
        "systems": {
            name: {"weight_bytes": figures_of.weight_bytes(config, specs[name]), **facts[name]} for name in facts
        },
        "answers": answers,
        "rows": table,
        "targets": [asdict(verdict) | {"is_met": verdict.is_met} for verdict in verdicts(plan.model, table)],
    }


def _connect(plan: Plan, machine: Machine, say: Say) -> dict[str, tuple[SystemSpec, Any]]:
    """Name -> (spec, worker) of every system that loads."""
    rows = rows_of.rows(config_of(plan.model), plan.whats)
    workers = {}
    for spec in plan.specs:
        if not any(row.takes(spec) for row in rows):
            continue
        say(f"{plan.model}: loading {spec.name}")
        try:
            workers[spec.name] = spec, machine.connect(spec, plan.log)
        except BackendError as error:
            say(f"left out: {error}")
    return workers


def _measure(plan: Plan, config: TextConfig, workers, between: Callable[[], None], say: Say) -> Samples:
    """Row -> system -> values, of the rows that workers measure."""
    samples: Samples = {}
    for row in rows_of.rows(config, plan.whats):
        say(f"{plan.model}: {row.what}")
        calls = {name: partial(row.measure, worker) for name, (spec, worker) in workers.items() if row.takes(spec)}
        for name, by_figure in interleaved(calls, plan.repeats, between=between, say=say).items():
            for figure, values in by_figure.items():
                samples.setdefault(figure, {})[name] = values
    return samples


def _fresh_processes(plan: Plan, config: TextConfig, machine: Machine, say: Say) -> Samples:
    """The rows whose every value is a process: start and memory. The first fills the caches and is not counted."""
    spec = next((spec for spec in plan.specs if rows_of.is_main(spec)), None)
    samples: Samples = {}
    if spec is None:
        return samples

    def starts(prompt: int, count: int, repeats: int) -> list[Start]:
        ids = rows_of.prompt(prompt, 5, config)
        return [machine.start(spec, ids, count, plan.log) for _ in range(repeats + 1)][1:]

    try:
        if "start" in plan.whats:
            say(f"{plan.model}: start")
            found = starts(rows_of.START_PROMPT, rows_of.START_TOKENS, plan.repeats)
            samples["start"] = {spec.name: [one.first_s for one in found]}
        if "memory" in plan.whats:
            say(f"{plan.model}: memory")
            found = starts(rows_of.MEMORY_PROMPT, rows_of.MEMORY_TOKENS, 2)
            weights = figures_of.weight_bytes(config, spec)
            over = [
                float(one.peak_bytes - weights - costs.kv_bytes(config, one.context)) for one in found if one.peak_bytes
            ]
            samples |= {"memory": {spec.name: over}} if over else {}
    except BackendError as error:
        say(str(error))
    return samples
