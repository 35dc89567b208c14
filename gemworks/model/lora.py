"""LoRA adapters beside a model: the matrices of every slot, and how they join the weights of a step.

    h_TD, kv = model(batch, kv, adapters)       batch.adapter_T says whose each token is

The model is never changed: inside the step each of a layer's matrices is paired with its adapters' (ops/adapted.py).
Which adapter is in which slot is the engine's business (engine/adapters.py).

Not here: embedding and head, which no adapter of ours changes; training (train/adapters).
"""

from typing import TYPE_CHECKING, Literal, get_args

import equinox as eqx

from gemworks.model.config import TextConfig
from gemworks.ops.adapted import Adapted, own_columns
from gemworks.ops.kv import Array

if TYPE_CHECKING:
    from gemworks.model.gemma3 import Block

# D input width, F output width, P = slots * rank, S = slots + 1

Target = Literal["q", "k", "v", "o", "gate", "up", "down"]
TARGETS: tuple[Target, ...] = get_args(Target)


class Delta(eqx.Module):
    """What all slots add to one matrix: slot s has the columns [(s - 1) * rank, s * rank); b carries the scale.

    gain_SF: the factor of every row by slot, 1 for those that have none; None where no adapter of the pool has any.
    """

    a_PD: Array
    b_FP: Array
    gain_SF: Array | None = None


class Adapters(eqx.Module):
    """The adapters of every slot: for each layer, target -> Delta; a target that is missing is adapted by none."""

    layers: tuple[dict[Target, Delta], ...]
    rank: int = eqx.field(static=True)


def target_shape(config: TextConfig, target: Target) -> tuple[int, int]:
    """Return [out, in] of a target's matrix."""
    D, q_dim = config.model_dim, config.num_heads * config.head_dim
    kv_dim = config.num_kv_heads * config.head_dim
    shapes = {"q": (q_dim, D), "k": (kv_dim, D), "v": (kv_dim, D), "o": (D, q_dim), "down": (D, config.ffw_dim)}
    return shapes.get(target, (config.ffw_dim, D))


def adapt(layers: "tuple[Block, ...]", adapters: Adapters, adapter_T: Array | None) -> "tuple[Block, ...]":
    """Return the layers with every adapted matrix paired with its adapters, for tokens of these slots."""
    assert adapter_T is not None, "a batch for a model with adapters says which each token has"
    assert len(adapters.layers) == len(layers), (len(adapters.layers), len(layers))
    columns = {delta.a_PD.shape[0] for layer in adapters.layers for delta in layer.values()}
    assert len(columns) == 1, f"the adapters of all matrices have the same columns, got {columns}"
    own_TP = own_columns(adapter_T, rank=adapters.rank, columns=columns.pop())

    def one(layer: "Block", deltas: dict[Target, Delta]) -> "Block":
        def matrices(block: "Block") -> list:
            return [getattr(block.attn if hasattr(block.attn, t) else block.ffw, t).weight for t in deltas]

        pairs = [
            Adapted(weight, delta.a_PD, delta.b_FP, own_TP, delta.gain_SF, None if delta.gain_SF is None else adapter_T)
            for weight, delta in zip(matrices(layer), deltas.values(), strict=True)
        ]
        return eqx.tree_at(matrices, layer, pairs)

    return tuple(one(layer, deltas) for layer, deltas in zip(layers, adapters.layers, strict=True))
