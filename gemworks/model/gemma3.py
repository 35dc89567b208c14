"""Gemma 3's text decoder: block, stack and head. Read this file to know the model (spec 4).

    x = embed(ids) * sqrt(D)
    for each layer, five local (window W) then one global:
        x = x + post_norm(attention(pre_norm(x)))       a norm on each side of every branch ("sandwich")
        x = x + post_norm(geglu(pre_norm(x)))
    logits = final_norm(x) @ embed.T

The block calls two ops, before and after attention: ops/xla/block.py has their arithmetic line by line, and a backend
may compute each in one kernel. Every norm multiplies by 1 + scale. Attention and final logits are not soft-capped (that
was Gemma 2). The stack works on T packed tokens and never asks which sequence they belong to: that is in the batch's
two attention plans.

Not here: images (multimodal.py), quantized weights (quant/), sharding (parallel/).
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

from gemworks import ops
from gemworks.model.attention import Attention
from gemworks.model.config import LayerSpec, TextConfig
from gemworks.model.layers import Embedding, Linear, RMSNorm, SoftTokens
from gemworks.model.lora import Adapters, adapt
from gemworks.model.rope import rope_tables
from gemworks.ops.kv import Array, AttentionPlan, FullPlan, LayerKV

# T packed tokens, D model width, F feed-forward width, V vocabulary rows, S rows whose logits are wanted


class Batch(eqx.Module):
    """What one step computes: T tokens, their positions, and one attention plan for each kind of layer.

    In training every array has rows in front: ids_BT, position_BT (train/forward.py).

    soft: embeddings that stand in for those of some tokens. adapter_T: int32, the slot of each token's LoRA adapter, 0
    for none; read where the model is called with adapters.
    """

    ids_T: Array
    position_T: Array
    local_plan: AttentionPlan
    global_plan: AttentionPlan
    soft: SoftTokens | None = None
    adapter_T: Array | None = None


class FeedForward(eqx.Module):
    """The matrices of down(gelu(gate(x)) * up(x))."""

    gate: Linear
    up: Linear
    down: Linear


class Block(eqx.Module):
    """One layer. `spec` says which attention plan and RoPE table it uses."""

    attn_pre_norm: RMSNorm
    attn: Attention
    attn_post_norm: RMSNorm
    ffw_pre_norm: RMSNorm
    ffw: FeedForward
    ffw_post_norm: RMSNorm
    spec: LayerSpec = eqx.field(static=True)

    def __call__(self, x_TD, rope, plan: AttentionPlan, kv: LayerKV | None) -> tuple[jax.Array, LayerKV | None]:
        """Return (x_TD after this layer, kv with the chunk stored)."""
        attn_TE, kv = self.attn(x_TD, self.attn_pre_norm, rope, plan, kv)
        gains = self.attn_post_norm.scale, self.ffw_pre_norm.scale, self.ffw_post_norm.scale
        matrices = self.attn.o.weight, self.ffw.gate.weight, self.ffw.up.weight, self.ffw.down.weight
        return ops.block_tail(x_TD, attn_TE, *gains, *matrices, eps=self.attn_pre_norm.eps), kv


class Gemma3(eqx.Module):
    """The text decoder of every size. `head` is None where the embedding is the head (all released sizes)."""

    embed: Embedding
    layers: tuple[Block, ...]
    final_norm: RMSNorm
    head: Linear | None
    config: TextConfig = eqx.field(static=True)

    def __call__(
        self,
        batch: Batch,
        kv: Sequence[LayerKV] | None = None,
        adapters: Adapters | None = None,
        *,
        each_layer: Callable[[Callable], Callable] = jax.jit,
    ) -> tuple[jax.Array, tuple[LayerKV | None, ...]]:
        """Return (h_TD after the final norm, fp32; the cache of every layer with the batch stored).

        `each_layer` wraps the function (layer, x_TD, rope, plan, kv) -> (x_TD, kv) that is called for each layer:
        training computes it again for the gradient, and says which device has which part (train/forward.py).
        """
        x_TD = self.embed(batch.ids_T)
        if batch.soft is not None:
            x_TD = batch.soft.put(x_TD)
        layers = self.layers if adapters is None else adapt(self.layers, adapters, batch.adapter_T)
        kinds = {}
        for spec, plan in ((self.config.local_spec, batch.local_plan), (self.config.global_spec, batch.global_plan)):
            if spec is not None:
                kinds[spec] = rope_tables(batch.position_T, self.config.head_dim, spec), plan
        # Traced once for each kind of layer, not for each layer (1B: 0.57 -> 0.13 s a program); XLA inlines the calls.
        block = each_layer(lambda layer, *inputs: layer(*inputs))
        new_kv = []
        for i, layer in enumerate(layers):
            rope, plan = kinds[layer.spec]
            x_TD, layer_kv = block(layer, x_TD, rope, plan, None if kv is None else kv[i])
            new_kv.append(layer_kv)
        head = self.embed.weight if self.head is None else self.head.weight
        return ops.head_norm(x_TD, self.final_norm.scale, head, eps=self.final_norm.eps), tuple(new_kv)

    def logits(self, h_SD: jax.Array) -> jax.Array:
        """Return logits_SV in fp32: 1 MiB a row at 262,144 words, so call it for the rows that are sampled."""
        return ops.linear(h_SD, self.embed.weight if self.head is None else self.head.weight)


def full_batch(
    ids_T: Array,
    config: TextConfig,
    segment_T: Array | None = None,
    *,
    see_T: Array | None = None,
    soft: SoftTokens | None = None,
    adapter_T: Array | None = None,
) -> Batch:
    """Return a batch without a cache: whole texts, packed by segment id; positions restart in each (one text: None)."""
    T = ids_T.shape[0]
    if segment_T is None:
        segment_T = jnp.zeros(T, jnp.int32)
    index_T = jnp.arange(T, dtype=jnp.int32)
    starts_T = jnp.concatenate([jnp.ones(1, bool), segment_T[1:] != segment_T[:-1]])
    position_T = index_T - jax.lax.cummax(jnp.where(starts_T, index_T, 0))
    window = config.local_spec.window if config.local_spec else None
    local, global_ = (FullPlan(position_T, segment_T, one, see_T) for one in (window, None))
    return Batch(ids_T, position_T, local, global_, soft, adapter_T)


def build(config: TextConfig, leaf) -> Gemma3:
    """Return a model whose every array is leaf(name, shape); names are dotted paths such as layers.3.attn.q.weight."""
    D, F, H = config.model_dim, config.ffw_dim, config.head_dim
    q_dim, kv_dim = config.num_heads * H, config.num_kv_heads * H

    def linear(name: str, out_dim: int, in_dim: int) -> Linear:
        return Linear(leaf(f"{name}.weight", (out_dim, in_dim)))

    def norm(name: str, dim: int) -> RMSNorm:
        return RMSNorm(leaf(f"{name}.scale", (dim,)), config.norm_eps)

    def block(i: int, spec: LayerSpec) -> Block:
        at = f"layers.{i}"
        return Block(
            attn_pre_norm=norm(f"{at}.attn_pre_norm", D),
            attn=Attention(
                q=linear(f"{at}.attn.q", q_dim, D),
                k=linear(f"{at}.attn.k", kv_dim, D),
                v=linear(f"{at}.attn.v", kv_dim, D),
                o=linear(f"{at}.attn.o", D, q_dim),
                q_norm=norm(f"{at}.attn.q_norm", H),
                k_norm=norm(f"{at}.attn.k_norm", H),
                head_dim=H,
                query_scale=config.query_scale,
            ),
            attn_post_norm=norm(f"{at}.attn_post_norm", D),
            ffw_pre_norm=norm(f"{at}.ffw_pre_norm", D),
            ffw=FeedForward(
                gate=linear(f"{at}.ffw.gate", F, D),
                up=linear(f"{at}.ffw.up", F, D),
                down=linear(f"{at}.ffw.down", D, F),
            ),
            ffw_post_norm=norm(f"{at}.ffw_post_norm", D),
            spec=spec,
        )

    return Gemma3(
        embed=Embedding(leaf("embed.weight", (config.vocab_size, D))),
        layers=tuple(block(i, spec) for i, spec in enumerate(config.layers)),
        final_norm=norm("final_norm", D),
        head=None if config.tied_head else linear("head", config.vocab_size, D),
        config=config,
    )


def skeleton(config: TextConfig, dtype) -> Gemma3:
    """Return the model with shapes in place of arrays (jax.ShapeDtypeStruct): nothing is allocated."""
    return build(config, lambda name, shape: jax.ShapeDtypeStruct(shape, dtype))
