"""A model driven chunk by chunk over its pools, one text, with image spans and adapters; shared by the test groups."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.model.gemma3 import Batch, Gemma3
from gemworks.model.layers import SoftTokens
from gemworks.ops import select
from gemworks.ops.kv import PagePlan, RingPlan, new_page_kv, new_ring_kv

Span = tuple[int, int]  # first position, and the one after the last


@functools.cache
def _step(backend: str):
    """One compiled function for each backend: jax keeps traces by function, also those of another backend."""
    return jax.jit(lambda model, batch, kv, adapters: model(batch, kv, adapters))


def last_seen(length: int, spans: Sequence[Span]) -> np.ndarray:
    """Return see_T of a text: its own position for text, the last of its span inside one."""
    see_T = np.arange(length, dtype=np.int32)
    for start, end in spans:
        see_T[start:end] = end - 1
    return see_T


def soft_tokens(length: int, spans: Sequence[Span], rows_SD: np.ndarray) -> SoftTokens:
    """Return the rows in order as the tokens of the spans; rows that are left over are taken by none."""
    index_T = np.full(length, -1, np.int32)
    at = np.concatenate([np.arange(*span) for span in spans])
    assert len(at) <= len(rows_SD)
    index_T[at] = np.arange(len(at))
    return SoftTokens(rows_SD, index_T)


def hidden_by_chunks(
    model: Gemma3,
    ids: Sequence[int],
    chunks: Sequence[int],
    *,
    spans: Sequence[Span] = (),
    rows_SD: np.ndarray | None = None,
    adapters=None,
    adapter_T: np.ndarray | None = None,
    columns: int = 8,
    page_size: int = 4,
    pages: int | None = None,
    dtype=jnp.float32,
) -> np.ndarray:
    """Return h_TD, the text computed in chunks of these lengths, each padded to a multiple of `columns`."""
    assert sum(chunks) == len(ids)
    config, T = model.config, len(ids)
    window = config.local_spec.window if config.local_spec else 1
    pages = pages or -(-T // page_size)
    heads = (config.num_kv_heads, config.head_dim, dtype)
    kv = tuple(
        new_ring_kv(1, window, *heads) if layer.is_local else new_page_kv(pages + 1, page_size, *heads)
        for layer in config.layers
    )
    table = np.arange(1, pages + 1, dtype=np.int32)[None]
    whole = soft_tokens(T, spans, rows_SD) if spans else None
    see_T = last_seen(T, spans)
    out, start = [], 0
    for count in chunks:
        C = -(-count // columns) * columns
        part = slice(start, start + count)

        def padded(array, C=C, part=part, value=0):
            full = np.full(C, value, np.int32)
            full[: part.stop - part.start] = np.asarray(array)[part]
            return full

        at = np.array([start], np.int32), np.array([count], np.int32)
        see_RC = padded(see_T)[None] if spans else None
        batch = Batch(
            padded(ids),
            start + np.arange(C, dtype=np.int32),
            RingPlan(*at, np.zeros(1, np.int32), window, see_RC),
            PagePlan(*at, table, see_RC),
            None if whole is None else SoftTokens(whole.rows_SD, padded(whole.index_T, value=-1)),
            None if adapter_T is None else padded(adapter_T),
        )
        h_CD, kv = _step(select.choose("linear").backend)(model, batch, kv, adapters)
        out.append(np.asarray(h_CD[:count]))
        start += count
    return np.concatenate(out)
