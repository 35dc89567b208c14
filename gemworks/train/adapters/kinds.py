"""What an adapter is, as data: the part of a recipe that says which few parameters are trained beside a frozen base.

    LoRA            W x + scale B A x (Hu et al. 2021, arXiv 2106.09685), scale = alpha / rank
      rslora        scale = alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)
      dora          m / |W + scale B A| times that, m a row's length (Liu et al. 2024, arXiv 2402.09353)
      base          the format of the frozen matrices in memory: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), here on
                    the formats of ops/weight.py
    PromptTuning    vectors in the place of the first tokens (Lester et al. 2021, arXiv 2104.08691)

Targets are named as this package names matrices (q, attn.q, layers.3.attn.q), or as published (q_proj); a shell's
patterns are allowed (layers.[0-3].*). A pattern must be a whole name or its end after a dot.
"""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.lora import TARGETS, Target
from gemworks.quant.plan import QuantPlan
from gemworks.weights.names import hf_from_ours

_HALF: dict[Target, str] = {t: "attn" if t in ("q", "k", "v", "o") else "ffw" for t in TARGETS}


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank additions to matrices. `targets`: patterns, in a tuple or one text with commas."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] | str = TARGETS
    dora: bool = False
    rslora: bool = False
    dropout: float = 0.0  # of what A multiplies, in training only
    base: str = ""

    def __post_init__(self):
        if self.rank < 1 or not math.isfinite(self.alpha) or self.alpha == 0:
            raise ConfigError(f"LoRA needs rank >= 1 and an alpha that is not 0, got {self.rank} and {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout of LoRA must be at least 0 and less than 1, got {self.dropout}.")
        if isinstance(self.targets, str):
            patterns = tuple(one.strip() for one in self.targets.split(",") if one.strip())
            object.__setattr__(self, "targets", patterns)
        else:
            object.__setattr__(self, "targets", tuple(self.targets))
        if not self.targets:
            raise ConfigError(f"LoRA needs targets, got none. The matrices of a layer: {', '.join(TARGETS)}.")
        base_plan(self)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class PromptTuning:
    """`tokens` trained vectors before every text.

    They begin as the embeddings of `text_ids`, repeated or cut, else of random words ("sample"), or as normal numbers
    ("random").
    """

    tokens: int = 20
    init: Literal["sample", "random"] = "sample"
    text_ids: tuple[int, ...] = ()
    base: str = ""

    def __post_init__(self):
        object.__setattr__(self, "text_ids", tuple(self.text_ids))
        if self.tokens < 1:
            raise ConfigError(f"prompt tuning needs at least 1 token, got {self.tokens}.")
        if self.init not in ("sample", "random"):
            raise ConfigError(f'init of prompt tuning must be sample or random, got "{self.init}".')
        base_plan(self)


Adapter = LoRA | PromptTuning


def targeted(adapter: LoRA, config: TextConfig) -> list[str]:
    """Return the names of the matrices that are adapted, layers.0.attn.q ..., in the model's order.

    Raises ConfigError for a pattern that matches none.
    """
    every = [f"layers.{i}.{_HALF[t]}.{t}" for i in range(len(config.layers)) for t in TARGETS]
    unused = [p for p in adapter.targets if not any(_matches(p, name) for name in every)]
    if unused:
        raise ConfigError(
            f'the target "{unused[0]}" must match the name of a matrix, and it matches none.\n'
            f"Matrices are {', '.join(TARGETS)}; in full {every[0]}, or {published(every[0])}."
        )
    return [name for name in every if any(_matches(pattern, name) for pattern in adapter.targets)]


def published(name: str, layout: Literal["B", "C"] = "C") -> str:
    """Return the published name of a matrix's module: model.layers.0.self_attn.q_proj."""
    return hf_from_ours(f"{name}.weight", layout).removesuffix(".weight")


def base_plan(adapter: Adapter) -> QuantPlan | None:
    """Return what becomes of the base's matrices in memory, None where they stay floats.

    Raises ConfigError for what is no format.
    """
    if not adapter.base:
        return None
    format, *rules = (part.strip() for part in adapter.base.split(","))
    tables = [rule.removeprefix("embed=") for rule in rules if rule.startswith("embed=")]
    try:
        return QuantPlan.parse(format, *tables[:1], overrides=[r for r in rules if not r.startswith("embed=")])
    except ConfigError as error:
        raise ConfigError(
            f'base of an adapter must be a format, as in int4-b32,embed=int8, got "{adapter.base}".\n{error}'
        ) from error


def _matches(pattern: str, name: str) -> bool:
    names = name, published(name)
    return any(fnmatchcase(one, pattern) or fnmatchcase(one, f"*.{pattern}") for one in names)
