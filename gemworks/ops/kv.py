"""Where keys and values live, and the per-step plans that say which of them a batch writes and reads.

A step computes T = R * C tokens: R rows (sequences) of a chunk of C tokens each; token t is column t % C of row
t // C. Of a row's C columns the first `count` are real; the rest are padding that is computed and thrown away.
Everything that changes from step to step is data in the plan (start, count, ring, table); only R and C are shapes.

    local layers    RingKV + RingPlan    slot of position p is p % slots; the last `slots` positions survive
    global layers   PageKV + PagePlan    position p is slot p % B of page table[p // B]
    no cache        FullPlan             scoring: the chunk is the whole text
                    RowsPlan             training: rows of texts, [B, T, ...] all through the model

Image spans: the tokens of a span see each other, also those after them. A plan that has any says for each query the
last position it may see; all of those are in the chunk, because a chunk never ends inside a span (spec 5.3).

    span at 3..5, window 3      keys ->  0 1 2 3 4 5 6
                        query 2          1 1 1 . . . .
                              3          . 1 1 1 1 1 .      ahead: to the end of the span, whatever the window
                              4          . . 1 1 1 1 .      behind: the window, as for text
                              5          . . . 1 1 1 .
                              6          . . . . 1 1 1

Page 0 is never owned by a sequence (engine/pages.py): padding is written there, unused table entries are 0, and nobody
reads it unmasked.

int8 pools hold codes, and one fp32 scale for each position and kv head: value = code * scale, scale = max|x| / 127
(docs/numerics.md). Half the bytes of bf16, and 1.6 % for the scales at H = 256.

bf16 pools are uint16 arrays that hold the bits. XLA on CPU has no bf16 gather or scatter: it would convert the whole
pool to fp32 and back at every step (268 MB for 1B at 32K, jaxlib 0.10.2), and a bitcast at the step's edge is a copy.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

# A plan is made of numpy arrays by the host and becomes jax arrays inside the compiled step.
Array = jax.Array | np.ndarray

# R rows, C columns a row, T = R * C tokens, S rings, W slots a ring, P pages, B slots a page, K kv heads, H head width


class RingKV(eqx.Module):
    """Keys (after norm and RoPE) and values of one local layer: k_SWKH and v_SWKH, [rings, slots, K, H]."""

    k_SWKH: jax.Array
    v_SWKH: jax.Array
    k_scale_SWK: jax.Array | None = None  # int8 only
    v_scale_SWK: jax.Array | None = None

    @property
    def slots(self) -> int:
        """Positions a ring remembers: the window, or more where speculation wants spare ones."""
        return self.k_SWKH.shape[1]


class PageKV(eqx.Module):
    """Keys (after norm and RoPE) and values of one global layer: k_PBKH and v_PBKH, [pages, page size, K, H]."""

    k_PBKH: jax.Array
    v_PBKH: jax.Array
    k_scale_PBK: jax.Array | None = None  # int8 only
    v_scale_PBK: jax.Array | None = None

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.k_PBKH.shape[1]


class RingPlan(eqx.Module):
    """A step's plan for every local layer. start: tokens stored before this chunk; count: real columns; int32 all.

    see_RC: the last position each query may see, for steps with image spans; what is below the query's own position
    means that one, so text may be 0. None: its own for every query.
    """

    start_R: Array
    count_R: Array
    ring_R: Array
    window: int = eqx.field(static=True)
    see_RC: Array | None = None


class PagePlan(eqx.Module):
    """A step's plan for every global layer. table_RM: page of tokens [m * B, (m + 1) * B) of each row; int32 all.

    see_RC: as in RingPlan.
    """

    start_R: Array
    count_R: Array
    table_RM: Array
    see_RC: Array | None = None


class FullPlan(eqx.Module):
    """No cache: t sees s of its segment where 0 <= position[t] - position[s] < window (None: at any distance).

    see_T: the last position of its segment that each query may see, as see_RC of RingPlan.
    """

    position_T: Array
    segment_T: Array
    window: int | None = eqx.field(static=True)
    see_T: Array | None = None


class RowsPlan(eqx.Module):
    """No cache, B rows of T tokens at once (training): FullPlan's rule in each row; products in `dtype`.

    The tokens of a segment lie side by side, and positions count up by one inside it.
    """

    position_BT: Array
    segment_BT: Array
    window: int | None = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)


class PartsPlan(eqx.Module):
    """A step of several parts, each R rows of C columns of its own: part i has the next tokens[i] of the T tokens.

    No sequence is in two parts, so their order does not matter.
    """

    parts: tuple[RingPlan | PagePlan, ...]
    tokens: tuple[int, ...] = eqx.field(static=True)


LayerKV = RingKV | PageKV
AttentionPlan = RingPlan | PagePlan | FullPlan | RowsPlan | PartsPlan


def stored_as(dtype) -> np.dtype:
    """Return the dtype of the array that stores keys and values of `dtype`: the bits of bf16, else itself."""
    return np.dtype(np.uint16) if np.dtype(dtype) == jnp.bfloat16 else np.dtype(dtype)


def new_ring_kv(rings: int, slots: int, num_kv_heads: int, head_dim: int, dtype) -> RingKV:
    """Return an empty pool of rings. Every array is a buffer of its own, so that all can be donated."""
    return RingKV(*_empty((rings, slots, num_kv_heads, head_dim), dtype))


def new_page_kv(pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype) -> PageKV:
    """Return an empty pool of `pages` pages of `page_size` tokens, page 0 included."""
    return PageKV(*_empty((pages, page_size, num_kv_heads, head_dim), dtype))


def _empty(shape: tuple[int, ...], dtype) -> list[jax.Array]:
    """Return k and v, and for int8 their scales."""
    arrays = [jnp.zeros(shape, stored_as(dtype)) for _ in "kv"]
    if np.dtype(dtype) == np.int8:
        arrays += [jnp.zeros(shape[:-1], jnp.float32) for _ in "kv"]
    return arrays
