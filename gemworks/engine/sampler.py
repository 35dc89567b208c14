"""Turns hidden states into the next token of each row: one compiled program from head to drawn id.

A `RowSampler` is a request's side of it: its parameters, its seed and what its penalties have counted so far.
"""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gemworks import ops
from gemworks.engine.types import SamplingParams, TokenLogprob
from gemworks.errors import RequestError
from gemworks.ops.sampling import SHORT_LIST, Penalties, SampleParams

# R rows, V vocabulary rows, D model width


@dataclass(frozen=True, slots=True)
class SampleResult:
    """One row's choice; `logprob` only where it was asked for."""

    token_id: int
    logprob: TokenLogprob | None


class RowSampler:
    """How one request draws: parameters, seed, answer tokens so far, and penalty counts over the first `vocab` ids."""

    def __init__(self, params: SamplingParams, prompt: Iterable[int], *, vocab: int):
        self.params = params
        self.vocab = vocab
        self.index = 0
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        self.seed_2 = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)
        self.penalized = bool(params.logit_bias) or (
            (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)
        )
        if not self.penalized:
            return
        for token_id in params.logit_bias:
            if not 0 <= token_id < vocab:
                raise RequestError(f"logit_bias names token {token_id}; this model's tokens are 0 to {vocab - 1}.")
        self.seen_V = np.zeros(vocab, bool)
        self.seen_V[[i for i in prompt if i < vocab]] = True
        self.count_V = np.zeros(vocab, np.int32)
        self.bias_V = np.zeros(vocab, np.float32)
        self.bias_V[list(params.logit_bias)] = list(params.logit_bias.values())

    def note(self, token_id: int) -> None:
        """Count an answer token."""
        self.index += 1
        if self.penalized:
            self.seen_V[token_id] = True
            self.count_V[token_id] += 1


@dataclass(frozen=True, slots=True)
class ChooseCall:
    """The arguments of one call of `choose`: arrays, and what is compiled into the program."""

    params: SampleParams | None  # None: every row is greedy
    penalties: Penalties | None
    vocab: int
    short: bool
    top: int | None  # None: no row wants log-probabilities

    @property
    def key(self) -> tuple:
        """What a program is compiled for, next to the number of rows."""
        return (self.params is None, self.penalties is None, self.vocab, self.short, self.top)


def choose_call(samplers: Sequence[RowSampler]) -> ChooseCall:
    """Return the call that draws the next token of every row. All samplers have the same `vocab`."""
    asked = [s.params for s in samplers]
    drawn = [p for p in asked if p.temperature > 0]
    return ChooseCall(
        params=_sample_params(samplers) if drawn else None,
        penalties=_penalties(samplers) if any(s.penalized for s in samplers) else None,
        vocab=samplers[0].vocab,
        short=all(0 < p.top_k <= SHORT_LIST for p in drawn),
        top=max((p.top_logprobs for p in asked if p.logprobs), default=None),
    )


def read_choice(samplers: Sequence[RowSampler], ids_R, logprob) -> list[SampleResult]:
    """Return what `choose` computed, row by row, as each asked for it."""
    ids_R = np.asarray(ids_R)
    if logprob is None:
        return [SampleResult(int(i), None) for i in ids_R]
    chosen_R, values_Rn, ids_Rn = (np.asarray(x) for x in logprob)
    results = []
    for r, params in enumerate(s.params for s in samplers):
        best = tuple((int(i), float(v)) for i, v in zip(ids_Rn[r], values_Rn[r], strict=True))[: params.top_logprobs]
        told = TokenLogprob(int(ids_R[r]), float(chosen_R[r]), best) if params.logprobs else None
        results.append(SampleResult(int(ids_R[r]), told))
    return results


@partial(jax.jit, static_argnames=("vocab", "short", "top"))
def choose(head_VD, h_RD, params, penalties, *, vocab: int, short: bool, top: int | None):
    """Return (ids_R, top_logprobs or None) from hidden states: head, penalties, filters and draw in one program.

    Ids from `vocab` on have embedding rows but no meaning, and are never chosen.
    """
    if penalties is None and (params is None or short):
        return _choose_from_top(head_VD, h_RD, params, vocab=vocab, top=top)
    raw_RV = ops.linear(h_RD, head_VD)[:, :vocab]
    logits_RV = raw_RV if penalties is None else ops.penalize(raw_RV, penalties)
    if params is None:
        ids_R = jnp.argmax(logits_RV, axis=-1).astype(jnp.int32)
    else:
        ids_R = ops.sample(logits_RV, params, short=short)
    return ids_R, None if top is None else ops.top_logprobs(raw_RV, ids_R, top=top)


def _choose_from_top(head_VD, h_RD, params, *, vocab: int, top: int | None):
    """`choose` where the largest few logits are enough: the rest need not be kept."""
    few = max(1 if params is None else SHORT_LIST, top or 1)
    values_RQ, ids_RQ, log_total_R = ops.head_top(h_RD, head_VD, vocab=vocab, top=few, with_total=top is not None)
    ids_R = ids_RQ[:, 0] if params is None else ops.draw(values_RQ, ids_RQ, params)
    if top is None:
        return ids_R, None
    chosen_R = jnp.sum(jnp.where(ids_RQ == ids_R[:, None], values_RQ, 0.0), axis=1)
    best = max(top, 1)
    return ids_R, (chosen_R - log_total_R, (values_RQ - log_total_R[:, None])[:, :best], ids_RQ[:, :best])


@partial(jax.jit, static_argnames=("vocab", "top"))
def score_tokens(head_VD, h_SD, ids_S, *, vocab: int, top: int):
    """Return ops.top_logprobs of the given ids under the hidden states before them: prompt log-probabilities."""
    return ops.top_logprobs(ops.linear(h_SD, head_VD)[:, :vocab], ids_S, top=top)


def _sample_params(samplers: Sequence[RowSampler]) -> SampleParams:
    asked = [s.params for s in samplers]
    return SampleParams(
        temperature_R=np.array([p.temperature for p in asked], np.float32),
        top_k_R=np.array([p.top_k for p in asked], np.int32),
        top_p_R=np.array([p.top_p for p in asked], np.float32),
        min_p_R=np.array([p.min_p for p in asked], np.float32),
        seed_R2=np.stack([s.seed_2 for s in samplers]),
        index_R=np.array([s.index for s in samplers], np.int32),
    )


def _penalties(samplers: Sequence[RowSampler]) -> Penalties:
    """Stack the counts; a row without penalties gets neutral ones."""
    V = samplers[0].vocab
    asked = [s.params for s in samplers]
    return Penalties(
        repetition_R=np.array([p.repetition_penalty for p in asked], np.float32),
        presence_R=np.array([p.presence_penalty for p in asked], np.float32),
        frequency_R=np.array([p.frequency_penalty for p in asked], np.float32),
        seen_RV=np.stack([s.seen_V if s.penalized else np.zeros(V, bool) for s in samplers]),
        count_RV=np.stack([s.count_V if s.penalized else np.zeros(V, np.int32) for s in samplers]),
        bias_RV=np.stack([s.bias_V if s.penalized else np.zeros(V, np.float32) for s in samplers]),
    )
