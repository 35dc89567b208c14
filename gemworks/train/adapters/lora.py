"""LoRA and DoRA around a frozen model: the parameters, how they begin, and the model that has them in its matrices.

layers.3.attn.q.a            [rank, in]      normal numbers of variance 1 / (3 in), as PEFT's: uniform, B is zero
layers.3.attn.q.b            [out, rank]
layers.3.attn.q.magnitude    [out]           DoRA: begins as the lengths of the rows of W, so nothing changes
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Gemma3
from gemworks.model.lora import target_shape
from gemworks.ops.train.low_rank import LowRank
from gemworks.train.adapters.kinds import LoRA, targeted


def lora_shapes(adapter: LoRA, config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every trained parameter, in the model's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in targeted(adapter, config):
        F, D = target_shape(config, name.rpartition(".")[2])  # type: ignore[arg-type]
        shapes |= {f"{name}.a": (adapter.rank, D), f"{name}.b": (F, adapter.rank)}
        if adapter.dora:
            shapes[f"{name}.magnitude"] = (F,)
    return shapes


def new_lora(adapter: LoRA, config: TextConfig, squares: Mapping[str, jax.Array], seed: int) -> dict[str, np.ndarray]:
    """Return parameters that change nothing yet. `squares`: the squared lengths of the rows of every target."""

    def one(number: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
        matrix, _, part = name.rpartition(".")
        if part == "magnitude":
            return np.sqrt(np.asarray(squares[matrix], np.float32))
        if part == "b":
            return np.zeros(shape, np.float32)
        # Uniform in +- 1 / sqrt(in), as torch's Linear and so PEFT's A begins. A stream of its own for each.
        bound = np.float32(shape[1] ** -0.5)
        return np.random.default_rng([seed, number]).uniform(-bound, bound, shape).astype(np.float32)

    return {name: one(i, name, shape) for i, (name, shape) in enumerate(lora_shapes(adapter, config).items())}


def with_lora(
    model: Gemma3,
    adapter: LoRA,
    params: Mapping[str, jax.Array],
    squares: Mapping[str, jax.Array],
    *,
    dtype: Any,
    key: jax.Array | None,
) -> Gemma3:
    """Return the model with every target paired with its additions, rounded to `dtype`; `key` None: no dropout."""
    names = targeted(adapter, model.config)

    def matrices(model: Gemma3) -> list[Any]:
        return [_linear(model, name).weight for name in names]

    def one(number: int, name: str, weight: Any) -> LowRank:
        return LowRank(
            weight,
            params[f"{name}.a"].astype(dtype),
            params[f"{name}.b"].astype(dtype),
            params[f"{name}.magnitude"] if adapter.dora else None,
            squares[name] if adapter.dora else None,
            jax.random.fold_in(key, number) if key is not None and adapter.dropout else None,
            adapter.scale,
            adapter.dropout,
        )

    pairs = [one(i, name, weight) for i, (name, weight) in enumerate(zip(names, matrices(model), strict=True))]
    return eqx.tree_at(matrices, model, pairs)


def row_squares(model: Gemma3, adapter: LoRA) -> dict[str, jax.Array]:
    """Return the squared lengths of the rows of every target, fp32 [out]."""
    return {name: _squares(_linear(model, name).weight) for name in targeted(adapter, model.config)}


def _linear(model: Gemma3, name: str) -> Any:
    _, layer, half, target = name.split(".")
    return getattr(getattr(model.layers[int(layer)], half), target)


def _squares(weight: Any) -> jax.Array:
    if isinstance(weight, jax.Array):
        return jax.jit(lambda w: jnp.square(w.astype(jnp.float32)).sum(axis=1))(weight)
    return weight.row_squares()
