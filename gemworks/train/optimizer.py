"""The optimizer of a recipe, of optax's parts. optax is of the [train] extra: imported where a run starts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from gemworks.train.recipe import Recipe, Schedule

if TYPE_CHECKING:
    import optax

# Never decayed: gains are zero-centred already, and a table's row is only moved in steps that see its word.
_NOT_DECAYED = ("embed.weight", "head.weight")


def schedule(recipe: Recipe, peak: float) -> "optax.Schedule":
    """Return step -> rate. The first step of a warm-up is 1 / warm_up of the peak, not 0."""
    import optax

    shape: Schedule = recipe.schedule
    up, rest = shape.warm_up, recipe.steps - shape.warm_up
    if shape.kind == "cosine":
        down = optax.cosine_decay_schedule(peak, rest, alpha=shape.last)
    elif shape.kind == "linear":
        down = optax.linear_schedule(peak, peak * shape.last, rest)
    elif shape.kind == "wsd":
        fall = max(1, round(recipe.steps * shape.decay))
        down = optax.linear_schedule(peak, peak * shape.last, fall, transition_begin=max(0, rest - fall))
    else:
        down = optax.constant_schedule(peak)

    def rate(step):
        rising = peak * (step + 1) / max(up, 1)
        return jnp.where(step < up, rising, down(jnp.maximum(step - up, 0)))

    return rate


def make_optimizer(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> "optax.GradientTransformation":
    """Return the transformation of gradients into updates; the loop clips before and measures the norm."""
    import optax
    from optax import contrib

    it = recipe.optimizer
    is_decayed = {name: len(shape) == 2 and name not in _NOT_DECAYED for name, shape in shapes.items()}
    if it.name == "adamw":
        return optax.adamw(
            schedule(recipe, it.peak), b1=it.b1, b2=it.b2, eps=it.eps, weight_decay=it.weight_decay, mask=is_decayed
        )
    matrices = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    is_muon: Any = {name: matrices if decayed else None for name, decayed in is_decayed.items()}
    return contrib.muon(
        schedule(recipe, it.muon_peak),
        weight_decay=it.weight_decay,
        weight_decay_mask=is_decayed,
        adam_learning_rate=schedule(recipe, it.peak),
        adam_b1=it.b1,
        adam_b2=it.b2,
        eps=it.eps,
        consistent_rms=0.2,  # updates as large as Adam's (Liu et al. 2025, arXiv 2502.16982)
        muon_weight_dimension_numbers=is_muon,
    )
