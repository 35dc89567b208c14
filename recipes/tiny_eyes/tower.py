"""The first stage: the tower learns to see, judged by what can be read off its soft tokens by one matrix.

    tile -> tower -> 4 x 4 pool -> RMSNorm -> matrix -> of every soft token: shape, colour and zone of what is
                                                        centred in its cell, and how many shapes the scene has

The matrix is thrown away; pool and norm are those of the projector, which the second stage puts in its place.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.media import tower_input
from gemworks.model.multimodal import average_pool
from gemworks.model.siglip import Siglip, build_siglip
from gemworks.model.vision_config import VisionConfig
from recipes.tiny_eyes.album import NUM_CLASSES, Album, Facts, facts_of
from recipes.tiny_eyes.learning import Learned, Report, learn
from recipes.tiny_eyes.recipe import TowerRecipe
from recipes.tiny_eyes.scenes import SHAPES
from recipes.tiny_standin.training import Stacks, leaf_of, stacked

# B pictures, P patches, C cells = soft tokens, E tower width


class Seen(NamedTuple):
    """A batch: pixels in [-1, 1] and what they show."""

    pixels_BCYX: np.ndarray
    facts: Facts


def initial_tower(config: VisionConfig, seed: int) -> Stacks:
    """A tower's arrays and the matrix that reads it; branches start small."""
    rng = np.random.default_rng(seed)

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("norm.weight"):
            return np.ones(shape)
        if name.endswith(".bias"):
            return np.zeros(shape)
        if name == "vision.position":
            return rng.normal(size=shape) * 0.3
        drawn = rng.normal(size=shape) * shape[-1] ** -0.5
        return drawn * (2 * config.num_layers) ** -0.5 if name.endswith(("attn.o.weight", "ffw.down.weight")) else drawn

    stacks = stacked(lambda leaf: build_siglip(config, leaf), array)
    num_classes = sum(NUM_CLASSES.values())
    return stacks | {"heads": jnp.asarray(rng.normal(size=(num_classes, config.model_dim)) * 0.02, jnp.float32)}


def tower_of(stacks: Stacks, config: VisionConfig) -> Siglip:
    """The tower whose arrays these are."""
    return build_siglip(config, leaf_of(stacks))


def pooled(tower: Siglip, pixels_BCYX: jax.Array) -> jax.Array:
    """pooled_BCE: what the projector's norm is given."""
    return jax.vmap(lambda pixels_CYX: average_pool(tower(pixels_CYX), tower.config.pool))(pixels_BCYX)


def seeing_loss(stacks: Stacks, seen: Seen, config: VisionConfig) -> jax.Array:
    """Cross-entropy in nats of count and shape a cell, plus that of colour and zone a cell that holds a shape."""
    losses, _ = _judged(stacks, seen, config)
    return sum(losses.values(), jnp.zeros(()))


def seeing_accuracy(stacks: Stacks, seen: Seen, config: VisionConfig) -> dict[str, jax.Array]:
    """Share of right guesses of each kind, cells weighted as in the loss."""
    return _judged(stacks, seen, config)[1]


def _judged(stacks: Stacks, seen: Seen, config: VisionConfig) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    tower = tower_of(stacks, config)
    x_BCE = pooled(tower, jnp.asarray(seen.pixels_BCYX))
    x_BCE = x_BCE * jax.lax.rsqrt(jnp.square(x_BCE).mean(-1, keepdims=True) + config.norm_eps)
    logits_BCH = x_BCE @ stacks["heads"].T
    facts = seen.facts
    is_full_BC = facts.shape_NC < len(SHAPES)
    # Four cells of five are empty: weighted evenly, they would leave the five shapes a fifth of their gradient.
    shape_BC = jnp.where(is_full_BC, 0.8 / jnp.maximum(is_full_BC.sum(), 1), 0.2 / jnp.maximum((~is_full_BC).sum(), 1))
    count_BC = jnp.broadcast_to(facts.count_N[:, None], is_full_BC.shape)
    wanted = {
        "count": (count_BC, jnp.ones_like(is_full_BC)),
        "shape": (facts.shape_NC, shape_BC),
        "colour": (facts.colour_NC, is_full_BC),
        "zone": (facts.zone_NC, is_full_BC),
    }
    losses, accuracy, at = {}, {}, 0
    for kind, size in NUM_CLASSES.items():
        right_BC, weight_BC = wanted[kind]
        some_BCH = logits_BCH[..., at : at + size]
        at += size
        chosen_BC = jnp.take_along_axis(jax.nn.log_softmax(some_BCH), right_BC[..., None], axis=-1)[..., 0]
        share_BC = weight_BC / jnp.maximum(weight_BC.sum(), 1)
        losses[kind] = -(chosen_BC * share_BC).sum()
        accuracy[kind] = ((some_BCH.argmax(-1) == right_BC) * share_BC).sum()
    return losses, accuracy


def look(tiles: np.ndarray, facts: Facts, chosen: np.ndarray) -> Seen:
    """The batch of the `chosen` scenes, whose whole tiles are `tiles`."""
    return Seen(tower_input(tiles), Facts(*(array[chosen] for array in facts)))


def batch_of(album: Album, facts: Facts, recipe: TowerRecipe, number: int) -> Seen:
    """The batch of step `number`: scenes drawn evenly, whole tiles."""
    chosen = np.random.default_rng([recipe.seed, number]).integers(0, len(album.scenes), recipe.batch)
    return look(album.tiles[album.tiles_of[chosen]], facts, chosen)


def train_tower(
    recipe: TowerRecipe, config: VisionConfig, album: Callable[[], Album], *, kept: Path, report: Report
) -> Learned:
    """Train a tower from nothing on the album, which is asked for where steps are left to do."""
    facts = cache(lambda: facts_of(album().scenes))
    return learn(
        "the tower learns to see",
        recipe,
        initial_tower(config, recipe.seed),
        lambda stacks, seen: seeing_loss(stacks, seen, config),
        lambda number: batch_of(album(), facts(), recipe, number),
        kept=kept,
        report=report,
    )
