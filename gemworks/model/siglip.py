"""The vision tower: SigLIP's encoder, 896 x 896 pixels to 4,096 vectors (spec 8).

    x = patches @ W + b + position          14 x 14 pixels and 3 channels a patch, rows of patches top to bottom
    for each layer
        x = x + attention(norm(x))          every patch sees every patch; no RoPE, no QK-norm, biases everywhere
        x = x + fc2(gelu_tanh(fc1(norm(x))))
    out = norm(x)

Norms are ordinary LayerNorms: the published weight multiplies as it is, not as 1 + w like the decoder's. There is no
class token and no pooling head.

Memory of attention: the scores of a layer would be 16 x 4,096 x 4,096 fp32 = 1.07 GB. Queries are taken QUERY_BLOCK at
a time, and softmax needs no running maximum, as a block sees all keys at once.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from gemworks import ops
from gemworks.model.vision_config import VisionConfig

# P patches, D model width, F feed-forward width, N heads, H head width, B images, C channels, Y and X pixels,
# U pixels of a patch in all channels

# Queries that attend at once. Scores of a block are [16, 256, 4096] fp32 = 67 MB at the real shape.
QUERY_BLOCK = 256


class LayerNorm(eqx.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis, in fp32 (Ba et al. 2016)."""

    weight: jax.Array
    bias: jax.Array
    eps: float = eqx.field(static=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the last axis normed, in fp32."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.eps) * self.weight + self.bias


class BiasedLinear(eqx.Module):
    """y_PF = x_PD @ weight_FD.T + bias_F."""

    weight: jax.Array
    bias: jax.Array

    def __call__(self, x_PD: jax.Array) -> jax.Array:
        """Return y_PF in fp32."""
        return ops.linear(x_PD, self.weight) + self.bias


class VisionAttention(eqx.Module):
    """Full attention over the patches of one image."""

    q: BiasedLinear
    k: BiasedLinear
    v: BiasedLinear
    o: BiasedLinear
    num_heads: int = eqx.field(static=True)

    def __call__(self, x_PD: jax.Array) -> jax.Array:
        """Return out_PD."""
        P, D = x_PD.shape
        q_NPH, k_NPH, v_NPH = (
            jnp.moveaxis(project(x_PD).reshape(P, self.num_heads, -1), 1, 0) for project in (self.q, self.k, self.v)
        )
        out_NPH = attend_all(q_NPH, k_NPH, v_NPH, scale=(D // self.num_heads) ** -0.5)
        return self.o(jnp.moveaxis(out_NPH, 0, 1).reshape(P, D))


class VisionFeedForward(eqx.Module):
    """The matrices of fc2(gelu_tanh(fc1(x)))."""

    up: BiasedLinear
    down: BiasedLinear

    def __call__(self, x_PD: jax.Array) -> jax.Array:
        """Return out_PD."""
        return self.down(jax.nn.gelu(self.up(x_PD), approximate=True))


class VisionBlock(eqx.Module):
    """One layer of the tower."""

    attn_norm: LayerNorm
    attn: VisionAttention
    ffw_norm: LayerNorm
    ffw: VisionFeedForward

    def __call__(self, x_PD: jax.Array) -> jax.Array:
        """Return x_PD after this layer."""
        x_PD = x_PD + self.attn(self.attn_norm(x_PD))
        return x_PD + self.ffw(self.ffw_norm(x_PD))


class Siglip(eqx.Module):
    """The tower of one image at a time. `patch.weight` is [D, C * y * x], the published kernel flattened."""

    patch: BiasedLinear
    position_PD: jax.Array
    layers: tuple[VisionBlock, ...]
    final_norm: LayerNorm
    config: VisionConfig = eqx.field(static=True)

    def __call__(self, pixels_CYX: jax.Array) -> jax.Array:
        """Return h_PD in fp32 of pixels in [-1, 1]."""
        x_PD = _embed(self.patch, self.position_PD, pixels_CYX, self.config.patch_size)
        for layer in self.layers:
            x_PD = _layer(layer, x_PD)
        return _norm(self.final_norm, x_PD)


# Compiled apart, so that 27 layers are 27 calls of one small program. Inside a caller's own jit they are inlined.


@jax.jit
def _layer(layer: VisionBlock, x_PD: jax.Array) -> jax.Array:
    return layer(x_PD)


@jax.jit
def _norm(norm: LayerNorm, x_PD: jax.Array) -> jax.Array:
    return norm(x_PD)


@eqx.filter_jit
def _embed(patch: BiasedLinear, position_PD: jax.Array, pixels_CYX: jax.Array, patch_size: int) -> jax.Array:
    return patch(patches(pixels_CYX, patch_size)) + position_PD.astype(jnp.float32)


def patches(pixels_CYX: jax.Array, size: int) -> jax.Array:
    """Return patches_PU, row by row, each flattened as channel, y, x: the order of a convolution's kernel."""
    C, Y, X = pixels_CYX.shape
    split = pixels_CYX.reshape(C, Y // size, size, X // size, size)
    return jnp.transpose(split, (1, 3, 0, 2, 4)).reshape(-1, C * size * size)


def attend_all(q_NPH: jax.Array, k_NPH: jax.Array, v_NPH: jax.Array, *, scale: float) -> jax.Array:
    """Return out_NPH of unmasked attention, QUERY_BLOCK queries at a time; scores and softmax in fp32."""
    P = q_NPH.shape[1]
    size = min(QUERY_BLOCK, P)

    def block(start):
        q_NQH = jax.lax.dynamic_slice_in_dim(q_NPH, start, size, axis=1)
        weights = jax.nn.softmax(_einsum("nqh,nph->nqp", q_NQH * scale, k_NPH), axis=-1)
        return _einsum("nqp,nph->nqh", weights, v_NPH)

    # The last block begins early where P is no multiple of the size, and repeats some queries.
    starts = jnp.minimum(jnp.arange(-(-P // size)) * size, P - size)
    out_SNQH = jax.lax.map(block, starts)
    index_P = jnp.arange(P)
    turn_P = index_P // size
    return jnp.moveaxis(out_SNQH[turn_P, :, index_P - starts[turn_P]], 0, 1)


def _einsum(spec: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *operands, precision="highest", preferred_element_type=jnp.float32)


def build_siglip(config: VisionConfig, leaf) -> Siglip:
    """Return a tower whose every array is leaf(name, shape); names are dotted, as vision.layers.3.attn.q.weight."""
    D, F = config.model_dim, config.ffw_dim
    patch_dim = config.num_channels * config.patch_size**2

    def linear(name: str, out_dim: int, in_dim: int) -> BiasedLinear:
        return BiasedLinear(leaf(f"{name}.weight", (out_dim, in_dim)), leaf(f"{name}.bias", (out_dim,)))

    def norm(name: str) -> LayerNorm:
        return LayerNorm(leaf(f"{name}.weight", (D,)), leaf(f"{name}.bias", (D,)), config.norm_eps)

    def block(at: str) -> VisionBlock:
        return VisionBlock(
            attn_norm=norm(f"{at}.attn_norm"),
            attn=VisionAttention(
                q=linear(f"{at}.attn.q", D, D),
                k=linear(f"{at}.attn.k", D, D),
                v=linear(f"{at}.attn.v", D, D),
                o=linear(f"{at}.attn.o", D, D),
                num_heads=config.num_heads,
            ),
            ffw_norm=norm(f"{at}.ffw_norm"),
            ffw=VisionFeedForward(up=linear(f"{at}.ffw.up", F, D), down=linear(f"{at}.ffw.down", D, F)),
        )

    return Siglip(
        patch=linear("vision.patch", D, patch_dim),
        position_PD=leaf("vision.position", (config.num_patches, D)),
        layers=tuple(block(f"vision.layers.{i}") for i in range(config.num_layers)),
        final_norm=norm("vision.final_norm"),
        config=config,
    )
