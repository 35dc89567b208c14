"""The one model definition over a batch of rows: layers computed again for the gradient, parts placed on devices.

Parameters are a dict by our names (layers.3.attn.q.weight), fp32: what the optimizer owns. `model_of` makes of them the
model that computes, its matrices in the compute dtype: the arrays that serving would load.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Batch, Block, Gemma3, build
from gemworks.ops import select
from gemworks.ops.kv import Array, RowsPlan
from gemworks.parallel import multihost
from gemworks.parallel.mesh import MeshShape
from gemworks.parallel.plan import ROWS, ShardPlan, make_plan

# B rows, T tokens a row, D model width

Params = Mapping[str, jax.Array]


class Rows(NamedTuple):
    """B rows of T tokens, int32: positions restart in each segment; loss_mask is the weight of each target, fp32."""

    ids_BT: Array
    targets_BT: Array
    loss_mask_BT: Array
    segment_BT: Array
    position_BT: Array


class Layout(NamedTuple):
    """Where the parts of a run on many devices lie."""

    mesh: Mesh
    plan: ShardPlan

    def put(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        """Inside a compiled function: x, placed as `spec` says."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def layout_of(config: TextConfig, layout: Layout) -> Layout:
    """Return the mesh of a layout with the plan of another model: a teacher is divided as a student of its shape."""
    return Layout(layout.mesh, _plan(config, layout.plan.shape))


@lru_cache(maxsize=8)
def _plan(config: TextConfig, shape: MeshShape) -> ShardPlan:
    return make_plan(config, parameter_shapes(config), shape)


def place_model(model: Gemma3, layout: Layout | None) -> Gemma3:
    """Return the model with every array where the plan of its own shape puts it; None: as it is."""
    if layout is None:
        return model
    placements = layout_of(model.config, layout).plan.placements

    def one(path, leaf):
        name = ".".join(str(getattr(key, "name", getattr(key, "idx", ""))) for key in path)
        return multihost.put_whole(leaf, NamedSharding(layout.mesh, placements[name].stored))

    return jax.tree_util.tree_map_with_path(one, model)


def parameter_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's shape by our names, in the model's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    build(config, shapes.__setitem__)
    return shapes


def model_of(params: Params, config: TextConfig, dtype=jnp.float32) -> Gemma3:
    """Return the model of these parameters, matrices rounded to `dtype`; gains stay as they are, as in files."""
    return build(config, lambda name, shape: params[name].astype(dtype) if len(shape) == 2 else params[name])


def hidden(model: Gemma3, rows: Rows, layout: Layout | None = None, *, remat: bool = True) -> jax.Array:
    """Return h_BTD after the final norm, in fp32.

    remat: a layer keeps its input only and is computed again for the gradient (Chen et al. 2016, arXiv 1604.06174).
    """
    config, dtype = model.config, np.dtype(model.embed.weight.dtype)
    window = config.local_spec.window if config.local_spec else None
    local, global_ = (RowsPlan(rows.position_BT, rows.segment_BT, one, dtype) for one in (window, None))
    batch = Batch(rows.ids_BT, rows.position_BT, local, global_)
    if layout is not None:
        layout = layout_of(config, layout)
        model = _gathered_table(model, layout)
    with select.force("*", "train"):
        h_BTD, _ = model(batch, each_layer=partial(_layer, layout=layout, remat=remat))
    return h_BTD if layout is None else layout.put(h_BTD, PartitionSpec(*ROWS, None))


def head_rows(model: Gemma3) -> jax.Array:
    """Return the head's matrix_VD, which is the embedding's where the model ties them."""
    return model.embed.weight if model.head is None else model.head.weight


def _layer(function: Callable, *, layout: Layout | None, remat: bool) -> Callable:
    """Wrap what computes a layer: parameters are gathered inside, where the gradient's pass gathers them again."""

    def placed(layer: Block, x_BTD, *inputs):
        if layout is None:
            return function(layer, x_BTD, *inputs)
        x_BTD = layout.put(x_BTD, PartitionSpec(*ROWS, None))
        x_BTD, kv = function(_gathered(layer, layout), x_BTD, *inputs)
        return layout.put(x_BTD, PartitionSpec(*ROWS, None)), kv

    return jax.checkpoint(placed) if remat else placed


def _gathered(layer: Block, layout: Layout) -> Block:
    """The layer with its parameters whole but for the tensor axis. All layers are placed alike."""

    def one(path, leaf: jax.Array) -> jax.Array:
        name = "layers.0." + ".".join(key.name for key in path)
        return layout.put(leaf, layout.plan.placements[name].used)

    return jax.tree_util.tree_map_with_path(one, layer)


def _gathered_table(model: Gemma3, layout: Layout) -> Gemma3:
    """The model with what is outside the layers whole but for the tensor axis."""

    def outside(model: Gemma3) -> list[jax.Array]:
        return [model.embed.weight, model.final_norm.scale, *([] if model.head is None else [model.head.weight])]

    names = ("embed.weight", "final_norm.scale", "head.weight")
    placed = [layout.put(x, layout.plan.placements[name].used) for name, x in zip(names, outside(model), strict=False)]
    return eqx.tree_at(outside, model, placed)
