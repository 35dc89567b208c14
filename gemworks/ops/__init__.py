"""The vocabulary of the model: what a backend must supply. Contracts here, meaning in ops/xla, choice in ops/select.

Activations are fp32 arrays between ops; weights and caches keep their own dtype. The matrices of `linear`, `qkv` and
`block_tail` may be `Composite`: a layer with adapters is computed product by product, not in one kernel.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from gemworks.ops import adapted, select
from gemworks.ops.adapted import Composite
from gemworks.ops.kv import Array, AttentionPlan, LayerKV, PartsPlan
from gemworks.ops.tower import Normed, TowerLayer
from gemworks.ops.weight import Weight

# T tokens, P patches, D and F widths, N query heads, K kv heads, H head width, J = H / 2, E = N * H, V vocabulary rows,
# R rows, Q candidates


def rms_norm(x: jax.Array, scale: jax.Array, *, eps: float) -> jax.Array:
    """Return x / rms(x) * (1 + scale) over the last axis (Zhang and Sennrich 2019, zero-centred gain)."""
    return select.implementation("rms_norm")(x, scale, eps=eps)


def linear(x_TD: jax.Array, weight_FD: Weight | Composite) -> jax.Array:
    """Return y_TF = x_TD @ weight_FD.T, with what each token's adapter adds."""
    return adapted.linear(x_TD, weight_FD, product=select.implementation("linear"))


def embed(ids_T: Array, weight_VD: Weight | Composite, *, scale: float) -> jax.Array:
    """Return x_TD = weight[ids] * scale."""
    if isinstance(weight_VD, Composite):
        return weight_VD.embed(ids_T, scale)
    return select.implementation("embed")(ids_T, weight_VD, scale=scale)


def rope(x_TNH: jax.Array, cos_TJ: jax.Array, sin_TJ: jax.Array) -> jax.Array:
    """Turn the pairs (i, i + H/2) of every head (Su et al. 2021, half-split pairing)."""
    return select.implementation("rope")(x_TNH, cos_TJ, sin_TJ)


def geglu(gate_TF: jax.Array, up_TF: jax.Array) -> jax.Array:
    """Return gelu_tanh(gate) * up (Shazeer 2020)."""
    return select.implementation("geglu")(gate_TF, up_TF)


def qkv(
    x_TD,
    gain_D,
    q: Weight | Composite,
    k: Weight | Composite,
    v: Weight | Composite,
    q_gain_H,
    k_gain_H,
    cos_TJ,
    sin_TJ,
    *,
    eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (q_TNH, k_TKH, v_TKH): norm, project, norm the heads of q and k, turn them. What a layer does first."""
    implementation = _block("qkv", q, k, v)
    return implementation(x_TD, gain_D, q, k, v, q_gain_H, k_gain_H, cos_TJ, sin_TJ, eps=eps)


def attention(
    q_TNH: jax.Array, k_TKH: jax.Array, v_TKH: jax.Array, plan: AttentionPlan, kv: LayerKV | None, *, scale: float
) -> tuple[jax.Array, LayerKV | None]:
    """Attend by the plan and store the chunk; return (out_TNH, kv). q and k are normed and turned already."""
    attend = select.implementation("attention")
    if not isinstance(plan, PartsPlan):
        return attend(q_TNH, k_TKH, v_TKH, plan, kv, scale=scale)
    ends = list(itertools.accumulate(plan.tokens))[:-1]
    outs = []
    for part, *qkv in zip(plan.parts, *(jnp.split(x, ends) for x in (q_TNH, k_TKH, v_TKH)), strict=True):
        out_TNH, kv = attend(*qkv, part, kv, scale=scale)
        outs.append(out_TNH)
    return jnp.concatenate(outs), kv


def block_tail(
    x_TD,
    attn_TE,
    attn_gain_D,
    ffw_gain_D,
    ffw_post_gain_D,
    o: Weight | Composite,
    gate: Weight | Composite,
    up: Weight | Composite,
    down: Weight | Composite,
    *,
    eps: float,
) -> jax.Array:
    """Return x_TD after the output projection, the feed-forward branch and their residuals. What a layer does last."""
    implementation = _block("block_tail", o, gate, up, down)
    return implementation(x_TD, attn_TE, attn_gain_D, ffw_gain_D, ffw_post_gain_D, o, gate, up, down, eps=eps)


def layer_norm(x: jax.Array, norm: Normed, *, eps: float) -> jax.Array:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al. 2016)."""
    return select.implementation("layer_norm")(x, norm, eps=eps)


def attend_all(q_NPH: Array, k_NPH: Array, v_NPH: Array, *, scale: float, exact: bool = True) -> jax.Array:
    """Return out_NPH of attention in which every position sees every other; not `exact`: products may be of bytes."""
    return select.implementation("attend_all")(q_NPH, k_NPH, v_NPH, scale=scale, exact=exact)


def tower_layer(x_PD: jax.Array, layer: TowerLayer, *, heads: int, eps: float) -> jax.Array:
    """Return x_PD after one layer of the vision tower. Packed matrices (quant/tower.py) are computed in bytes."""
    return select.implementation("tower_layer")(x_PD, layer, heads=heads, eps=eps)


def head_norm(x_TD: jax.Array, gain_D: jax.Array, head_VD: Weight, *, eps: float) -> jax.Array:
    """Return the stack's last norm, rms_norm(x), of rows that `head_VD` will read."""
    return select.implementation("head_norm")(x_TD, gain_D, head_VD, eps=eps)


def head_top(
    h_RD: jax.Array, weight_VD: Weight, *, vocab: int, top: int, with_total: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (values_RQ, ids_RQ, ln sum e^logit) of the Q largest of the first `vocab` logits, best first."""
    return select.implementation("head_top")(h_RD, weight_VD, vocab=vocab, top=top, with_total=with_total)


def penalize(logits_RV: jax.Array, penalties) -> jax.Array:
    """Return logits after penalties and bias."""
    return select.implementation("penalize")(logits_RV, penalties)


def sample(logits_RV: jax.Array, params, *, short: bool) -> jax.Array:
    """Return one drawn id a row; `short` promises 0 < top_k <= 128 wherever a row draws."""
    return select.implementation("sample")(logits_RV, params, short=short)


def draw(values_RQ: jax.Array, ids_RQ: jax.Array, params) -> jax.Array:
    """Return one drawn id a row from its largest logits, which cover every row's top_k."""
    return select.implementation("draw")(values_RQ, ids_RQ, params)


def top_logprobs(logits_RV: jax.Array, chosen_R: jax.Array, *, top: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return (logprob_R of the chosen, values_Rn and ids_Rn of the likeliest n = max(top, 1))."""
    return select.implementation("top_logprobs")(logits_RV, chosen_R, top=top)


def _block(op: str, *weights: Weight | Composite):
    """The implementation of a block's op: the chosen one, or with adapters the twin, its products by `linear`."""
    if any(isinstance(weight, Composite) for weight in weights):
        return functools.partial(select.twin(op), product=linear)
    return select.implementation(op)
