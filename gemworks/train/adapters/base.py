"""The frozen base of a run with an adapter: read matrix by matrix, each in the format it is held in.

A quantized matrix stays codes and scales (ops/train/stored.py); nothing of it is ever a float matrix for longer than
the product of a part of it takes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.errors import ConfigError
from gemworks.model.gemma3 import Gemma3, build
from gemworks.ops.train.stored import Held, Stored
from gemworks.ops.weight import Format, QuantWeight
from gemworks.train.adapters.kinds import Adapter, LoRA, base_plan
from gemworks.train.adapters.lora import row_squares
from gemworks.weights.checkpoint import Checkpoint
from gemworks.weights.names import is_norm
from gemworks.weights.prepare import Preparation

# Calls, not types: pyright takes the abstract variables of equinox for fields of their own.
_Held, _Stored = cast(Any, Held), cast(Any, Stored)


class Base(NamedTuple):
    """What a run reads and does not train: the model, and for DoRA the squared lengths of its targets' rows."""

    model: Gemma3
    squares: Mapping[str, jax.Array]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def read_base(checkpoint: Checkpoint, adapter: Adapter, *, dtype: str) -> Base:
    """Return the base of an open checkpoint, which may be closed afterwards.

    Matrices are in `dtype` where the adapter names no format; those that are stored quantized stay so. Raises
    ConfigError for a format that cannot hold a matrix, or weights that are not finite.
    """
    plan = base_plan(adapter)
    formats: dict[str, Format | None] = {}
    for name, entry in checkpoint.entries.items():
        own = None if is_norm(name) else checkpoint.quantized_format(name)
        formats[name] = own if plan is None else plan.format_of(name, entry.shape)
        if formats[name] == "bf16":
            formats[name] = None
    preparation = Preparation(checkpoint=checkpoint, dtype=np.dtype(jnp.dtype(dtype)), formats=formats)

    def leaf(name: str, shape: tuple[int, ...]) -> Any:
        array = held(name, preparation.read(name), dtype)
        jax.block_until_ready(array)
        checkpoint.release(name)
        return array

    model = build(checkpoint.config, leaf)
    if preparation.broken:
        raise ConfigError(
            f"{checkpoint.path} must hold finite weights to be trained on, and {preparation.broken[0]} does not.\n"
            "Fetch or export the model again."
        )
    return new_base(model, adapter)


def held(name: str, array: np.ndarray | QuantWeight, dtype: str) -> Any:
    """Return a parameter on the device as a base holds it; tables are marked as not trained, for the loss."""
    if not isinstance(array, QuantWeight):
        if name not in ("embed.weight", "head.weight"):
            return jnp.array(array)  # a copy: the checkpoint's mapping is let go
        if array.dtype != jnp.bfloat16:
            return _Held(jnp.array(array))
        # By its bits: XLA on CPU makes an fp32 copy of a bf16 table to gather from it (1.2 GB for 1B, jaxlib 0.10.2).
        bits = np.asarray(array).view(np.uint16)
        array = QuantWeight(bits, np.zeros(0, np.float32), "bf16", (bits.shape[0], bits.shape[1]))
    codes_and_scales = QuantWeight(jnp.array(array.codes), jnp.array(array.scales), array.format, array.shape)
    return _Stored(codes_and_scales, np.dtype(jnp.dtype(dtype)))


def new_base(model: Gemma3, adapter: Adapter) -> Base:
    """Return the base for a model whose leaves are as `held` makes them."""
    return Base(model, row_squares(model, adapter) if isinstance(adapter, LoRA) and adapter.dora else {})
