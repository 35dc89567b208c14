"""Mixture files: which groups of which packed stores a run draws from, and how much of each.

A mixture is a small JSON file beside the stores; nothing is copied. Weights come from the options, in this order:

    weights      as given, by group ("de") or by store and group ("web/de")
    unimax       UniMax over the groups' tokens: equal shares, no group more than max_epochs times (mixture.unimax)
    natural      as large as the groups are
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemworks.data.batches import MIXTURE_FORMAT, PackedSource
from gemworks.data.mixture import Mixture, unimax
from gemworks.data.store import PackedStore
from gemworks.data.writing import replace_json
from gemworks.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """What is asked of a mixture. `budget` is in tokens, 0 for all tokens of the stores."""

    length: int | None = None
    batch_rows: int = 8
    seed: int = 0
    weights: Mapping[str, float] | None = None
    unimax: bool = False
    budget: float = 0.0
    max_epochs: float = 4.0


@dataclass(frozen=True)
class Share:
    """A group of a mixture: its tokens, its share of the rows, and how often each of its rows is seen in `budget`."""

    name: str
    tokens: int
    share: float
    epochs: float


def write_mixture(stores: Sequence[Path], out: Path, options: MixOptions) -> tuple[PackedSource, list[Share]]:
    """Write the mixture of packed stores to `out` (a .json file) and open it. ConfigError for what cannot be."""
    if out.suffix != ".json":
        raise ConfigError(f"{out}: a mixture must be a .json file.")
    if not stores:
        raise ConfigError("a mixture must have at least one packed store, got none.")
    opened = {_name(path, stores): PackedStore(path) for path in stores}
    length = options.length or _common_length(opened)
    tokens = {
        f"{name}/{group}": count
        for name, store in opened.items()
        for group, count in store.group_tokens.items()
        if _has_rows(store, length, group)
    }
    total = float(sum(tokens.values()))
    budget = options.budget or total
    weights = _weights(tokens, budget, options)
    value: dict[str, Any] = {
        "format": MIXTURE_FORMAT,
        "version": 1,
        "stores": {name: os.path.relpath(store.path.resolve(), out.parent.resolve()) for name, store in opened.items()},
        "length": length,
        "batch_rows": options.batch_rows,
        "seed": options.seed,
        "weights": weights,
    }
    if options.batch_rows < 1:
        raise ConfigError(f"a batch must have at least 1 row, got {options.batch_rows}.")
    Mixture.of(weights)  # refuses what cannot be before the file changes
    replace_json(out, value)
    source = PackedSource.open(out)
    shares = [
        Share(name, tokens[name], share, share * budget / tokens[name]) for name, share in source.mixture.shares.items()
    ]
    return source, shares


def _weights(tokens: Mapping[str, int], budget: float, options: MixOptions) -> dict[str, float]:
    if options.weights and options.unimax:
        raise ConfigError("--weight and --unimax exclude each other: give one of them.")
    if options.unimax:
        return unimax(tokens, budget, options.max_epochs)
    if not options.weights:
        return dict(tokens)
    weights: dict[str, float] = {}
    for wanted, weight in options.weights.items():
        matching = [name for name in tokens if wanted in (name, name.partition("/")[2], name.partition("/")[0])]
        if not matching:
            raise ConfigError(f'no group "{wanted}" in the stores. There are: {", ".join(tokens)}.')
        size = sum(tokens[name] for name in matching)
        for name in matching:  # a weight for several groups is shared out by their sizes
            weights[name] = weights.get(name, 0.0) + weight * tokens[name] / size
    return weights


def _name(path: Path, stores: Sequence[Path]) -> str:
    name = path.resolve().name
    if sum(other.resolve().name == name for other in stores) > 1:
        raise ConfigError(f'stores of one mixture must have different names, got "{name}" more than once.')
    return name


def _common_length(opened: Mapping[str, PackedStore]) -> int:
    common = set.intersection(*(set(store.lengths) for store in opened.values()))
    if len(common) != 1:
        laid = "; ".join(f"{name}: {', '.join(map(str, store.lengths))}" for name, store in opened.items())
        raise ConfigError(f"--length must say which rows to mix; laid out are {laid}.")
    return common.pop()


def _has_rows(store: PackedStore, length: int, group: str) -> bool:
    first, number = store.rows(length).first, store.groups.index(group)
    return first[number + 1] > first[number]
