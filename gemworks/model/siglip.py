"""The vision tower: SigLIP's encoder, 896 x 896 pixels to 4,096 vectors (spec 8).

    x = patches @ W + b + position          14 x 14 pixels and 3 channels a patch, rows of patches top to bottom
    for each layer                          ops.tower_layer, written out in ops/xla/tower.py
        x = x + attention(norm(x))          every patch sees every patch; no RoPE, no QK-norm, biases everywhere
        x = x + fc2(gelu_tanh(fc1(norm(x))))
    out = norm(x)

Norms are ordinary LayerNorms: the published weight multiplies as it is, not as 1 + w like the decoder's. There is no
class token and no pooling head.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from gemworks import ops
from gemworks.model.vision_config import VisionConfig
from gemworks.ops.tower import Biased, Normed, TowerLayer

# P patches, D model width, F feed-forward width, C channels, Y and X pixels, U pixels of a patch in all channels


class VisionBlock(eqx.Module):
    """One layer of the tower."""

    layer: TowerLayer
    num_heads: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __call__(self, x_PD: jax.Array) -> jax.Array:
        """Return x_PD after this layer."""
        return ops.tower_layer(x_PD, self.layer, heads=self.num_heads, eps=self.eps)


class Siglip(eqx.Module):
    """The tower of one image at a time. `patch.weight` is [D, C * y * x], the published kernel flattened."""

    patch: Biased
    position_PD: jax.Array
    layers: tuple[VisionBlock, ...]
    final_norm: Normed
    config: VisionConfig = eqx.field(static=True)

    def __call__(self, pixels_CYX: jax.Array) -> jax.Array:
        """Return h_PD in fp32 of pixels in [-1, 1]."""
        x_PD = _embed(self.patch, self.position_PD, pixels_CYX, self.config.patch_size)
        for layer in self.layers:
            x_PD = _layer(layer, x_PD)
        return _norm(self.final_norm, x_PD, self.config.norm_eps)


# Compiled apart, so that 27 layers are 27 calls of one small program. Inside a caller's own jit they are inlined.


@jax.jit
def _layer(layer: VisionBlock, x_PD: jax.Array) -> jax.Array:
    return layer(x_PD)


@eqx.filter_jit
def _norm(norm: Normed, x_PD: jax.Array, eps: float) -> jax.Array:
    return ops.layer_norm(x_PD, norm, eps=eps)


@eqx.filter_jit
def _embed(patch: Biased, position_PD: jax.Array, pixels_CYX: jax.Array, patch_size: int) -> jax.Array:
    x_PD = ops.linear(patches(pixels_CYX, patch_size), patch.weight) + patch.bias
    return x_PD + position_PD.astype(jnp.float32)


def patches(pixels_CYX: jax.Array, size: int) -> jax.Array:
    """Return patches_PU, row by row, each flattened as channel, y, x: the order of a convolution's kernel."""
    C, Y, X = pixels_CYX.shape
    split = pixels_CYX.reshape(C, Y // size, size, X // size, size)
    return jnp.transpose(split, (1, 3, 0, 2, 4)).reshape(-1, C * size * size)


def build_siglip(config: VisionConfig, leaf) -> Siglip:
    """Return a tower whose every array is leaf(name, shape); names are dotted, as vision.layers.3.attn.q.weight."""
    D, F = config.model_dim, config.ffw_dim
    patch_dim = config.num_channels * config.patch_size**2

    def linear(name: str, out_dim: int, in_dim: int) -> Biased:
        return Biased(leaf(f"{name}.weight", (out_dim, in_dim)), leaf(f"{name}.bias", (out_dim,)))

    def norm(name: str) -> Normed:
        return Normed(leaf(f"{name}.weight", (D,)), leaf(f"{name}.bias", (D,)))

    def block(at: str) -> VisionBlock:
        layer = TowerLayer(
            attn_norm=norm(f"{at}.attn_norm"),
            q=linear(f"{at}.attn.q", D, D),
            k=linear(f"{at}.attn.k", D, D),
            v=linear(f"{at}.attn.v", D, D),
            o=linear(f"{at}.attn.o", D, D),
            ffw_norm=norm(f"{at}.ffw_norm"),
            up=linear(f"{at}.ffw.up", F, D),
            down=linear(f"{at}.ffw.down", D, F),
        )
        return VisionBlock(layer, config.num_heads, config.norm_eps)

    return Siglip(
        patch=linear("vision.patch", D, patch_dim),
        position_PD=leaf("vision.position", (config.num_patches, D)),
        layers=tuple(block(f"vision.layers.{i}") for i in range(config.num_layers)),
        final_norm=norm("vision.final_norm"),
        config=config,
    )
