"""The offline engine on a small random model: what it draws, what it counts, what it refuses."""

import numpy as np
import pytest
from small_models import random_ids, random_model, small_config

from gemworks.engine.engine import Engine
from gemworks.engine.runner import Runner
from gemworks.engine.types import MAX_TOP_LOGPROBS, SamplingParams
from gemworks.errors import RequestError

CONFIG = small_config(window=8)
PROMPT = random_ids(CONFIG, 11)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Runner(random_model(CONFIG), context=96, page_size=4), vocab=CONFIG.vocab_size)


def answer(engine: Engine, prompt=PROMPT, **params) -> list[int]:
    params = {"max_tokens": 12, "top_k": 0, "top_p": 1.0} | params
    return [event.token_id for event in engine.generate(prompt, SamplingParams(**params))]


def raw_logprobs(engine: Engine, prompt: list[int]) -> np.ndarray:
    """Return the log-probability of every token after `prompt`."""
    last = next(engine.generate(prompt, SamplingParams(temperature=0.0, logprobs=True, top_logprobs=20, max_tokens=1)))
    assert last.logprob is not None
    values = np.full(CONFIG.vocab_size, -np.inf)
    for token_id, value in last.logprob.top:
        values[token_id] = value
    return values


def test_greedy_is_the_likeliest_token_each_time(engine):
    events = list(engine.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=8, logprobs=True, top_logprobs=3)))
    for event in events:
        assert event.logprob.top[0] == (event.token_id, event.logprob.logprob)
    assert [event.finish_reason for event in events] == [None] * 7 + ["length"]


def test_seed_gives_the_same_tokens_whatever_ran_before(engine):
    first = answer(engine, seed=7)
    answer(engine, prompt=PROMPT[:4], seed=8)
    assert answer(engine, seed=7) == first
    assert answer(engine, seed=8) != first


def test_seed_is_the_same_with_and_without_the_short_list(engine):
    """top_k 128 takes the fast path and top_k 0 sorts everything; with fewer words than 128 they draw the same."""
    vocab_in_short_list = small_config(window=8, vocab_size=100)
    engine = Engine(Runner(random_model(vocab_in_short_list), context=64, page_size=4), vocab=100)
    prompt = random_ids(vocab_in_short_list, 5)
    assert answer(engine, prompt, top_k=100, seed=3) == answer(engine, prompt, top_k=0, seed=3)


def test_no_seed_draws_afresh(engine):
    assert len({tuple(answer(engine)) for _ in range(4)}) > 1


def test_top_k_1_and_tiny_top_p_are_greedy(engine):
    greedy = answer(engine, temperature=0.0)
    assert answer(engine, top_k=1) == greedy
    assert answer(engine, top_p=1e-6) == greedy
    assert answer(engine, min_p=1.0) == greedy


def test_low_temperature_sharpens(engine):
    greedy = answer(engine, temperature=0.0)
    assert answer(engine, temperature=1e-4, seed=1) == greedy


def test_logit_bias_forces_and_forbids(engine):
    assert answer(engine, logit_bias={5: 1000.0}, max_tokens=4) == [5] * 4
    greedy = answer(engine, temperature=0.0, max_tokens=1)
    assert answer(engine, temperature=0.0, max_tokens=1, logit_bias={greedy[0]: -1000.0}) != greedy


def test_frequency_penalty_counts_the_answer_only(engine):
    """A bias of 2n over all others lasts n tokens under a frequency penalty of 2, whatever the prompt held."""
    drawn = answer(engine, prompt=[5] * 8, temperature=0.0, logit_bias={5: 100.0}, frequency_penalty=2.0, max_tokens=12)
    assert drawn == [5] * 12
    drawn = answer(engine, temperature=0.0, logit_bias={5: 1e4, 6: 1e4 - 5}, frequency_penalty=2.0, max_tokens=6)
    assert drawn[:3] == [5, 5, 5] and set(drawn) == {5, 6}


def test_repetition_penalty_counts_prompt_and_answer(engine):
    """Divides positive and multiplies negative logits of seen tokens (CTRL), so a huge one forbids positive repeats."""
    drawn = answer(engine, temperature=0.0, repetition_penalty=1e6, max_tokens=12)
    positive = [token for i, token in enumerate(drawn) if token not in PROMPT and token not in drawn[:i]]
    assert len(positive) == len(drawn)


def test_stop_id_ends_the_answer_and_is_not_part_of_it(engine):
    greedy = answer(engine, temperature=0.0)
    stop = greedy[3]
    events = list(engine.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=12, stop_ids=(stop,))))
    assert [event.token_id for event in events] == [*greedy[: greedy.index(stop)], None]
    assert events[-1].finish_reason == "stop"


def test_vocabulary_rows_without_meaning_are_never_drawn():
    engine = Engine(Runner(random_model(CONFIG), context=64, page_size=4), vocab=10)
    drawn = answer(engine, prompt=[1, 2, 3], temperature=5.0, max_tokens=60, seed=0)
    assert max(drawn) < 10
    with pytest.raises(RequestError, match="prompt token 1 is 10; this model's tokens are 0 to 9"):
        engine.generate([1, 10], GREEDY)


def test_next_turn_computes_only_what_is_new(engine):
    first = answer(engine, temperature=0.0)
    expected_prompt = [*PROMPT, *first, 1, 2, 3]
    fresh = Engine(Runner(random_model(CONFIG), context=96, page_size=4), vocab=CONFIG.vocab_size)
    expected = answer(fresh, prompt=expected_prompt, temperature=0.0)
    assert answer(engine, prompt=expected_prompt, temperature=0.0) == expected
    assert engine.timings.cached_tokens == len(PROMPT) + len(first) - 1
    assert engine.timings.prefill_tokens == 4


def test_prompt_scores_are_the_logprobs_of_its_tokens(engine):
    """Scoring in one pass gives what asking for each next token gives."""
    ids = random_ids(CONFIG, 40, seed=3)
    scores = engine.score(ids, top=MAX_TOP_LOGPROBS)
    assert scores[0] is None and len(scores) == len(ids)
    for t in (1, 2, 8, 9, 25, 39):
        expected = raw_logprobs(engine, ids[:t])
        assert scores[t].token_id == ids[t]
        for token_id, value in scores[t].top:
            assert value == pytest.approx(expected[token_id], abs=1e-4)


def test_closing_an_answer_stops_it_and_the_engine_goes_on(engine):
    stream = engine.generate(PROMPT, GREEDY)
    next(stream)
    stream.close()
    assert answer(engine, temperature=0.0)[:2] == answer(engine, temperature=0.0)[:2]


def test_answer_that_lost_its_cache_says_so(engine):
    stream = engine.generate(PROMPT, GREEDY)
    next(stream)
    answer(engine, prompt=PROMPT[:3])
    with pytest.raises(RequestError, match="ended by a newer request"):
        list(stream)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 1, "the prompt has no tokens"),
        ([1] * 90, 20, r"needs 110 tokens \(90 prompt \+ 20 max_tokens\); the context holds 96.\nShorten .* by 14"),
        ([1] * 96, None, r"needs 97 tokens \(96 prompt \+ at least 1 for the answer\); the context holds 96"),
        ([1] * 97, None, "the prompt has 97 tokens; the context holds 96"),
        ([-1], 1, "prompt token 0 is -1"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(engine, prompt, max_tokens, message):
    with pytest.raises(RequestError, match=message):
        engine.generate(prompt, SamplingParams(max_tokens=max_tokens))


def test_answer_without_limit_fills_the_context(engine):
    events = list(engine.generate([1] * 90, SamplingParams(temperature=0.0)))
    assert len(events) == 6 and events[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -1.0, r"temperature must be 0 \(greedy\) or more, got -1.0"),
        ("temperature", float("nan"), "temperature must be"),
        ("top_k", -1, r"top_k must be 0 \(off\) or more"),
        ("top_p", 0.0, "top_p must be above 0 and at most 1, got 0.0"),
        ("top_p", 1.5, "top_p must be"),
        ("min_p", 2.0, "min_p must be between 0 and 1"),
        ("repetition_penalty", 0.0, "repetition_penalty must be above 0"),
        ("presence_penalty", 3.0, "presence_penalty must be between -2 and 2"),
        ("frequency_penalty", -3.0, "frequency_penalty must be between -2 and 2"),
        ("max_tokens", 0, "max_tokens must be at least 1"),
        ("seed", -1, "seed must be between 0"),
        ("top_logprobs", 21, "top_logprobs must be between 0 and 20"),
    ],
)
def test_impossible_sampling_is_refused_by_name(field, value, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**{field: value})


def test_logit_bias_outside_the_vocabulary_is_refused(engine):
    with pytest.raises(RequestError, match="logit_bias names token 160; this model's tokens are 0 to 159"):
        engine.generate(PROMPT, SamplingParams(logit_bias={160: 1.0}))
