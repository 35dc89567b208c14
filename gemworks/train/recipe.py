"""What a run is, as data: everything that changes a result in `Recipe`, everything that only changes how it is made in
`Execution`. A recipe file lies beside the checkpoints; a run that continues must have the same.

Gemma 3's optimizer, rates, batch and schedule are not disclosed: the defaults are those of open trainers of this size
(AdamW .9/.95, weight decay .1 on matrices, clipping at 1), and are ours.
"""

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig
from gemworks.parallel.mesh import MeshShape, parse_mesh
from gemworks.train.adapters.kinds import Adapter
from gemworks.train.loss import Method, NextToken

Kind = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The rate: up in a line over `warm_up` steps, then down to `last` x peak.

    cosine and linear fall over the rest of the run; wsd stays at the peak and falls in a line over the last `decay`
    part of the run; constant stays.
    """

    kind: Kind = "cosine"
    warm_up: int = 0
    last: float = 0.1
    decay: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """adamw, or muon for the blocks' matrices (Jordan 2024) with adamw for table and gains."""

    name: Literal["adamw", "muon"] = "adamw"
    peak: float = 1e-3
    muon_peak: float = 2e-2
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0  # of the global norm; 0 is no clipping


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is made: may change when it continues."""

    mesh: MeshShape = field(default_factory=MeshShape)
    remat: bool = True
    checkpoint_every: int = 500
    keep: int = 3
    keep_every: int | None = None  # checkpoints at multiples of this step are kept for ever
    log_every: int = 1
    examine_every: int = 0  # steps between two looks at the state (Run.examine); 0 looks after the last one only


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run. `rows` is the batch; `accumulate` micro-batches of rows / accumulate each make it."""

    model: TextConfig
    data: str = ""
    method: Method = field(default_factory=NextToken)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    seed: int = 0
    steps: int = 1000
    rows: int = 8
    tokens: int = 1024  # of a row
    accumulate: int = 1
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    ema: float = 0.0  # decay of the moving average of the parameters; 0 keeps none
    start: str = ""  # a model to start from; "" is random weights
    adapter: Adapter | None = None  # trained beside the model of `start`, which stays as it is
    teacher: str = ""
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self):
        for name in ("steps", "rows", "tokens", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a recipe must be at least 1, got {getattr(self, name)}.")
        if self.rows % self.accumulate:
            raise ConfigError(f"accumulate must divide rows, got accumulate={self.accumulate} and rows={self.rows}.")
        if self.schedule.warm_up >= self.steps:
            raise ConfigError(
                f"schedule.warm_up must be less than steps, got {self.schedule.warm_up} and {self.steps} steps."
            )
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must be at least 0 and less than 1, got {self.ema}.")
        if self.adapter is not None:
            self._check_adapter()

    def _check_adapter(self):
        if self.optimizer.name != "adamw":
            raise ConfigError(f'adapters are trained with adamw, got optimizer.name="{self.optimizer.name}".')
        if self.execution.mesh.size > 1:
            raise ConfigError(
                f"adapters are trained on one device, got the mesh {self.execution.mesh}.\n"
                "Leave the mesh out, or train the whole model (adapter=None), which is divided over devices."
            )


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """Return a recipe's settings by dotted names: {"optimizer.peak": 0.001, ...}; a method with its class's name."""
    if not is_dataclass(value):
        # Runs from before there were adapters have no such line, and are continued.
        return {} if at == "adapter" and value is None else {at: value}
    settings: dict[str, Any] = {at: type(value).__name__} if at in ("method", "adapter") else {}
    if isinstance(value, TextConfig):
        return {f"{at}.{one.name}": _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, MeshShape):
        return {at: str(value)}
    for one in fields(value):
        settings |= flat(getattr(value, one.name), f"{at}.{one.name}" if at else one.name)
    return settings


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return lines "optimizer.peak   0.001 -> 0.002" of what changed between two `flat` recipes."""
    names = [name for name in {**before, **now} if not name.startswith("execution.")]
    changed = [(n, before.get(n, "(not set)"), now.get(n, "(not set)")) for n in names]
    return [f"{name}   {old} -> {new}" for name, old, new in changed if old != new]


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Return the recipe with "key=value" applied, keys as in `flat`; a value is a Python literal or a plain word."""
    tree: dict[str, Any] = {}
    for setting in settings:
        key, found, text = setting.partition("=")
        if not found:
            raise ConfigError(f'a setting is written as key=value, such as optimizer.peak=3e-4; got "{setting}".')
        *path, last = key.split(".")
        at = tree
        for name in path:
            at = at.setdefault(name, {})
        at[last] = key, text
    return _with(recipe, recipe, tree, "")


def _with(recipe: Recipe, owner: Any, tree: Mapping[str, Any], at: str) -> Any:
    """The owner, a dataclass, with the settings below it changed, all at once: their order does not matter."""
    known = {one.name for one in fields(owner)} if is_dataclass(owner) else set()
    changes: dict[str, Any] = {}
    for name, change in tree.items():
        if name not in known:
            raise ConfigError(_unknown(recipe, f"{at}{name}"))
        old = getattr(owner, name)
        if isinstance(change, dict):
            changes[name] = _with(recipe, old, change, f"{at}{name}.")
        else:
            changes[name] = parse_mesh(change[1]) if isinstance(old, MeshShape) else _value(change[0], change[1], old)
    changed: Any = replace  # pyright cannot know that `owner` is a dataclass
    return changed(owner, **changes)


def _unknown(recipe: Recipe, key: str) -> str:
    names = [name for name in flat(recipe) if not name.startswith("model.layers")]
    near = get_close_matches(key, names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f'a recipe has no setting "{key}".{hint}\nKnown: {", ".join(names)}.'


def _value(key: str, text: str, old: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if old is not None and value is not None and type(value) is not type(old):
        raise ConfigError(f"{key} must be of type {type(old).__name__} as {old!r} is, got {text!r}.")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [dataclasses.asdict(one) if is_dataclass(one) and not isinstance(one, type) else one for one in value]
    return value
