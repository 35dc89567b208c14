"""Quantizing a model with calibration text: it goes through layer by layer, and each layer is rounded on the way.

    embed           rounded to the nearest; the text's rows of it become x [chunks, T, D]
    layer 0, 1 ...  x through the layer as it was: X X^T of the inputs of q, k, v | o | gate, up | down
                    its matrices are rounded by gptq.py
                    x through the layer as it is now: the next layer sees what it will see in use
    head            rounded to the nearest

In memory at a time: one layer in fp32, its four X X^T, and x once. So a model larger than memory can be quantized.

All matrices of a layer see the inputs of the layer as it was. Making o, gate and up, and down see the rounded ones
before them costs four more passes and gave nothing: `tiny` in int4-b32 with three calibration texts, perplexity 1.5605,
1.5611, 1.5605 in one pass, 1.5617, 1.5602, 1.5602 one after another.
"""

from collections.abc import Callable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks import ops
from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Block, build, full_batch
from gemworks.model.layers import Embedding, Linear
from gemworks.model.rope import rope_tables
from gemworks.ops.weight import Format, QuantWeight, Weight
from gemworks.quant.formats import CODE_RANGE, dequantize
from gemworks.quant.gptq import DAMPING, gptq
from gemworks.quant.rtn import quantize

# T tokens a chunk, C chunks, D model width

# The linears of a block by what they read: those of a group share their inputs, and so X X^T.
_GROUPS = (("attn.q", "attn.k", "attn.v"), ("attn.o",), ("ffw.gate", "ffw.up"), ("ffw.down",))


class Calibration:
    """Quantizes a model's matrices in the model's order; see the drawing above.

    `read(name)` gives a tensor by our name, norms and matrices; `formats` says what each matrix becomes. Call
    `quantized(name)` for the names of `formats` in the model's order, each once: a layer's seven are made together.
    """

    def __init__(
        self,
        config: TextConfig,
        read: Callable[[str], np.ndarray],
        formats: Mapping[str, Format],
        ids_CT: np.ndarray,
        *,
        damping: float = DAMPING,
        act_order: bool = False,
    ):
        self._config, self._read, self._formats = config, read, formats
        self._ids_CT = np.asarray(ids_CT, np.int32)
        self._damping, self._act_order = damping, act_order
        self._names = build(config, lambda name, shape: name)  # a model of names: what stands where
        self._x: list[jax.Array] = []
        self._next_layer = 0
        self._ready: dict[str, QuantWeight] = {}

    def quantized(self, name: str) -> QuantWeight:
        """Return the matrix in its format."""
        if name in ("embed.weight", "head.weight"):
            return quantize(self._read(name), self._formats[name], name=name)
        while name not in self._ready:
            assert self._next_layer < len(self._config.layers), f"{name} was asked for twice, or out of order"
            self._quantize_layer(self._next_layer)
            self._next_layer += 1
        return self._ready.pop(name)

    def _quantize_layer(self, index: int) -> None:
        if index == 0:
            self._x = self._embedded()
        at = f"layers.{index}."
        block: Block = jax.tree.map(lambda name: jnp.asarray(self._read(name), jnp.float32), self._names.layers[index])
        hessians = self._hessians(block)
        self._ready = {}
        for paths, hessian in zip(_GROUPS, hessians, strict=True):
            for path in paths:
                name = f"{at}{path}.weight"
                if (format := self._formats.get(name)) is None:
                    continue
                weight = np.asarray(_linear(block, path).weight)
                if format in CODE_RANGE:
                    found = gptq(weight, hessian, format, damping=self._damping, act_order=self._act_order, name=name)
                else:
                    found = quantize(weight, format, name=name)
                self._ready[name] = found
                rounded = Linear(jnp.asarray(dequantize(found)))
                block = eqx.tree_at(lambda b, path=path: _linear(b, path), block, rounded)
        if index + 1 < len(self._config.layers):
            self._x = [_through(block, x_TD, self._config) for x_TD in self._x]

    def _embedded(self) -> list[jax.Array]:
        """x of every chunk, from the rows of the rounded table that the text has."""
        used, where = np.unique(self._ids_CT, return_inverse=True)
        rows = np.asarray(self._read("embed.weight")[used])
        format = self._formats.get("embed.weight")
        table = jnp.asarray(rows) if format is None else quantize(rows, format, name="embed.weight")
        embed = Embedding(table)  # type: ignore[arg-type]
        return [embed(jnp.asarray(ids_T)) for ids_T in where.reshape(self._ids_CT.shape)]

    def _hessians(self, block: Block) -> list[np.ndarray]:
        """X X^T of every group's inputs over all chunks."""
        totals = None
        for x_TD in self._x:
            found = _outer_products(block, x_TD, self._config)
            totals = found if totals is None else [a + b for a, b in zip(totals, found, strict=True)]
        assert totals is not None
        return [np.asarray(total) for total in totals]


def cut_into_chunks(ids: Sequence[int], bos_id: int, *, length: int, count: int) -> np.ndarray:
    """Return at most `count` chunks [C, length] of a text's ids, evenly spread over it, each begun with <bos>.

    A text shorter than a chunk is one chunk. Raises ConfigError if it has no 32 tokens.
    """
    length = min(length, len(ids) + 1)
    if length < 33:
        raise ConfigError(
            f"the calibration text must have at least 32 tokens, got {len(ids)}.\n"
            "Give a file with some pages of the kind of text that the model will see."
        )
    whole = len(ids) // (length - 1)
    picked = np.unique(np.linspace(0, whole - 1, min(count, whole)).round().astype(int))
    rows = np.asarray(ids[: whole * (length - 1)], np.int32).reshape(whole, length - 1)[picked]
    return np.concatenate([np.full((len(rows), 1), bos_id, np.int32), rows], axis=1)


def _linear(block: Block, path: str) -> Linear:
    part, name = path.split(".")
    return getattr(getattr(block, part), name)


@eqx.filter_jit
def _through(block: Block, x_TD: jax.Array, config: TextConfig) -> jax.Array:
    """Return x_TD after the block, one text without a cache."""
    return _apply(block, x_TD, config, ops.linear)


@eqx.filter_jit
def _outer_products(block: Block, x_TD: jax.Array, config: TextConfig) -> list[jax.Array]:
    """Return X^T X of the inputs of each group of linears, fp32."""
    inputs: dict[int, jax.Array] = {}

    def product(x_TD: jax.Array, weight_FD: Weight) -> jax.Array:
        inputs[id(weight_FD)] = x_TD
        return ops.linear(x_TD, weight_FD)

    _apply(block, x_TD, config, product)
    read = [inputs[id(_linear(block, paths[0]).weight)] for paths in _GROUPS]
    return [jnp.matmul(x_TD.T, x_TD, precision="highest") for x_TD in read]


def _apply(block: Block, x_TD: jax.Array, config: TextConfig, product) -> jax.Array:
    """The block in basic ops, every product with a matrix by `product`: fused ops do not show what they read."""
    batch = full_batch(jnp.zeros(x_TD.shape[0], jnp.int32), config)
    plan = batch.local_plan if block.spec.is_local else batch.global_plan
    rope = rope_tables(batch.position_T, config.head_dim, block.spec)
    attn, ffw, heads = block.attn, block.ffw, (x_TD.shape[0], -1, config.head_dim)
    h_TD = block.attn_pre_norm(x_TD)
    q_TNH = ops.rope(attn.q_norm(product(h_TD, attn.q.weight).reshape(heads)), *rope)
    k_TKH = ops.rope(attn.k_norm(product(h_TD, attn.k.weight).reshape(heads)), *rope)
    v_TKH = product(h_TD, attn.v.weight).reshape(heads)
    out_TNH, _ = ops.attention(q_TNH, k_TKH, v_TKH, plan, None, scale=attn.query_scale)
    x_TD = x_TD + block.attn_post_norm(product(out_TNH.reshape(x_TD.shape[0], -1), attn.o.weight))
    h_TD = block.ffw_pre_norm(x_TD)
    h_TF = ops.geglu(product(h_TD, ffw.gate.weight), product(h_TD, ffw.up.weight))
    return x_TD + block.ffw_post_norm(product(h_TF, ffw.down.weight))
