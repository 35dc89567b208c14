"""Copies between a sequence's own keys and values and the prefix cache's, as compiled programs over whole pools.

    copy_pages   page -> page of every global layer: before a sequence writes into a page that others share
    save_ring    ring slots -> local pages: what a prefix needs of the local layers, kept beyond its sequence
    load_ring    local pages -> ring slots: a sequence that begins with a kept prefix

A page of B tokens is B consecutive slots of a ring, for `slots` is a multiple of B. Every program loops over entries
with one slice a pool and entry, which XLA updates in place; gathers and scatters of the same tokens would convert and
copy whole pools on the CPU. 1B: 22 layers x 2 x 8 KB a page of 16 in bf16.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.engine.plan import CopyPage, LoadRing, LocalPage, SaveRing
from gemworks.ops.kv import LayerKV, PageKV, RingKV

# N entries of a call, padded; B slots a page

Pools = tuple[LayerKV, ...]


def copy_pages(kv: Pools, entries_N4: jax.Array, count: jax.Array) -> Pools:
    """Return kv with page entries[i, 0] copied to entries[i, 1] in every global layer, for i < count."""

    def turn(i, pools):
        source, target = entries_N4[i, 0], entries_N4[i, 1]
        return [_put(pool, (target,), _get(pool, (source,), (1, *pool.shape[1:]))) for pool in pools]

    pages, rebuild = _arrays(kv, PageKV)
    return rebuild(jax.lax.fori_loop(0, count, turn, pages))


def save_ring(kv: Pools, local: tuple[PageKV, ...], ring, entries_N4: jax.Array, count: jax.Array):
    """Return the local pages with offsets entries[i, 3] to [i, 2] of page entries[i, 1] taken from a ring.

    Offset 0 is the ring's slot entries[i, 0]; other offsets of a page stay. For i < count.
    """
    rings, _ = _arrays(kv, RingKV)

    def turn(i, pages):
        slot, page, tokens, first = entries_N4[i]
        out = []
        for pool, source in zip(pages, rings, strict=True):
            size = (1, *pool.shape[1:])
            saved = _get(source, (ring, slot), size)
            out.append(_put(pool, (page,), jnp.where(_offsets(size, first, tokens), saved, _get(pool, (page,), size))))
        return out

    pages, rebuild = _arrays(local, PageKV)
    return rebuild(jax.lax.fori_loop(0, count, turn, pages))


def load_ring(kv: Pools, local: tuple[PageKV, ...], ring, entries_N4: jax.Array, count: jax.Array) -> Pools:
    """Return kv with the first entries[i, 2] tokens of page entries[i, 1] at slots entries[i, 0] on of a ring."""
    pages, _ = _arrays(local, PageKV)

    def turn(i, rings):
        slot, page, tokens, _ = entries_N4[i]
        out = []
        for pool, source in zip(rings, pages, strict=True):
            size = (1, *source.shape[1:])
            block = jnp.where(_offsets(size, 0, tokens), _get(source, (page,), size), _get(pool, (ring, slot), size))
            out.append(_put(pool, (ring, slot), block))
        return out

    rings, rebuild = _arrays(kv, RingKV)
    return rebuild(jax.lax.fori_loop(0, count, turn, rings))


def entries_of(
    action: CopyPage | LoadRing | SaveRing, *, page_size: int, slots: int
) -> list[tuple[int, int, int, int]]:
    """Return (first slot or source page, page, tokens, first of them) of everything an action copies, in order."""
    if isinstance(action, CopyPage):
        return [(action.source, action.target, page_size, 0)]

    def entry(page: LocalPage) -> tuple[int, int, int, int]:
        return page.index * page_size % slots, page.page, page.count, page.first

    return [entry(page) for page in action.pages]


def padded(entries: Sequence[tuple[int, int, int, int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (entries_N4 padded to `width` rows, their number), int32."""
    table = np.zeros((width, 4), np.int32)
    table[: len(entries)] = np.asarray(entries, np.int32).reshape(-1, 4)  # may be none at all
    return table, np.asarray(len(entries), np.int32)


def _arrays(layers: Sequence[Any], kind: type) -> tuple[list[jax.Array], Any]:
    """Return the arrays of the layers of one kind, and a function from new ones to all layers."""
    flat, structure = jax.tree.flatten([layer for layer in layers if isinstance(layer, kind)])

    def rebuild(arrays: list[jax.Array]):
        new = iter(jax.tree.unflatten(structure, arrays))
        return tuple(next(new) if isinstance(layer, kind) else layer for layer in layers)

    return flat, rebuild


def _offsets(size: tuple[int, ...], first, end) -> jax.Array:
    """Which offsets of a page are in [first, end), for a block of that size."""
    offset_B = jnp.arange(size[1]).reshape(1, -1, *[1] * (len(size) - 2))
    return (offset_B >= first) & (offset_B < end)


def _get(pool: jax.Array, at: tuple, size: tuple[int, ...]) -> jax.Array:
    """A block of a pool; where `at` names a ring and a slot, `size` is one page of that ring."""
    starts = (*at, *[0] * (pool.ndim - len(at)))
    return jax.lax.dynamic_slice(pool, starts, size)


def _put(pool: jax.Array, at: tuple, block: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(pool, block, (*at, *[0] * (pool.ndim - len(at))))
