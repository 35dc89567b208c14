"""Sampling filters and penalties against transformers' own logits processors, in their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gemworks.engine.sampler import RowSampler, row_penalties
from gemworks.engine.types import SamplingParams
from gemworks.ops.sampling import SHORT_LIST, SampleParams
from gemworks.ops.xla.sample import candidates, penalize

V = 3000
CASES = [
    {"temperature": 1.0, "top_k": 64, "top_p": 0.95},
    {"temperature": 0.7, "top_k": 0, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 100, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 128, "top_p": 0.5, "min_p": 0.1},
    {"temperature": 0.3, "top_k": 1, "top_p": 0.01},
]


def theirs(logits: np.ndarray, *, temperature, top_k, top_p, min_p=0.0) -> np.ndarray:
    """Return their probabilities."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    scores = warpers(torch.zeros(len(logits), 1, dtype=torch.long), torch.from_numpy(logits))
    return torch.softmax(scores, dim=-1).numpy()


def ours(logits: np.ndarray, *, temperature, top_k, top_p, min_p=0.0, short: bool) -> np.ndarray:
    R = len(logits)
    params = SampleParams(
        jnp.full(R, temperature, jnp.float32),
        jnp.full(R, top_k, jnp.int32),
        jnp.full(R, top_p, jnp.float32),
        jnp.full(R, min_p, jnp.float32),
        jnp.zeros((R, 2), jnp.uint32),
        jnp.zeros(R, jnp.int32),
    )
    values, ids = jax.lax.top_k(jnp.asarray(logits), min(SHORT_LIST, V) if short else V)
    probs, ids = np.asarray(candidates(values, params)), np.asarray(ids)
    full = np.zeros_like(logits)
    np.put_along_axis(full, ids, probs / probs.sum(-1, keepdims=True), axis=1)
    return full


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_same_tokens_survive_with_the_same_probability(case, spread):
    logits = np.random.default_rng(int(10 * spread)).normal(0, spread, (50, V)).astype(np.float32)
    expected = theirs(logits, **case)
    for short in {False, 0 < case["top_k"] <= 128}:
        got = ours(logits, **case, short=short)
        # A token exactly on the edge of top-p may fall either way by rounding: at most one a row, and only there.
        differing = (got > 0) != (expected > 0)
        assert differing.sum() <= 1
        rows = ~differing.any(-1)
        np.testing.assert_allclose(got[rows], expected[rows], atol=2e-6)


@pytest.mark.parametrize("penalty", [0.6, 1.3])
def test_repetition_penalty(penalty):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (4, V)).astype(np.float32)
    seen = rng.integers(0, V, (4, 30))  # with repeats
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    expected = theirs(torch.from_numpy(seen), torch.from_numpy(logits.copy())).numpy()
    asked = SamplingParams(repetition_penalty=penalty)
    lists = row_penalties([RowSampler(asked, row.tolist(), vocab=V) for row in seen], vocab=V)
    np.testing.assert_allclose(penalize(jnp.asarray(logits), lists), expected, rtol=1e-6)


def test_bias_after_repetition_penalty():
    """In their order: the penalty scales the logit, the bias (their SequenceBias of one token) is added to that."""
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (2, V)).astype(np.float32)
    seen = rng.integers(0, V, (2, 600))
    bias = {int(i): float(rng.normal(0, 3)) for i in (*seen[0, :20], *rng.integers(0, V, 20))}
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.7),
            SequenceBiasLogitsProcessor([[[i], value] for i, value in bias.items()]),
        ]
    )
    expected = processors(torch.from_numpy(seen), torch.from_numpy(logits.copy())).numpy()
    asked = SamplingParams(repetition_penalty=1.7, logit_bias=bias)
    lists = row_penalties([RowSampler(asked, row.tolist(), vocab=V) for row in seen], vocab=V)
    assert lists.ids_RP.shape == (2, V)  # more than 512 ids: the next width
    np.testing.assert_allclose(penalize(jnp.asarray(logits), lists), expected, rtol=1e-5, atol=1e-6)
