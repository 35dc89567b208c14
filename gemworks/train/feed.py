"""From a source of batches to arrays on the devices: whole, or in each of several processes the rows of its devices."""

from dataclasses import is_dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gemworks.parallel import multihost
from gemworks.parallel.plan import ROWS
from gemworks.train.forward import Layout, Rows
from gemworks.train.recipe import Recipe

# A micro-batches, B rows of each


class Source(Protocol):
    """Where batches come from: a pure function of the step. data.batches.PackedSource is one."""

    digest: str

    def batch(self, step: int, rows: slice | None = None) -> Any:
        """Return the batch of a step, or these rows of it: data.batches.Batch, or a NamedTuple of arrays [rows, ...].

        Only asked for `rows` where a run has several processes.
        """
        ...


def rows_of(batch: Any) -> Any:
    """Return a batch of the data pipeline as Rows; another method's batch, a NamedTuple of arrays, as it is."""
    if not is_dataclass(batch):
        return batch
    arrays = {name: np.asarray(getattr(batch, name)) for name in Rows._fields}
    return Rows(**arrays | {"loss_mask_BT": arrays["loss_mask_BT"].astype(np.float32)})


def read_batch(source: Source, step: int, recipe: Recipe, layout: Layout | None) -> Any:
    """Return the batch of a step as arrays [A, B, ...] on the devices; this process reads its own rows only."""
    if multihost.count() == 1 or layout is None:
        return put_batch(rows_of(source.batch(step)), recipe, layout)
    A, B = recipe.accumulate, recipe.rows // recipe.accumulate
    here = multihost.rows_here(_placed(layout, 2), (A, B), axis=1)
    micro = [rows_of(source.batch(step, slice(a * B + here.start, a * B + here.stop))) for a in range(A)]

    def one(*parts: np.ndarray) -> jax.Array:
        part = np.stack(parts)
        first = (0, here.start, *(0,) * (part.ndim - 2))
        return multihost.put(part, _placed(layout, part.ndim), (A, B, *part.shape[2:]), first)

    return jax.tree.map(one, *micro)


def put_batch(batch: Any, recipe: Recipe, layout: Layout | None) -> Any:
    """Return the batch's arrays [rows, ...] as [A, B, ...] on the devices."""

    def one(x):
        x = x.reshape(recipe.accumulate, -1, *x.shape[1:])
        return jnp.asarray(x) if layout is None else jax.device_put(x, _placed(layout, x.ndim))

    return jax.tree.map(one, batch)


def _placed(layout: Layout, ndim: int) -> NamedSharding:
    return NamedSharding(layout.mesh, PartitionSpec(*(None, *ROWS)[:ndim]))
