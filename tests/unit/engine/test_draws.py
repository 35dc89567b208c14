"""Draws apart from a step: each row by its cheapest program, and the token that the one for everything draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks.engine.draws import FEW, Draws, allowed_ids, masked_top
from gemworks.engine.sampler import RowSampler, full_arguments, full_choice, read_full
from gemworks.engine.types import SamplingParams
from gemworks.ops.sampling import SHORT_LIST, mask_words

D = 16


@functools.cache
def head(vocab: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(0, 0.6, (vocab + 9, D)), jnp.float32)


def words_of(ids, vocab: int) -> np.ndarray:
    bits = np.zeros(mask_words(vocab) * 32, bool)
    bits[list(ids)] = True
    return np.packbits(bits, bitorder="little").view(np.uint32)


@functools.cache
def everything(vocab: int):
    return jax.jit(functools.partial(full_choice, vocab=vocab))


def by_everything(h_RD, samplers, masks, vocab: int) -> list[int]:
    told = full_arguments(samplers, masks, vocab=vocab)
    return [one.token_id for one in read_full(samplers, *everything(vocab)(head(vocab), h_RD, *told))]


class Programs:
    """Compiles, and notes what was called."""

    def __init__(self):
        self.made, self.called = {}, []

    def __call__(self, key, function, arguments):
        if key not in self.made:
            self.made[key] = jax.jit(function).lower(*arguments).compile()
        self.called.append(key[0])
        return self.made[key]


def some_rows(rng, vocab: int, rows: int):
    """Samplers, masks and states: dense, sparse, few and single masks; greedy, short and long lists."""
    samplers, masks = [], []
    for row in range(rows):
        params = SamplingParams(
            temperature=float(rng.choice([0.0, 0.7, 2.0])),
            top_k=int(rng.choice([0, 1, 5, 64, SHORT_LIST])),
            top_p=float(rng.choice([1.0, 0.9])),
            min_p=float(rng.choice([0.0, 0.05])),
            seed=int(rng.integers(1 << 31)),
        )
        count = int(rng.choice([1, 2, 9, FEW, min(FEW + 1, vocab), vocab // 2, vocab]))
        ids = rng.choice(vocab, count, replace=False)
        samplers.append(RowSampler(params, (), vocab=vocab, mask=lambda answer: None))
        masks.append(words_of(ids, vocab))
        samplers[-1].index = row
    return samplers, masks, rng.normal(0, 1, (rows, D)).astype(np.float32)


@pytest.mark.parametrize("vocab", [5000, pytest.param(70, marks=pytest.mark.exhaustive)])
def test_every_row_draws_what_the_program_for_everything_draws(vocab):
    rng, programs = np.random.default_rng(vocab), Programs()
    draws = Draws(head(vocab), vocab=vocab, most=4)
    for _ in range(10):
        samplers, masks, h_RD = some_rows(rng, vocab, 4)
        wanted = by_everything(h_RD, samplers, masks, vocab)
        drawn = [one.token_id for one in draws(programs, h_RD, samplers, masks)]
        assert drawn == wanted
        assert all(
            np.unpackbits(mask.view(np.uint8), bitorder="little")[i] for mask, i in zip(masks, drawn, strict=True)
        )
        alone = [draws(programs, h_RD[i : i + 1], samplers[i : i + 1], masks[i : i + 1])[0].token_id for i in range(4)]
        assert alone == drawn, "who is beside a row changes nothing"
    assert {"few", "masked", "draw"} <= set(programs.called)


def test_each_row_has_the_cheapest_program():
    vocab, programs = 5000, Programs()
    draws = Draws(head(vocab), vocab=vocab, most=1)

    def called(ids, **told) -> list[str]:
        programs.called.clear()
        sampler = RowSampler(SamplingParams(**({"temperature": 1.0, "top_k": 64, "seed": 1} | told)), (), vocab=vocab)
        [result] = draws(programs, np.ones((1, D), np.float32), [sampler], [words_of(ids, vocab)])
        assert result.token_id in ids
        return programs.called

    assert called([7]) == []
    assert called([7, 9]) == called(range(FEW)) == called(range(FEW), top_k=0) == ["few"]
    assert called(range(FEW + 1)) == called(range(4000), temperature=0.0, top_k=0) == ["masked"]
    assert called(range(FEW + 1), top_k=0) == ["draw"]
    assert called([7, 9], logprobs=True) == called([7], frequency_penalty=1.0) == ["draw"]


@pytest.mark.exhaustive
def test_what_warm_up_makes_is_all_there_is():
    programs = Programs()
    draws = Draws(head(300), vocab=300, most=2)
    for job in draws.warm_up(programs, D):
        job()
    made = len(programs.made)
    rng = np.random.default_rng(0)
    for rows in (1, 2):
        for _ in range(4):
            samplers, masks, h_RD = some_rows(rng, 300, rows)
            draws(programs, h_RD, samplers, masks)
    assert len(programs.made) == made


@pytest.mark.parametrize("vocab", [31, 64, 1000, 9000])
def test_the_largest_that_a_mask_allows_in_order(vocab):
    """By value, equal ones by id; where fewer are allowed the rest are -inf."""
    rng = np.random.default_rng(vocab)
    logits_RV = rng.integers(-40, 40, (6, vocab + 7)).astype(np.float32) / 4  # many are equal
    masks, wanted = [], []
    for share in (0.0, 0.01, 0.1, 0.5, 0.9, 1.0):
        ids = np.flatnonzero(rng.random(vocab) < share)
        masks.append(words_of(ids, vocab))
        row_V = logits_RV[len(wanted)]
        wanted.append(sorted(ids.tolist(), key=lambda i, row_V=row_V: (-row_V[i], i))[:SHORT_LIST])
    top = functools.partial(masked_top, vocab=vocab, top=SHORT_LIST)
    values_RQ, ids_RQ = map(np.asarray, jax.jit(top)(logits_RV, np.stack(masks)))
    assert values_RQ.shape == ids_RQ.shape == (6, min(SHORT_LIST, vocab))
    for r, ids in enumerate(wanted):
        assert ids_RQ[r, : len(ids)].tolist() == ids
        np.testing.assert_array_equal(values_RQ[r, : len(ids)], logits_RV[r, ids])
        assert np.isneginf(values_RQ[r, len(ids) :]).all()


def test_allowed_ids_are_read_where_they_are_few():
    rng = np.random.default_rng(0)
    for count in (1, 2, 31, FEW):
        ids = np.sort(rng.choice(9000, count, replace=False))
        assert allowed_ids(words_of(ids, 9000)).tolist() == ids.tolist()
    assert allowed_ids(words_of(range(FEW + 1), 9000)) is None
    assert allowed_ids(words_of(range(0, 9000, 32), 9000)) is None
    assert allowed_ids(None) is None
