"""Draws of rows that ask for more than a step's program does: which program each row needs, and its results.

    forced   the mask allows one token: nothing is computed
    few      the mask allows at most FEW: the head's rows of those, and no other
    masked   a mask and 0 < top_k <= SHORT_LIST or greedy: the head, and its largest that are allowed
    full     penalties, log-probabilities, long lists (sampler.full_choice)

A row's program depends on what it asks and on its own mask, never on who is drawn beside it. Of 960 tokens drawn at
random in the eight schemas of bench/grammar 28 % were forced, 46 % few and 26 % masked: names of properties,
punctuation, digits and words of an enum do not read the head.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gemworks import ops
from gemworks.engine.sampler import (
    RowSampler,
    SampleResult,
    full_arguments,
    full_choice,
    penalty_widths,
    read_full,
    row_masks,
    row_params,
)
from gemworks.engine.shapes import draw_sizes, few_sizes
from gemworks.ops.kv import Array
from gemworks.ops.sampling import SHORT_LIST, SampleParams
from gemworks.ops.weight import Weight

# R rows, D model width, Q candidates, V vocabulary rows, W words of a mask

# Tokens looked up one by one: enough for digits, punctuation and enums, and 64 rows of a table of 262,144.
FEW = 64

# A column of `few_choice` that holds no token.
_NO_ID = -1


class Draws:
    """Draws from hidden states with one head, of at most `most` rows.

    programs: compiles or finds a program, as `Runner._program` does.
    """

    def __init__(self, head: Weight, *, vocab: int, most: int):
        self._head, self._vocab, self._most = head, vocab, most

    def warm_up(self, programs: Callable, model_dim: int) -> list[Callable[[], object]]:
        """Return what makes every program, one call each."""
        empty_D = np.zeros((0, model_dim), np.float32)
        sizes = draw_sizes(self._most)
        jobs: list[Callable[[], object]] = [
            lambda R=R, width=width: self._full(programs, empty_D, [], [], rows=R, width=width)
            for R in sizes
            for width in penalty_widths(self._vocab)
        ]
        jobs += [lambda R=R: self._masked(programs, empty_D, [], [], rows=R) for R in sizes]
        jobs += [lambda R=R: self._few(programs, empty_D, [], [], rows=R) for R in few_sizes(self._most)]
        return jobs

    def __call__(
        self, programs: Callable, h_RD: np.ndarray, samplers: Sequence[RowSampler], masks: Sequence[np.ndarray | None]
    ) -> list[SampleResult]:
        """Return what each row draws; masks as `RowSampler.mask_words` gave them."""
        results: list[SampleResult | None] = [None] * len(samplers)
        allowed = [
            allowed_ids(mask) if sampler.is_plain else None for sampler, mask in zip(samplers, masks, strict=True)
        ]
        few, masked, full = [], [], []
        for i, (sampler, ids) in enumerate(zip(samplers, allowed, strict=True)):
            if ids is not None and len(ids) == 1:
                results[i] = SampleResult(int(ids[0]), None)
            elif ids is not None:
                few.append(i)
            else:
                (masked if masks[i] is not None and sampler.is_plain and sampler.is_short else full).append(i)
        # All are begun before one is read.
        begun = [
            (which, draw(programs, h_RD[which], [samplers[i] for i in which], [told[i] for i in which]))
            for which, draw, told in ((few, self._few, allowed), (masked, self._masked, masks))
            if which
        ]
        if full:
            drawn = self._full(programs, h_RD[full], [samplers[i] for i in full], [masks[i] for i in full])
            for i, result in zip(full, drawn, strict=True):
                results[i] = result
        for which, ids_R in begun:
            for i, token_id in zip(which, np.asarray(ids_R).tolist(), strict=False):  # rows behind them are padding
                results[i] = SampleResult(token_id, None)
        return [result for result in results if result is not None]

    def _few(self, programs, h_RD: np.ndarray, samplers: list[RowSampler], ids: list, *, rows: int = 0) -> jax.Array:
        R, h_RD = _padded(h_RD, few_sizes(self._most), rows)
        ids_RQ = np.full((R, FEW), _NO_ID, np.int32)
        for r, own in enumerate(ids):
            ids_RQ[r, : len(own)] = own
        params = row_params([*samplers, *[None] * (R - len(samplers))])
        return self._run(programs, "few", few_choice, (h_RD, params, ids_RQ))

    def _masked(
        self, programs, h_RD: np.ndarray, samplers: list[RowSampler], masks: list, *, rows: int = 0
    ) -> jax.Array:
        R, h_RD = _padded(h_RD, draw_sizes(self._most), rows)
        padding = [None] * (R - len(samplers))
        told = row_params([*samplers, *padding]), row_masks([*masks, *padding], vocab=self._vocab)
        return self._run(programs, "masked", masked_choice, (h_RD, *told), vocab=self._vocab)

    def _full(
        self, programs, h_RD: np.ndarray, samplers: list[RowSampler], masks: list, *, rows: int = 0, width: int = 0
    ) -> list[SampleResult]:
        R, h_RD = _padded(h_RD, draw_sizes(self._most), rows)
        padding = [None] * (R - len(samplers))
        told = full_arguments([*samplers, *padding], [*masks, *padding], vocab=self._vocab, width=width)
        return read_full(samplers, *self._run(programs, "draw", full_choice, (h_RD, *told), vocab=self._vocab))

    def _run(self, programs: Callable, kind: str, choice: Callable, told: tuple, **static):
        arguments, structure = jax.tree.flatten((self._head, *told))

        def flat(arguments):
            return choice(*jax.tree.unflatten(structure, arguments), **static)

        key = (kind, tuple(np.shape(one) for one in jax.tree.leaves(told)), self._vocab, structure)
        return programs(key, flat, (arguments,))(arguments)


def allowed_ids(words_W: np.ndarray | None) -> np.ndarray | None:
    """Return the ids that a mask allows, ascending; None where they are more than FEW, or all."""
    if words_W is None:
        return None
    at = np.flatnonzero(words_W)
    if len(at) > FEW:
        return None
    bits = np.unpackbits(words_W[at].astype("<u4").view(np.uint8), bitorder="little").reshape(len(at), 32)
    word, bit = np.nonzero(bits)
    return (at[word] * 32 + bit).astype(np.int32) if len(word) <= FEW else None


def few_choice(head_VD: Weight, h_RD: jax.Array, params: SampleParams, ids_RQ: jax.Array) -> jax.Array:
    """Return ids_R drawn among ids_RQ alone, ascending in each row; _NO_ID is none. Any top_k; products in fp32."""
    R, Q = ids_RQ.shape
    rows_RQD = ops.embed(ids_RQ.reshape(-1), head_VD, scale=1.0).reshape(R, Q, -1)
    logits_RQ = jnp.einsum("rd,rqd->rq", h_RD.astype(jnp.float32), rows_RQD, precision="highest")
    values_RQ, order_RQ = jax.lax.top_k(jnp.where(ids_RQ == _NO_ID, -jnp.inf, logits_RQ), Q)
    return ops.draw(values_RQ, jnp.take_along_axis(ids_RQ, order_RQ, axis=1), params)


def masked_choice(head_VD: Weight, h_RD: jax.Array, params: SampleParams, mask_RW: Array, *, vocab: int) -> jax.Array:
    """Return ids_R drawn among what a mask allows; rows are greedy or have 0 < top_k <= SHORT_LIST."""
    logits_RV = ops.linear(h_RD, head_VD)
    return ops.draw(*masked_top(logits_RV, mask_RW, vocab=vocab, top=SHORT_LIST), params)


def masked_top(logits_RV: jax.Array, mask_RW: Array, *, vocab: int, top: int) -> tuple[jax.Array, jax.Array]:
    """Return (values_RQ, ids_RQ) of the Q = min(top, vocab) largest logits that a mask allows, best first.

    Equal ones: lower id first. Where it allows fewer, the rest are -inf. The `top` largest lie in the `top` words of 32
    ids whose largest are largest, so one pass finds the words and little is sorted.
    """
    R, V = logits_RV.shape
    W = mask_RW.shape[1]
    if W * 32 != V:
        logits_RV = jnp.pad(logits_RV[:, : min(V, W * 32)], ((0, 0), (0, max(0, W * 32 - V))))
    logits_RWb = logits_RV.reshape(R, W, 32)

    def allowed(logits, words):
        bits = words[..., None] >> jnp.arange(32, dtype=jnp.uint32) & 1
        return jnp.where(bits == 1, logits, -jnp.inf)

    mask_RW = jnp.asarray(mask_RW)
    best_RW = jnp.max(allowed(logits_RWb, mask_RW), axis=-1)
    at_Rn = jnp.sort(jax.lax.top_k(best_RW, min(top, W))[1], axis=1)
    words_Rn = jnp.take_along_axis(mask_RW, at_Rn, axis=1)
    found_RC = allowed(jnp.take_along_axis(logits_RWb, at_Rn[:, :, None], axis=1), words_Rn).reshape(R, -1)
    values_RQ, place_RQ = jax.lax.top_k(found_RC, min(top, vocab))
    return values_RQ, jnp.take_along_axis(at_Rn, place_RQ // 32, axis=1) * 32 + place_RQ % 32


def _padded(h_RD: np.ndarray, sizes: Sequence[int], rows: int) -> tuple[int, np.ndarray]:
    """Return the next of the sizes, and the states with empty rows up to it."""
    R = next(size for size in sizes if size >= max(len(h_RD), rows))
    return R, np.concatenate([h_RD, np.zeros((R - len(h_RD), h_RD.shape[1]), h_RD.dtype)])
