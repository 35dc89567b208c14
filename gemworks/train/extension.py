"""Context extension: positions of global layers divided by 8 at the end of pre-training (report section 2.1, 1.6 of the
spec), and perplexity by position, which says whether it worked.

Steps, tokens and rate of the report's stage are not disclosed. Local layers are not touched: their distances stay
below the window.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Gemma3
from gemworks.ops.train.head import token_logits
from gemworks.train.forward import Rows, head_rows, hidden

FACTOR = 8.0


def extended(config: TextConfig, factor: float = FACTOR) -> TextConfig:
    """Return the config with global layers' positions divided by `factor` more, and as many more positions."""
    if config.global_spec is None:
        raise ConfigError("a model without global layers sees no further than its window: nothing to extend.")
    layers = tuple(
        spec if spec.is_local else replace(spec, rope_scale=spec.rope_scale * factor) for spec in config.layers
    )
    return replace(config, layers=layers, max_positions=int(config.max_positions * factor))


def perplexity_by_position(model: Gemma3, batches: Sequence[Any], edges: Sequence[int]) -> list[tuple[int, int, float]]:
    """Return (first, end, perplexity) of the targets whose position in their text is in each bucket of `edges`.

    A bucket without targets has NaN.
    """

    @jax.jit
    def sums(model: Gemma3, rows: Rows) -> tuple[jax.Array, jax.Array]:
        ids_BT1 = jnp.asarray(rows.targets_BT)[..., None]
        log_total, chosen = token_logits(hidden(model, rows, remat=False), head_rows(model), ids_BT1)
        weight = jnp.asarray(rows.loss_mask_BT, jnp.float32)
        bucket = jnp.searchsorted(jnp.asarray(edges), jnp.asarray(rows.position_BT), side="right")
        nll = jnp.where(weight > 0, (log_total - chosen[..., 0]) * weight, 0)
        empty = jnp.zeros(len(edges) + 1)
        return empty.at[bucket].add(nll), empty.at[bucket].add(weight)

    totals = np.zeros((2, len(edges) + 1))
    for batch in batches:
        totals += np.asarray(sums(model, Rows(*(np.asarray(getattr(batch, name)) for name in Rows._fields))))
    with np.errstate(invalid="ignore", divide="ignore"):
        perplexity = np.exp(totals[0] / totals[1])
    return [(a, b, float(perplexity[i + 1])) for i, (a, b) in enumerate(pairwise(edges))]
