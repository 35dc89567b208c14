"""What a tuning run does: what the user says, and all else chosen from the model, the conversations and the memory.

Rates, epochs and sizes of batches are ours, near those of open trainers (TRL 2e-5 for all parameters, PEFT's examples
2e-4 for adapters); `choose` says what it chose, and a recipe or an option overrules each.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, get_args

import numpy as np

from gemworks.data.chat import POLICIES, Policy
from gemworks.data.chat_rendering import TOOL_STYLES
from gemworks.data.chat_rows import LONG, Long
from gemworks.errors import CapacityError, ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.lora import TARGETS
from gemworks.parallel.plan import make_plan
from gemworks.train.adapters.kinds import Adapter, LoRA, PromptTuning
from gemworks.train.adapters.memory import plan_adapter_memory
from gemworks.train.dpo import DPO
from gemworks.train.forward import parameter_shapes
from gemworks.train.loss import NextToken
from gemworks.train.memory import plan_memory
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule

MethodName = Literal["lora", "dora", "qlora", "full", "prompt", "dpo"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)

QLORA_BASE = "int4-b32,embed=int8-b32"

_RATES: Mapping[str, float] = {"lora": 2e-4, "dora": 2e-4, "qlora": 2e-4, "prompt": 1e-2, "dpo": 5e-6}
_FULL_RATES = ((2e8, 1e-4), (5e8, 5e-5), (float("inf"), 2e-5))  # parameters up to -> rate
_SMALLEST_ROW, _MOST_TOKENS, _STEPS_AN_EPOCH = 64, 16_384, 50
_EXAMINATIONS = 12  # of a run


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What is asked. None is chosen; `validation` is a share of the conversations, or a file of its own."""

    method: MethodName = "lora"
    epochs: float | None = None
    steps: int | None = None
    rate: float | None = None
    batch: int | None = None  # tokens of a step
    length: int | None = None  # tokens of a row
    rank: int | None = None
    alpha: float | None = None
    targets: str = ""
    rslora: bool = False
    soft_tokens: int = 20
    beta: float = 0.1
    validation: float | str = 0.05
    patience: int = 3  # examinations without a better validation loss; 0 never stops
    samples: int = 2
    bad: Policy = "stop"
    long: Long = "truncate"
    tool_style: str | None = None
    seed: int = 0

    def __post_init__(self):
        for name, known in (("method", METHODS), ("bad", POLICIES), ("long", LONG)):
            if getattr(self, name) not in known:
                raise ConfigError(f'{name} must be one of {", ".join(known)}, got "{getattr(self, name)}".')
        if self.tool_style not in (None, *TOOL_STYLES):
            raise ConfigError(f'tool_style must be one of {", ".join(TOOL_STYLES)}, got "{self.tool_style}".')
        for name in ("epochs", "steps", "rate", "batch", "length", "rank"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} of a tuning run must be greater than 0, got {value}.")
        if isinstance(self.validation, float) and not 0 <= self.validation < 1:
            raise ConfigError(f"validation must be a share from 0 to less than 1, or a file, got {self.validation}.")
        if self.patience < 0 or self.samples < 0:
            raise ConfigError(f"patience and samples must be at least 0, got {self.patience} and {self.samples}.")


def adapter_of(options: TuneOptions) -> Adapter | None:
    """Return what is trained beside the model; None where the model itself is."""
    if options.method == "full":
        return None
    if options.method == "prompt":
        return PromptTuning(tokens=options.soft_tokens)
    rank = options.rank or 16
    return LoRA(
        rank=rank,
        alpha=2.0 * rank if options.alpha is None else options.alpha,
        dora=options.method == "dora",
        rslora=options.rslora,
        base=QLORA_BASE if options.method == "qlora" else "",
        targets=options.targets or TARGETS,
    )


def needed_bytes(recipe: Recipe) -> int:
    """Return what a step of the recipe takes on one device, by arithmetic."""
    if recipe.adapter is not None:
        return plan_adapter_memory(recipe).total
    plan = make_plan(recipe.model, parameter_shapes(recipe.model), recipe.execution.mesh)
    return plan_memory(recipe, plan).total


def new_recipe(options: TuneOptions, config: TextConfig, start: str, *, num_parameters: int) -> Recipe:
    """Return the recipe without its sizes: one row of the shortest length, one step."""
    full = next(rate for most, rate in _FULL_RATES if num_parameters <= most)
    return Recipe(
        model=config,
        method=DPO(beta=options.beta) if options.method == "dpo" else NextToken(),
        # Decay is for long runs from random weights; a short run would be pulled away from what the model knows.
        optimizer=Optimizer(peak=options.rate or _RATES.get(options.method, full), b2=0.999, weight_decay=0.0),
        schedule=Schedule(kind="cosine"),
        seed=options.seed,
        steps=1,
        rows=1,
        tokens=_SMALLEST_ROW,
        start=start,
        adapter=adapter_of(options),
        execution=Execution(checkpoint_every=100),
    )


def choose_length(options: TuneOptions, recipe: Recipe, positions: np.ndarray, budget: int) -> int:
    """Return the tokens of a row: those of the longest text, or of as much as the model and the memory take.

    positions: of every text, or pair. Raises CapacityError where not even the shortest rows fit.
    """
    longest = int(positions.max())
    most = recipe.model.max_positions * (2 if isinstance(recipe.method, DPO) else 1)
    if options.length is not None:
        if options.length > most:
            raise ConfigError(f"length must be at most the model's {most:,} tokens, got {options.length:,}.")
        return options.length
    length = min(max(_SMALLEST_ROW * ceil(longest / _SMALLEST_ROW), 4 * _SMALLEST_ROW), most)
    while length > 4 * _SMALLEST_ROW and needed_bytes(replace(recipe, tokens=length)) > budget:
        length = max(4 * _SMALLEST_ROW, length // 2 // _SMALLEST_ROW * _SMALLEST_ROW)
    needed = needed_bytes(replace(recipe, tokens=length))
    if needed > budget:
        raise CapacityError(
            f"a step of this run needs {needed / 1e9:.1f} GB even with one row of {length} tokens, and "
            f"{budget / 1e9:.1f} GB can be had.\n{_smaller(options)}"
        )
    return length


def choose_sizes(
    options: TuneOptions,
    recipe: Recipe,
    num_rows: int,
    budget: int,
    *,
    bytes_of: Callable[[Recipe], int] = needed_bytes,
) -> Recipe:
    """Return the recipe with rows, steps, warm-up and micro-batches for data of `num_rows` rows of its length."""
    tokens = options.batch or min(max(num_rows * recipe.tokens // _STEPS_AN_EPOCH, recipe.tokens), _MOST_TOKENS)
    rows = 1 << max(0, int(np.log2(max(1, tokens // recipe.tokens))))
    rows = min(rows, 1 << int(np.log2(num_rows)))  # no row twice in one batch
    epochs = options.epochs or (1.0 if options.method == "dpo" else 3.0)
    steps = options.steps or max(1, ceil(epochs * num_rows / rows))
    made = replace(recipe, rows=rows, steps=steps, schedule=replace(recipe.schedule, warm_up=min(100, steps // 10)))
    while bytes_of(made) > budget and made.accumulate < rows:
        made = replace(made, accumulate=2 * made.accumulate)
    every = max(1, ceil(steps / _EXAMINATIONS))
    # Checkpoints at examinations: what validation found and what is kept are of one state.
    return replace(made, execution=replace(made.execution, examine_every=every, checkpoint_every=every))


def _smaller(options: TuneOptions) -> str:
    if options.method == "full":
        return "Train an adapter instead (--method lora), or a smaller model."
    return (
        "Hold the model in 4 bits (--method qlora), or take a smaller model."
        if options.method != "qlora"
        else ("Take a smaller model, or a machine with more memory.")
    )
