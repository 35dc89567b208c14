"""A request's side of drawing, and the two programs that draw: each row gets its own, and the same from both."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks.engine.sampler import (
    RowSampler,
    fast_choice,
    full_arguments,
    full_choice,
    penalty_widths,
    read_full,
    row_masks,
    row_params,
    row_penalties,
)
from gemworks.engine.types import MAX_TOP_LOGPROBS, SamplingParams
from gemworks.errors import RequestError
from gemworks.ops.sampling import SHORT_LIST, allowed

D = 16


@functools.cache
def head(rows: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(0, 0.6, (rows, D)), jnp.float32)


def states(rows: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(0, 1, (rows, D)), jnp.float32)


@functools.cache
def program(function, vocab: int):
    return jax.jit(functools.partial(function, vocab=vocab))


def fast(h_SD, samplers, vocab: int, offsets=None) -> list[int]:
    return program(fast_choice, vocab)(head(vocab + 9), h_SD, row_params(samplers, offsets)).tolist()


def full(h_RD, samplers, vocab: int, masks=None):
    told = full_arguments(samplers, masks or [None] * len(samplers), vocab=vocab)
    return read_full(samplers, *program(full_choice, vocab)(head(vocab + 9), h_RD, *told))


def logits(h_RD, vocab: int) -> np.ndarray:
    return np.asarray(h_RD, np.float64) @ np.asarray(head(vocab + 9), np.float64)[:vocab].T


def random_params(rng, **told) -> SamplingParams:
    return SamplingParams(
        temperature=float(rng.choice([0.0, 0.5, 1.0, 3.0])),
        top_k=int(rng.integers(1, SHORT_LIST + 1)),
        top_p=float(rng.choice([1.0, rng.uniform(0.2, 1.0)])),
        min_p=float(rng.choice([0.0, rng.uniform(0.0, 0.3)])),
        seed=int(rng.integers(2**63)),
        **told,
    )


def words_of(ids, vocab: int) -> np.ndarray:
    words = np.zeros(-(-vocab // 32), np.uint32)
    for i in ids:
        words[i // 32] |= np.uint32(1 << i % 32)
    return words


@pytest.mark.parametrize("vocab", [5, 1000])
def test_both_programs_draw_the_same_token(vocab):
    """Whatever the filters, and with rows beside it that ask for all there is."""
    rng = np.random.default_rng(vocab)
    for trial in range(60):
        samplers = [RowSampler(random_params(rng), [], vocab=vocab) for _ in range(3)]
        for sampler in samplers:
            sampler.index = int(rng.integers(1000))
        greedy = SamplingParams(temperature=0.0, logprobs=True, repetition_penalty=2.0, logit_bias={0: 3.0})
        others = [
            RowSampler(SamplingParams(top_k=0, seed=trial), [], vocab=vocab),
            RowSampler(greedy, [0], vocab=vocab),
        ]
        h = states(5, trial)
        expected = fast(h[:3], samplers, vocab)
        assert not any(sampler.needs_full for sampler in samplers) and all(sampler.needs_full for sampler in others)
        assert [result.token_id for result in full(h, [*samplers, *others], vocab)][:3] == expected
        assert all(token < vocab for token in expected)


def test_a_row_draws_the_same_alone_and_beside_others():
    rng = np.random.default_rng(3)
    samplers = [RowSampler(random_params(rng), [], vocab=300) for _ in range(6)]
    h = states(6)
    together = fast(h, samplers, 300)
    assert [fast(h[r : r + 1], [s], 300)[0] for r, s in enumerate(samplers)] == together
    reverse = fast(h[::-1], samplers[::-1], 300)
    assert reverse[::-1] == together
    assert fast(h, [samplers[0], None, samplers[2], None, None, samplers[5]], 300)[5] == together[5]


def test_greedy_and_padding_rows_take_the_largest_logit():
    h = states(3)
    best = logits(h, 50).argmax(-1).tolist()
    greedy = RowSampler(SamplingParams(temperature=0.0), [], vocab=50)
    assert fast(h, [greedy, None, greedy], 50) == best
    hot = RowSampler(SamplingParams(temperature=9.0, seed=1), [], vocab=50)
    assert fast(h, [greedy, None, hot], 50)[:2] == best[:2]
    assert [result.token_id for result in full(h, [greedy, None, hot], 50)][:2] == best[:2]


def test_offsets_draw_what_later_tokens_would():
    """One request's draft is checked at three places in one step: each as if the tokens before it had been noted."""
    h = states(3)
    sampler = RowSampler(SamplingParams(temperature=2.0, seed=5), [], vocab=400)
    together = fast(h, [sampler] * 3, 400, [0, 1, 2])
    one_by_one = []
    for r in range(3):
        one_by_one += fast(h[r : r + 1], [sampler], 400)
        sampler.note(one_by_one[-1])
    assert together == one_by_one
    assert fast(h, [sampler] * 3, 400, [-3, -2, -1]) == one_by_one != fast(h, [sampler] * 3, 400)


def test_answers_to_one_prompt_draw_with_seeds_in_a_row():
    def draws(seed: int, answer: int) -> list[int]:
        sampler = RowSampler(SamplingParams(temperature=3.0, seed=seed), [], vocab=500, answer=answer)
        return fast(states(8), [sampler] * 8, 500, range(8))

    assert draws(7, 2) == draws(8, 1) == draws(9, 0) != draws(9, 1)
    assert draws(2**63 - 1, 3) != draws(2**63 - 1, 0)
    assert draws(2**32, 0) != draws(0, 0)


def test_a_seed_of_our_own_is_fresh_and_kept():
    samplers = [RowSampler(SamplingParams(temperature=3.0), [], vocab=500) for _ in range(2)]
    first = [fast(states(8), [sampler] * 8, 500, range(8)) for sampler in samplers]
    assert first[0] != first[1]
    assert fast(states(8), [samplers[0]] * 8, 500, range(8)) == first[0]


@pytest.mark.parametrize(
    ("params", "mask", "needs_full", "needs_host"),
    [
        ({}, None, False, False),
        ({"temperature": 0.0, "top_k": 0}, None, False, False),
        ({"top_k": SHORT_LIST}, None, False, False),
        ({"top_k": SHORT_LIST + 1}, None, True, False),
        ({"top_k": 0}, None, True, False),
        ({"logprobs": True}, None, True, False),
        ({"logit_bias": {3: 1.0}}, None, True, True),
        ({"presence_penalty": 0.1}, None, True, True),
        ({}, lambda answer: None, True, True),
    ],
)
def test_what_a_request_needs(params, mask, needs_full, needs_host):
    sampler = RowSampler(SamplingParams(**params), [], vocab=300, mask=mask)
    assert (sampler.needs_full, sampler.needs_host) == (needs_full, needs_host)


def penalized(values: np.ndarray, params: SamplingParams, prompt, answer) -> np.ndarray:
    """By the formulas, one id at a time: Keskar et al. 2019 on prompt and answer, OpenAI's two on the answer, bias."""
    out = values.copy()
    for i in {*prompt, *answer}:
        if i < len(out):
            out[i] = out[i] / params.repetition_penalty if out[i] > 0 else out[i] * params.repetition_penalty
    for i in set(answer):
        out[i] -= answer.count(i) * params.frequency_penalty + params.presence_penalty
    for i, bias in params.logit_bias.items():
        out[i] += bias
    return out


@pytest.mark.parametrize("vocab", [40, 600])
def test_penalties_follow_their_formulas(vocab):
    """Greedy choice and its rivals over a growing answer; lists of every width, image tokens in the prompt ignored."""
    rng = np.random.default_rng(vocab)
    for trial, length in enumerate((0, 3, vocab // 3, vocab)):
        params = SamplingParams(
            temperature=0.0,
            repetition_penalty=[1.0, 1.3, 0.7, 1.8][trial],
            presence_penalty=[0.0, 0.6, -1.0, 2.0][trial],
            frequency_penalty=[0.5, 0.0, 0.25, -0.5][trial],
            logit_bias={int(i): float(rng.normal()) for i in rng.integers(0, vocab, 5)},
        )
        prompt = [*rng.permutation(vocab)[:length].tolist(), vocab + 3]
        neighbour = RowSampler(SamplingParams(temperature=0.0), [], vocab=vocab)
        sampler, answer = RowSampler(params, prompt, vocab=vocab), []
        for step in range(6):
            h = states(2, 10 * trial + step)
            expected = penalized(logits(h, vocab)[0], params, prompt, answer)
            mine, plain = full(h, [sampler, neighbour], vocab)
            assert mine.token_id == expected.argmax()
            assert plain.token_id == logits(h, vocab)[1].argmax()
            answer.append(int(rng.integers(vocab)))
            sampler.note(answer[-1])


def test_penalty_lists_are_as_wide_as_one_of_few_widths():
    vocab = 20_000
    assert penalty_widths(vocab) == (4096, 20_000) and penalty_widths(160) == (160,)
    sampler = RowSampler(SamplingParams(presence_penalty=1.0), [], vocab=vocab)
    short = RowSampler(SamplingParams(logit_bias={1: 1.0}), [], vocab=vocab)
    for count, width in ((0, 4096), (4096, 4096), (4097, 20_000), (20_000, 20_000)):
        while sampler.index < count:
            sampler.note(sampler.index)
        lists = row_penalties([sampler, None, short], vocab=vocab)
        assert lists.ids_RP.shape == lists.count_RP.shape == (3, width)
        for row in lists.ids_RP:
            assert len(set(row.tolist())) == width
        assert (lists.ids_RP < vocab).sum(1).tolist() == [count, 0, 1]
        assert lists.count_RP.sum() == count


def test_logprobs_are_of_the_raw_logits():
    """Under penalties, a mask and a temperature too; the likeliest are told as many as asked for."""
    params = {"repetition_penalty": 5.0, "logit_bias": {3: 50.0}, "logprobs": True, "temperature": 0.2, "seed": 1}
    asked = [SamplingParams(**params, top_logprobs=n) for n in (0, 4, MAX_TOP_LOGPROBS)]
    samplers = [RowSampler(one, [1, 2], vocab=90) for one in asked]
    h = states(3)
    expected = logits(h, 90) - np.log(np.exp(logits(h, 90)).sum(-1, keepdims=True))
    order = np.argsort(-expected, -1)
    for r, result in enumerate(full(h, samplers, 90, [words_of([3, 4], 90)] * 3)):
        assert result.token_id == result.logprob.token_id == 3
        assert result.logprob.logprob == pytest.approx(expected[r, 3], abs=1e-4)
        assert [i for i, _ in result.logprob.top] == order[r, : asked[r].top_logprobs].tolist()
        for i, value in result.logprob.top:
            assert value == pytest.approx(expected[r, i], abs=1e-4)


def test_fewer_words_than_likeliest_are_asked_for():
    sampler = RowSampler(SamplingParams(logprobs=True, top_logprobs=20), [], vocab=7)
    [result] = full(states(1), [sampler], 7)
    assert sorted(i for i, _ in result.logprob.top) == list(range(7))


@pytest.mark.parametrize("vocab", [32, 250])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"top_k": 5}, {"top_k": 0, "top_p": 1.0, "temperature": 5.0}])
def test_only_what_the_mask_allows_is_drawn(vocab, params):
    rng = np.random.default_rng(vocab)
    for trial in range(10):
        ids = sorted(rng.choice(vocab, int(rng.integers(1, 4)), replace=False).tolist())
        told = {"mask": lambda answer, ids=ids: words_of(ids, vocab)}
        samplers = [RowSampler(SamplingParams(**params, seed=s), [], vocab=vocab, **told) for s in range(5)]
        h = states(6, trial)
        masks = [sampler.mask_words([]) for sampler in samplers]
        free = RowSampler(SamplingParams(temperature=0.0), [], vocab=vocab)
        drawn = [r.token_id for r in full(h, [*samplers, free], vocab, [*masks, free.mask_words([])])]
        assert set(drawn[:5]) <= set(ids)
        assert drawn[5] == logits(h, vocab)[5].argmax()
        if params == {"temperature": 0.0}:
            assert drawn[:5] == [max(ids, key=row.__getitem__) for row in logits(h, vocab)[:5]]


def test_masks_read_bit_i_of_word_i_over_32():
    mask = row_masks([words_of([0, 31, 32, 65], 70), None], vocab=70)
    assert mask.shape == (2, 3) and mask.dtype == np.uint32
    assert np.flatnonzero(np.asarray(allowed(mask, 70))[0]).tolist() == [0, 31, 32, 65]
    assert np.asarray(allowed(mask, 70))[1].all()


def mask_of(words, vocab: int = 70):
    return RowSampler(SamplingParams(), [], vocab=vocab, mask=lambda answer: words)


def test_masks_may_be_int32_and_longer_or_shorter_than_the_vocabulary():
    assert mask_of(np.array([1, -1, 5, 9], np.int32)).mask_words([]).tolist() == [1, 0xFFFFFFFF, 5]
    assert mask_of(np.array([2], np.uint32)).mask_words([]).tolist() == [2, 0, 0]
    assert mask_of(None).mask_words([]) is None
    assert RowSampler(SamplingParams(), [], vocab=70).mask_words([]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (np.zeros(3, np.uint32), "the mask allows no token after 2 answer tokens; it must allow one of 0 to 69"),
        (np.array([0, 0, 1 << 6], np.uint32), "allows no token"),  # id 70 has a row and no meaning
        (np.zeros(0, np.uint32), "allows no token"),
        (np.ones(3, np.int64), r"must be one row of 32-bit words or None, got int64 of shape \(3,\)"),
        (np.ones((1, 3), np.uint32), r"got uint32 of shape \(1, 3\)"),
        (np.ones(3, bool), "got bool"),
    ],
)
def test_impossible_masks_are_refused(words, message):
    with pytest.raises(RequestError, match=message):
        mask_of(words).mask_words([1, 2])


def test_masks_see_the_answer_so_far():
    seen = []
    sampler = RowSampler(SamplingParams(), [1], vocab=70, mask=lambda answer: seen.append(list(answer)))
    sampler.mask_words([])
    sampler.mask_words([4, 5])
    assert seen == [[], [4, 5]]


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({70: 1.0}, "logit_bias names token 70; this model's tokens are 0 to 69"),
        ({-1: 1.0}, "names token -1"),
        ({2: float("inf")}, "logit_bias of token 2 must be between -1e30 and 1e30, got inf.\n-100 forbids"),
        ({2: float("nan")}, "got nan"),
        ({2: -1e39}, "got -1e.39"),
    ],
)
def test_impossible_biases_are_refused(bias, message):
    with pytest.raises(RequestError, match=message):
        RowSampler(SamplingParams(logit_bias=bias), [], vocab=70)


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_temperature_near_zero_is_greedy(top_k):
    """Logits divided by 1e-38 overflow fp32; the largest still wins."""
    sampler = RowSampler(SamplingParams(temperature=1e-38, top_k=top_k, top_p=1.0, seed=1), [], vocab=60)
    h = states(4)
    assert [r.token_id for r in full(h, [sampler] * 4, 60)] == logits(h, 60).argmax(-1).tolist()
