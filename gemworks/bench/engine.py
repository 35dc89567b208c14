"""`gemworks bench engine`: how the engine does under load, and whether it reaches what it is to reach.

Scenarios (engine_scenarios.py) run in a worker with the engine; `streams` takes turns with llama.cpp, each in a process
of its own, doing what llama-batched-bench does: N prompts of 128 tokens at once, then 64 tokens of each.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.bench import models as files
from gemworks.bench.answers import compare
from gemworks.bench.engine_load import Load
from gemworks.bench.engine_scenarios import SCENARIOS, Setting
from gemworks.bench.remote import Remote
from gemworks.bench.rounds import interleaved
from gemworks.bench.rows import prompt
from gemworks.bench.system import SystemSpec
from gemworks.bench.targets import Verdict
from gemworks.errors import BackendError, ConfigError
from gemworks.model.config import RELEASED, TextConfig
from gemworks.weights.checkpoint import open_checkpoint

Say = Callable[[str], None]

STREAMS = (1, 4, 8, 16)
STREAM_PROMPT, STREAM_ANSWER = 128, 64
_STREAM_CONTEXT = STREAM_PROMPT + STREAM_ANSWER + 1
OVER_RIVAL = 2.0  # total tokens a second, ours over llama.cpp's
FLAT = 1.02  # resident memory after the last round over that after the first

NAMES = ("streams", *SCENARIOS)

# Names under which `answers.compare` knows the two.
_OURS, _LLAMA = "ours int4-b32+int8", "llama.cpp q4_0"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to ask of one model. `rival`: llama.cpp's file of the same weights; `log` gets what the workers print."""

    model: str
    config: TextConfig
    ours: SystemSpec
    rival: SystemSpec | None
    names: tuple[str, ...]
    setting: Setting
    log: Path


def check_names(asked: str) -> tuple[str, ...]:
    """Return the scenarios that a comma-separated list names; "all" is all. Raises ConfigError for others."""
    names = tuple(name.strip() for name in asked.split(",") if name.strip())
    if names == ("all",):
        return NAMES
    for name in names or ("",):
        if name not in NAMES:
            raise ConfigError(f'--scenario must be all or some of {", ".join(NAMES)}, got "{name}".')
    return names


def check_mix(asked: str) -> tuple[str, ...]:
    """Return the kinds of prompts that a comma-separated list names; Load refuses unknown ones."""
    return tuple(name.strip() for name in asked.split(",") if name.strip())


def find_systems(model: str, folder: Path, format: str, say: Say, *, threads: int, has_rival: bool) -> dict[str, Any]:
    """Return what a Plan wants to know of a model: its name, its config, ours and llama.cpp's.

    model: a released size, whose random weights are made in `folder` where they are missing, or a directory.
    llama.cpp's file is looked for beside the weights and made in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_size = model.lower() in RELEASED
    base = folder / model.lower() if is_size else Path(model)
    if not is_size and not (base / "config.json").is_file():
        raise ConfigError(f'--model must be one of {", ".join(RELEASED)} or a directory with a model, got "{model}".')
    wanted = [SystemSpec("engine", format, str(base), threads)]
    if has_rival:
        name = f"{base.name}-q4_0.gguf"
        beside = base.with_name(name)
        path = beside if beside.is_file() else folder / name
        wanted.append(SystemSpec("llama.cpp", "q4_0", str(path), threads))
    made = files.make_missing(base.name, wanted, base.parent, files.find_tokenizer(), say)
    with open_checkpoint(base) as checkpoint:
        config = checkpoint.config
    return {"model": base.name, "config": config, "ours": made[0], "rival": made[1] if len(made) > 1 else None}


def without_samples(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report without the time of every token, which only the picture wants."""
    scenarios = {
        name: {key: value for key, value in figures.items() if key != "samples"}
        for name, figures in report["scenarios"].items()
    }
    return report | {"scenarios": scenarios}


def run(plan: Plan, say: Say, connect: Callable[[SystemSpec, Path], Any] = Remote) -> dict[str, Any]:
    """Run the scenarios and return the report. A scenario that fails is told and has no figures.

    Raises BackendError where all of them failed.
    """
    found: dict[str, Any] = {}
    say(f"{plan.model}: loading {plan.ours.name}")
    ours = connect(plan.ours, plan.log)
    try:
        for name in plan.names:
            say(f"{plan.model}: {name}")
            try:
                if name == "streams":
                    found[name] = _streams(plan, ours, say, connect)
                else:
                    found[name] = ours.scenario(name=name, setting=asdict(plan.setting))
            except BackendError as error:
                say(str(error))
    finally:
        ours.close()
    if not found:
        raise BackendError(f"{plan.model}: nothing could be measured. What the workers said is in {plan.log}.")
    return {"model": plan.model, "setting": asdict(plan.setting), "scenarios": found}


def _streams(plan: Plan, ours: Any, say: Say, connect: Callable[[SystemSpec, Path], Any]) -> dict[str, Any]:
    """Several streams, ours and llama.cpp's in turns."""
    workers = {plan.ours.name: ours}
    rival = None
    if plan.rival is not None:
        say(f"{plan.model}: loading {plan.rival.name}")
        try:
            rival = workers[plan.rival.name] = connect(plan.rival, plan.log)
        except BackendError as error:
            say(f"left out: {error}")
    try:
        ours.prepare(context=_STREAM_CONTEXT, sequences=min(plan.setting.sequences, STREAMS[-1]))
        answers = [] if rival is None or plan.rival is None else _compare(plan, ours, rival, say)
        rows = {str(count): _row(plan, workers, count, say) for count in STREAMS if count <= plan.setting.sequences}
    finally:
        if rival is not None:
            rival.close()
    targets = [verdict for count, row in rows.items() for verdict in _verdicts(plan, int(count), row)]
    return {"rows": rows, "answers": answers, "targets": targets}


def _compare(plan: Plan, ours: Any, rival: Any, say: Say) -> list[dict[str, Any]]:
    """Compare scores before times, where formats are those whose scores should agree."""
    if plan.ours.kind != "int4-b32+int8" or plan.rival is None or plan.rival.kind != "q4_0":
        return []
    return compare(plan.config, {_OURS: (plan.ours, ours), _LLAMA: (plan.rival, rival)}, say)


def _row(plan: Plan, workers: dict[str, Any], streams: int, say: Say) -> dict[str, Any]:
    """System -> figures of `streams` streams."""
    say(f"{plan.model}: {streams} streams")
    resident: list[float] = []

    def measure(worker: Any, round: int) -> dict[str, float]:
        worker.prepare(context=_STREAM_CONTEXT, sequences=streams)
        prompts = [prompt(STREAM_PROMPT, 1000 * round + i, plan.config) for i in range(streams)]
        took = worker.streams(prompts=prompts, count=STREAM_ANSWER)
        if took.get("resident_bytes"):
            resident.append(took["resident_bytes"])
        tokens = streams * (STREAM_PROMPT + STREAM_ANSWER)
        return {
            "tokens_per_second": tokens / took["seconds"],
            "decode_per_second": took["decode_per_second"] or float("nan"),
        }

    calls = {name: partial(measure, worker) for name, worker in workers.items()}
    samples = interleaved(calls, plan.setting.repeats, between=lambda: None, say=say)
    row: dict[str, Any] = {
        name: {figure: {"median": statistics.median(values), "values": values} for figure, values in figures.items()}
        for name, figures in samples.items()
    }
    if len(resident) > 2:
        row["resident_bytes"] = resident[1:]  # the first round makes programs
    return row


def _verdicts(plan: Plan, streams: int, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Targets of one number of streams: ours over the rival, and memory that stays."""

    def over(figure: str) -> float | None:
        ours, rival = (row.get(spec.name, {}).get(figure) if spec else None for spec in (plan.ours, plan.rival))
        ratio = ours["median"] / rival["median"] if ours and rival and rival["median"] else None
        return None if ratio is None or np.isnan(ratio) else ratio

    rival = plan.rival.name if plan.rival else "llama.cpp"
    found = [
        Verdict(f"{streams} streams, tokens/s in all, over {rival}", OVER_RIVAL, over("tokens_per_second"), False),
        Verdict(f"{streams} streams, decoded tokens/s, over {rival}", OVER_RIVAL, over("decode_per_second"), False),
    ]
    if resident := row.get("resident_bytes"):
        found.append(
            Verdict(f"{streams} streams, memory, last round over first", FLAT, resident[-1] / resident[0], True)
        )
    return [asdict(verdict) | {"is_met": verdict.is_met} for verdict in found]


def make_load(**asked: Any) -> Load:
    """Return the load that options describe; `mix` is a comma-separated list."""
    return Load(**{**asked, "mix": check_mix(asked["mix"])})
