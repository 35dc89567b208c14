"""From pixels to soft tokens: the tower, a 4 x 4 average pool, the projector (spec 9).

    4,096 vectors of 1,152 --pool--> 256 --RMSNorm--> @ projection [1152, D] --> 256 vectors as wide as the decoder

The projector's norm is the decoder's kind (1 + w), unlike the tower's own. Where soft tokens enter the decoder:
layers.SoftTokens.
"""

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks import ops
from gemworks.model.layers import RMSNorm
from gemworks.model.siglip import Siglip, build_siglip
from gemworks.model.vision_config import VisionConfig

# B images, P patches, S soft tokens of an image, E tower width, D decoder width, C channels, Y and X pixels


class Projector(eqx.Module):
    """Pool, norm, project. `weight_ED` is stored as published: input width first."""

    norm: RMSNorm
    weight_ED: jax.Array
    pool: int = eqx.field(static=True)

    def __call__(self, h_PE: jax.Array) -> jax.Array:
        """Return soft_SD in fp32."""
        return ops.linear(self.norm(average_pool(h_PE, self.pool)), self.weight_ED.T)


class Vision(eqx.Module):
    """Everything that turns an image into soft tokens."""

    tower: Siglip
    projector: Projector

    def __call__(self, pixels_CYX: jax.Array) -> jax.Array:
        """Return soft_SD in fp32 of one image, pixels in [-1, 1]."""
        return _project(self.projector, self.tower(pixels_CYX))

    @property
    def config(self) -> VisionConfig:
        """Sizes of the tower."""
        return self.tower.config


@jax.jit
def _project(projector: Projector, h_PE: jax.Array) -> jax.Array:
    return projector(h_PE)


def encode(vision: Vision, images: Iterable[np.ndarray]) -> np.ndarray:
    """Return soft_BSD, fp32 on the host, of pixels_CYX each: one image at a time, so memory is that of one.

    `images` may be a generator that makes each array when it is its turn.
    """
    return np.stack([np.asarray(vision(jnp.asarray(pixels))) for pixels in images])


def average_pool(h_PE: jax.Array, pool: int) -> jax.Array:
    """Return the means of pool x pool neighbours of a square of patches, row by row."""
    side = round(h_PE.shape[0] ** 0.5)
    blocks = h_PE.reshape(side // pool, pool, side // pool, pool, -1)
    return blocks.mean(axis=(1, 3)).reshape(-1, h_PE.shape[-1])


def build_vision(config: VisionConfig, model_dim: int, leaf) -> Vision:
    """Return tower and projector for a decoder of width `model_dim`; every array is leaf(name, shape)."""
    norm = RMSNorm(leaf("projector.norm.scale", (config.model_dim,)), config.norm_eps)
    weight_ED = leaf("projector.weight", (config.model_dim, model_dim))
    return Vision(build_siglip(config, leaf), Projector(norm, weight_ED, config.pool))
