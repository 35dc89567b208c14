"""Turns hidden states into the next token of each row, and keeps each request's side of it: a `RowSampler`.

Two programs draw, and for the same seed both draw the same token:

    fast_choice   inside a decode step: rows that are greedy or have 0 < top_k <= SHORT_LIST, and ask for nothing else
    full_choice   after a step, from its hidden states: penalties, bias, masks, log-probabilities, any top_k

Rows that ask for a mask and nothing else have cheaper ones (draws.py).

Penalties travel as short lists of the ids they concern, not as rows of the vocabulary: 13 bytes an id.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemworks import ops
from gemworks.engine.types import MAX_TOP_LOGPROBS, SamplingParams, TokenLogprob
from gemworks.errors import RequestError
from gemworks.ops.sampling import SHORT_LIST, Penalties, SampleParams, allowed, mask_words
from gemworks.ops.weight import Weight

# R and S rows, V vocabulary rows, D model width, P penalized ids of a row with padding, W words of a mask, n likeliest

# Ids that penalties may concern in one row: most prompts and answers, any text. A program each; 53 KB a row and step at
# 4,096.
_PENALTY_WIDTHS = (4096,)
# Not an id of any vocabulary: place i of a penalty list that holds none has this + i, so that no two are equal.
_NO_ID = 2**30
# Far from where a sum of logit and bias overflows fp32.
_LARGEST_BIAS = 1e30

# One row of numbers as `SampleParams` takes them, but for the index.
_ROW = np.dtype(
    [("temperature", "f4"), ("top_k", "i4"), ("top_p", "f4"), ("min_p", "f4"), ("seed", "u4", 2)], align=False
)
_GREEDY = np.array([(0.0, 1, 1.0, 0.0, (0, 0))], _ROW).tobytes()


class RowSampler:
    """How one answer draws: parameters, seed, answer tokens so far, and what its penalties have counted.

    answer: which of a request's n; it draws with seed + answer. Without a seed a fresh one is made and kept. `mask` is
    the request's hook (engine/types.py).

    needs_full   its rows are drawn apart from the step (draws.py)
    is_plain     penalties and log-probabilities play no part
    is_short     greedy, or 0 < top_k <= SHORT_LIST
    needs_host   a draw depends on the tokens before it beyond the logits: known on the host before it is launched
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Iterable[int],
        *,
        vocab: int,
        answer: int = 0,
        mask: Callable[[list[int]], Any] | None = None,
    ):
        self.params = params
        self.vocab = vocab
        self.index = 0
        self.mask = mask
        self.seed = params.seed + answer if params.seed is not None else secrets.randbits(63)
        counted = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)
        self.penalized = counted or bool(params.logit_bias)
        self.needs_host = self.penalized or mask is not None
        self.is_plain = not (self.penalized or params.logprobs)
        self.is_short = params.temperature == 0 or 0 < params.top_k <= SHORT_LIST
        self.needs_full = self.needs_host or params.logprobs or not self.is_short
        seed_2 = (self.seed >> 32, self.seed & 0xFFFFFFFF)
        row = (params.temperature, min(params.top_k, vocab), params.top_p, params.min_p, seed_2)
        self.row = np.array([row], _ROW).tobytes()
        self._counts = counted
        self.penalties = _PenaltyList(vocab)
        if not self.penalized:
            return
        for token_id, bias in params.logit_bias.items():
            if not 0 <= token_id < vocab:
                raise RequestError(f"logit_bias names token {token_id}; this model's tokens are 0 to {vocab - 1}.")
            if not abs(bias) <= _LARGEST_BIAS:
                raise RequestError(
                    f"logit_bias of token {token_id} must be between -1e30 and 1e30, got {bias}.\n"
                    f"-100 forbids a token and 100 forces it."
                )
            place = self.penalties.place(token_id)
            self.penalties.bias_P[place] = bias
        if params.repetition_penalty != 1.0:
            for token_id in dict.fromkeys(prompt):
                if token_id < vocab:
                    place = self.penalties.place(token_id)
                    self.penalties.seen_P[place] = True

    def note(self, token_id: int) -> None:
        """Count an answer token."""
        self.index += 1
        if self._counts:
            place = self.penalties.place(token_id)
            self.penalties.seen_P[place] = True
            self.penalties.count_P[place] += 1

    def mask_words(self, answer: list[int]) -> np.ndarray | None:
        """Return what the mask allows after these answer tokens, uint32 words; None: everything.

        Raises RequestError where that is no token of the vocabulary, or no mask at all.
        """
        words = None if self.mask is None else self.mask(answer)
        if words is None:
            return None
        words = np.asarray(words)
        if words.ndim != 1 or words.dtype.kind not in "iu" or words.dtype.itemsize != 4:
            raise RequestError(
                f"a mask must be one row of 32-bit words or None, got {words.dtype} of shape {words.shape}.\n"
                f"Bit i % 32 of word i // 32 allows id i."
            )
        width = mask_words(self.vocab)
        full = np.zeros(width, np.uint32)
        full[: len(words)] = words[:width].view(np.uint32)
        if self.vocab % 32:
            full[-1] &= (1 << self.vocab % 32) - 1
        if not full.any():
            raise RequestError(
                f"the mask allows no token after {len(answer)} answer tokens; it must allow one of 0 to "
                f"{self.vocab - 1}.\nA grammar that is complete must allow a stop id."
            )
        return full


class _PenaltyList:
    """Ids that a row's penalties concern, each once, in arrays of a fixed width that grows when they are full."""

    def __init__(self, vocab: int):
        self._widths = penalty_widths(vocab)
        self._places: dict[int, int] = {}
        self.ids_P = np.zeros(0, np.int32)
        self.seen_P = np.zeros(0, bool)
        self.count_P = np.zeros(0, np.int32)
        self.bias_P = np.zeros(0, np.float32)

    def place(self, token_id: int) -> int:
        """Return where `token_id` is, or now is."""
        place = self._places.get(token_id)
        if place is None:
            place = self._places[token_id] = len(self._places)
            if place >= len(self.ids_P):
                self._grow(next(width for width in self._widths if width > place))
            self.ids_P[place] = token_id
        return place

    def _grow(self, width: int) -> None:
        self.ids_P = np.concatenate([self.ids_P, _NO_ID + np.arange(len(self.ids_P), width, dtype=np.int32)])
        for name in ("seen_P", "count_P", "bias_P"):
            grown = np.zeros(width, getattr(self, name).dtype)
            grown[: len(getattr(self, name))] = getattr(self, name)
            setattr(self, name, grown)


@cache
def penalty_widths(vocab: int) -> tuple[int, ...]:
    """Return every P that `row_penalties` may give, ascending."""
    return tuple(sorted({min(width, vocab) for width in (*_PENALTY_WIDTHS, vocab)}))


def row_params(samplers: Sequence[RowSampler | None], offsets: Sequence[int] | None = None) -> SampleParams:
    """Return the numbers of S rows: row s draws its sampler's answer token index + offsets[s] (0 where not given).

    A request whose draft is verified has several rows in one step, one an offset. None: a padding row, or one that is
    drawn elsewhere; it is greedy and costs nothing. Measured: 16 rows in 0.02 ms.
    """
    rows = np.frombuffer(b"".join([_GREEDY if s is None else s.row for s in samplers]), _ROW)
    index = [0 if s is None else s.index for s in samplers]
    index_S = np.array(index, np.int32)
    if offsets is not None:
        index_S += np.array(offsets, np.int32)
    return SampleParams(
        temperature_R=rows["temperature"].copy(),
        top_k_R=rows["top_k"].copy(),
        top_p_R=rows["top_p"].copy(),
        min_p_R=rows["min_p"].copy(),
        seed_R2=rows["seed"].copy(),
        index_R=index_S,
    )


def row_penalties(samplers: Sequence[RowSampler | None], *, vocab: int, width: int = 0) -> Penalties:
    """Return the penalty lists of R rows, one of `penalty_widths` wide; rows without penalties have neutral ones.

    width: at least so wide.
    """
    R = len(samplers)
    width = max([width, penalty_widths(vocab)[0], *(len(s.penalties.ids_P) for s in samplers if s is not None)])
    out = Penalties(
        repetition_R=np.ones(R, np.float32),
        presence_R=np.zeros(R, np.float32),
        frequency_R=np.zeros(R, np.float32),
        ids_RP=np.broadcast_to(_NO_ID + np.arange(width, dtype=np.int32), (R, width)).copy(),
        seen_RP=np.zeros((R, width), bool),
        count_RP=np.zeros((R, width), np.int32),
        bias_RP=np.zeros((R, width), np.float32),
    )
    for r, sampler in enumerate(samplers):
        if sampler is None or not sampler.penalized:
            continue
        own, held = sampler.penalties, len(sampler.penalties.ids_P)
        out.repetition_R[r] = sampler.params.repetition_penalty
        out.presence_R[r] = sampler.params.presence_penalty
        out.frequency_R[r] = sampler.params.frequency_penalty
        out.ids_RP[r, :held], out.seen_RP[r, :held] = own.ids_P, own.seen_P
        out.count_RP[r, :held], out.bias_RP[r, :held] = own.count_P, own.bias_P
    return out


def row_masks(words: Sequence[np.ndarray | None], *, vocab: int) -> np.ndarray:
    """Return mask_RW of what `RowSampler.mask_words` gave for each row; None allows everything."""
    mask_RW = np.full((len(words), mask_words(vocab)), 0xFFFFFFFF, np.uint32)
    for r, words_W in enumerate(words):
        if words_W is not None:
            mask_RW[r] = words_W
    return mask_RW


def fast_choice(head_VD: Weight, h_SD: jax.Array, params: SampleParams, *, vocab: int) -> jax.Array:
    """Return ids_S drawn from hidden states, inside a compiled step. Rows are greedy or have 0 < top_k <= SHORT_LIST.

    Ids from `vocab` on have embedding rows but no meaning, and are never chosen. Where every row is greedy, only the
    largest logit is looked for: of a 262,144 x 640 int8 head on two AVX-512 cores that takes 6.4 ms for one row and
    11.3 for four; the largest SHORT_LIST and a draw take 6.7 and 12.2.
    """

    def best() -> jax.Array:
        return ops.head_top(h_SD, head_VD, vocab=vocab, top=1, with_total=False)[1][:, 0]

    def drawn() -> jax.Array:
        values_SQ, ids_SQ, _ = ops.head_top(h_SD, head_VD, vocab=vocab, top=SHORT_LIST, with_total=False)
        return ops.draw(values_SQ, ids_SQ, params)

    return jax.lax.cond(jnp.all(jnp.asarray(params.temperature_R) == 0.0), best, drawn)


def full_choice(
    head_VD: Weight, h_RD: jax.Array, params: SampleParams, penalties: Penalties, mask_RW: jax.Array, *, vocab: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return (ids_R, logprob_R, top_values_Rn, top_ids_Rn): everything that a row can ask for.

    Log-probabilities are natural logs from the raw logits, before penalties, mask and temperature; n is
    MAX_TOP_LOGPROBS, or `vocab` where that is smaller. A row with a short list draws what `fast_choice` draws. One
    program for each R and each of `penalty_widths`.
    """
    raw_RV = ops.linear(h_RD, head_VD)[:, :vocab]
    logits_RV = jnp.where(allowed(mask_RW, vocab), ops.penalize(raw_RV, penalties), -jnp.inf)
    temperature_R, top_k_R = jnp.asarray(params.temperature_R), jnp.asarray(params.top_k_R)
    is_short_R = (temperature_R == 0.0) | ((top_k_R > 0) & (top_k_R <= SHORT_LIST))
    short_R = ops.sample(logits_RV, params, short=True)

    def with_long() -> jax.Array:
        return jnp.where(is_short_R, short_R, ops.sample(logits_RV, params, short=False))

    ids_R = jax.lax.cond(jnp.all(is_short_R), lambda: short_R, with_long)
    return ids_R, *ops.top_logprobs(raw_RV, ids_R, top=min(MAX_TOP_LOGPROBS, vocab))


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One row's choice; `logprob` only where it was asked for."""

    token_id: int
    logprob: TokenLogprob | None


def full_arguments(
    samplers: Sequence[RowSampler | None], masks: Sequence[np.ndarray | None], *, vocab: int, width: int = 0
) -> tuple[SampleParams, Penalties, np.ndarray]:
    """Return what `full_choice` takes after the hidden states, for R rows of which some may be padding (None).

    masks: what `RowSampler.mask_words` gave for each row.
    """
    return row_params(samplers), row_penalties(samplers, vocab=vocab, width=width), row_masks(masks, vocab=vocab)


def read_full(samplers: Sequence[RowSampler | None], ids_R, logprob_R, values_Rn, ids_Rn) -> list[SampleResult]:
    """Return what `full_choice` computed, row by row, as each asked for it; rows after the samplers are padding."""
    ids_R, logprob_R, values_Rn, ids_Rn = (np.asarray(x) for x in (ids_R, logprob_R, values_Rn, ids_Rn))
    results = []
    for r, sampler in enumerate(samplers):
        told = None
        if sampler is not None and sampler.params.logprobs:
            top = sampler.params.top_logprobs
            best = tuple(zip(ids_Rn[r, :top].tolist(), values_Rn[r, :top].tolist(), strict=True))
            told = TokenLogprob(int(ids_R[r]), float(logprob_R[r]), best)
        results.append(SampleResult(int(ids_R[r]), told))
    return results


@partial(jax.jit, static_argnames=("vocab", "top"))
def score_tokens(head_VD, h_SD, ids_S, *, vocab: int, top: int):
    """Return (logprob_S, top_values_Sn, top_ids_Sn) of the ids under the hidden states before them, n = max(top, 1)."""
    return ops.top_logprobs(ops.linear(h_SD, head_VD)[:, :vocab], ids_S, top=top)
