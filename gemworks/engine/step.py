"""The compiled step: one forward pass over a decode part and a prefill part, with the draw in the same program.

    decode    R rows of C columns (1, or more where drafts are verified), padded with empty rows
    prefill   one row of a chunk of P columns, or none (P = 0)

    tokens    | row 0 | row 1 | ... | row R-1 |       chunk       |     T = R * C + P share every matrix product
    wanted    every decode token, and the chunk's last real one          S = R * C + (P > 0) hidden states and draws

Everything else that changes from step to step is one vector of int32 (`control`): a call of a program costs the host
about 2 us an argument, and made of twenty small arrays a step took 0.45 ms to prepare. The device keeps the token that
each ring drew last, so that a step can be launched before the one before it was read: id -1 means "that one".
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks.engine.sampler import fast_choice
from gemworks.model.gemma3 import Batch, Gemma3
from gemworks.model.layers import SoftTokens
from gemworks.model.lora import Adapters
from gemworks.ops.kv import PagePlan, PartsPlan, RingPlan
from gemworks.ops.sampling import SampleParams

# R rows, C columns, P columns of the chunk, M pages of a row's table, S wanted rows, D model width

FROM_DEVICE = -1  # as a token id: what this row's ring drew last

_FLOATS = ("temperature", "top_p", "min_p")
_INTS = ("top_k", "seed_high", "seed_low", "index")


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step is compiled for. soft: some prompt tokens are images; adapters: some row has a LoRA adapter."""

    rows: int
    columns: int
    chunk: int
    table_width: int
    soft: bool = False
    adapters: bool = False

    @property
    def wanted(self) -> int:
        """Hidden states that come out, each with a draw."""
        return self.rows * self.columns + (self.chunk > 0)

    @property
    def tokens(self) -> int:
        """Tokens computed, padding included."""
        return self.rows * self.columns + self.chunk


@dataclass(frozen=True, slots=True)
class RowInput:
    """One row as the runner takes it: `ids` to compute at positions `start` on, in this ring and these pages."""

    ids: Sequence[int]
    start: int
    ring: int
    table: Sequence[int]
    slot: int = 0  # of its adapter
    see: Sequence[int] | None = None  # last position each token may see, where spans are in the chunk


class StepOutput(eqx.Module):
    """drawn_S: ids (nonsense where nothing was drawn); h_SD; h_PD: states of the chunk, padding included."""

    drawn_S: jax.Array
    h_SD: jax.Array
    h_PD: jax.Array


@functools.lru_cache(maxsize=256)
def layout(shape: StepShape) -> tuple[dict[str, tuple[slice, tuple[int, ...]]], int]:
    """Return where each field is in a step's control vector, with its shape, and the vector's length."""
    R, C, P, M, S = shape.rows, shape.columns, shape.chunk, shape.table_width, shape.wanted
    fields: dict[str, tuple[int, ...]] = {"draw": ()}
    for part, rows, columns in (("decode", R, C), ("prefill", 1, P)):
        if rows * columns:
            fields |= {f"{part}_{name}": (rows,) for name in ("start", "count", "ring", "slot")}
            fields |= {f"{part}_table": (rows, M), f"{part}_ids": (rows, columns)}
    if shape.soft:
        fields["prefill_see"] = (1, P)
    fields |= {name: (S,) for name in (*_FLOATS, *_INTS)}
    places, at = {}, 0
    for name, dims in fields.items():
        places[name] = slice(at, at + math.prod(dims)), dims
        at += math.prod(dims)
    return places, at


def pack(
    shape: StepShape, decode: Sequence[RowInput], prefill: RowInput | None, params: SampleParams | None
) -> np.ndarray:
    """Return the control vector of a step. `params` of the S wanted rows; None: nothing is drawn."""
    places, length = layout(shape)
    control = np.zeros(length, np.int32)

    def field(name: str) -> np.ndarray:
        where, dims = places[name]
        return control[where].reshape(dims)

    for part, rows in (("decode", decode), ("prefill", [prefill] if prefill else [])):
        if not rows:
            continue
        ids, table = field(f"{part}_ids"), field(f"{part}_table")
        start, count, ring, slot = (field(f"{part}_{name}") for name in ("start", "count", "ring", "slot"))
        for r, row in enumerate(rows):
            n = len(row.ids)
            start[r], count[r], ring[r], slot[r] = row.start, n, row.ring, row.slot
            ids[r, :n] = row.ids
            table[r, : len(row.table)] = row.table
    if shape.soft:
        assert prefill is not None and prefill.see is not None
        see = field("prefill_see")
        see[0] = prefill.start + np.arange(shape.chunk)
        see[0, : len(prefill.see)] = prefill.see
    if params is not None:
        control[0] = 1
        for name in _FLOATS:
            field(name).view(np.float32)[:] = getattr(params, f"{name}_R")
        field("top_k")[:], field("index")[:] = params.top_k_R, params.index_R
        seed_R2 = np.asarray(params.seed_R2, np.uint32).view(np.int32)
        field("seed_high")[:], field("seed_low")[:] = seed_R2[:, 0], seed_R2[:, 1]
    return control


def run_step(
    model: Gemma3, kv, last_X, control, extra, *, shape: StepShape, window: int, vocab: int
) -> tuple[StepOutput, tuple, jax.Array]:
    """Return (output, kv with the step stored, last_X): what the step's program computes.

    last_X: the token each ring drew last, and one more entry that padding rows write. `extra` holds what only some
    steps have: see `StepExtra`.
    """
    at = {name: control[where].reshape(dims) for name, (where, dims) in layout(shape)[0].items()}
    parts = [part for part in ("decode", "prefill") if f"{part}_ids" in at]
    ids, positions, rings, pages, slots = [], [], [], [], []
    for part in parts:
        start_R, count_R, ring_R = (at[f"{part}_{name}"] for name in ("start", "count", "ring"))
        ids_RC = at[f"{part}_ids"]
        ids.append(jnp.where(ids_RC == FROM_DEVICE, last_X[ring_R][:, None], ids_RC).reshape(-1))
        positions.append((start_R[:, None] + jnp.arange(ids_RC.shape[1])).reshape(-1))
        see = at["prefill_see"] if shape.soft and part == "prefill" else None
        told = {} if see is None else {"see_RC": see}
        rings.append(RingPlan(start_R, count_R, ring_R, window, **told))
        pages.append(PagePlan(start_R, count_R, at[f"{part}_table"], **told))
        slots.append(jnp.repeat(at[f"{part}_slot"], ids_RC.shape[1], total_repeat_length=ids_RC.size))
    tokens = tuple(int(part_ids.shape[0]) for part_ids in ids)
    plans = [plan[0] if len(parts) == 1 else PartsPlan(tuple(plan), tokens) for plan in (rings, pages)]
    decoded = shape.rows * shape.columns
    soft = _behind(decoded, extra.soft) if shape.soft else None
    local, global_ = plans
    adapter_T = jnp.concatenate(slots)
    batch = Batch(jnp.concatenate(ids), jnp.concatenate(positions), local, global_, soft=soft, adapter_T=adapter_T)
    h_TD, kv = model(batch, kv, extra.adapters if shape.adapters else None)
    h_PD = h_TD[decoded:]
    h_SD = h_TD[:decoded]
    if shape.chunk:
        end = jnp.maximum(at["prefill_count"] - 1, 0)
        h_SD = jnp.concatenate([h_SD, jnp.take(h_PD, end, axis=0, mode="clip")])
    drawn_S = _draw(model, h_SD, at, vocab)
    return StepOutput(drawn_S, h_SD, h_PD), kv, _note_last(last_X, drawn_S, at, shape)


class StepExtra(eqx.Module):
    """What only some steps have: embeddings for tokens of the chunk (index_P), and the adapters' matrices."""

    soft: SoftTokens | None = None
    adapters: Adapters | None = None


def _behind(decoded: int, soft: SoftTokens) -> SoftTokens:
    """Return the soft tokens of a step whose chunk comes after `decoded` tokens."""
    return SoftTokens(soft.rows_SD, jnp.concatenate([jnp.full(decoded, -1, jnp.int32), soft.index_T]))


def _draw(model: Gemma3, h_SD: jax.Array, at: dict[str, jax.Array], vocab: int) -> jax.Array:
    """Return the drawn ids, or zeros without reading the head where nothing is to be drawn."""
    floats = {name: jax.lax.bitcast_convert_type(at[name], jnp.float32) for name in _FLOATS}
    seed_S2 = jax.lax.bitcast_convert_type(jnp.stack([at["seed_high"], at["seed_low"]], axis=1), jnp.uint32)
    params = SampleParams(
        temperature_R=floats["temperature"],
        top_k_R=at["top_k"],
        top_p_R=floats["top_p"],
        min_p_R=floats["min_p"],
        seed_R2=seed_S2,
        index_R=at["index"],
    )
    head = model.embed.weight if model.head is None else model.head.weight
    return jax.lax.cond(
        at["draw"] != 0,
        lambda: fast_choice(head, h_SD, params, vocab=vocab).astype(jnp.int32),
        lambda: jnp.zeros(h_SD.shape[0], jnp.int32),
    )


def _note_last(last_X: jax.Array, drawn_S: jax.Array, at: dict[str, jax.Array], shape: StepShape) -> jax.Array:
    """Return last_X with each real row's draw after its last token; padding rows write the entry that nobody reads."""
    R, C = shape.rows, shape.columns
    nobody = last_X.shape[0] - 1
    if R:
        count_R = at["decode_count"]
        drawn_R = jnp.take_along_axis(drawn_S[: R * C].reshape(R, C), jnp.maximum(count_R - 1, 0)[:, None], axis=1)
        last_X = last_X.at[jnp.where(count_R > 0, at["decode_ring"], nobody)].set(drawn_R[:, 0])
    if shape.chunk:
        last_X = last_X.at[at["prefill_ring"]].set(drawn_S[-1:])
    return last_X
