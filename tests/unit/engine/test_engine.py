"""The engine on a small random model: what it draws, what it counts, what it refuses."""

import numpy as np
import pytest
from driven_engine import LAYERS
from small_models import random_ids, random_model, small_config

from gemworks.engine.engine import Engine
from gemworks.engine.handle import Handle
from gemworks.engine.runner import Runner
from gemworks.engine.types import MAX_TOP_LOGPROBS, Request, SamplingParams, TokenEvent
from gemworks.errors import CapacityError, RequestError

CONFIG = small_config(layers=LAYERS)
PROMPT = random_ids(CONFIG, 11)
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Runner(random_model(CONFIG), context=96, num_sequences=2, page_size=4, num_local_pages=16))


def submit(engine: Engine, prompt=PROMPT, *, params=GREEDY, **told) -> Handle:
    return engine.submit(Request(prompt=tuple(prompt), params=params, **told))


def events_of(engine: Engine, prompt=PROMPT, **params) -> list[TokenEvent]:
    return list(submit(engine, prompt, params=SamplingParams(**params)))


def answer(engine: Engine, prompt=PROMPT, **params) -> list[int]:
    params = {"max_tokens": 12, "top_k": 0, "top_p": 1.0} | params
    return [event.token_id for event in events_of(engine, prompt, **params)]


def raw_logprobs(engine: Engine, prompt: list[int]) -> np.ndarray:
    """Return the log-probability of every token after `prompt`."""
    [last] = events_of(engine, prompt, temperature=0.0, logprobs=True, top_logprobs=20, max_tokens=1)
    assert last.logprob is not None
    values = np.full(CONFIG.vocab_size, -np.inf)
    for token_id, value in last.logprob.top:
        values[token_id] = value
    return values


def test_greedy_is_the_likeliest_token_each_time(engine):
    events = events_of(engine, temperature=0.0, max_tokens=8, logprobs=True, top_logprobs=3)
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
    vocab_in_short_list = small_config(layers=LAYERS, vocab_size=100)
    engine = Engine(Runner(random_model(vocab_in_short_list), context=64, page_size=4))
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
    drawn = answer(engine, temperature=0.0, logit_bias={5: 1e4, 6: 1e4 - 5}, frequency_penalty=2.0, max_tokens=12)
    assert drawn[:3] == [5, 5, 5] and set(drawn) == {5, 6}


def test_repetition_penalty_counts_prompt_and_answer(engine):
    """Divides positive and multiplies negative logits of seen tokens (CTRL), so a huge one forbids positive repeats."""
    drawn = answer(engine, temperature=0.0, repetition_penalty=1e6, max_tokens=12)
    positive = [token for i, token in enumerate(drawn) if token not in PROMPT and token not in drawn[:i]]
    assert len(positive) == len(drawn)


def test_stop_id_ends_the_answer_and_is_not_part_of_it(engine):
    greedy = answer(engine, temperature=0.0)
    stop = greedy[3]
    events = events_of(engine, temperature=0.0, max_tokens=12, stop_ids=(stop,))
    assert [event.token_id for event in events] == [*greedy[: greedy.index(stop)], None]
    assert events[-1].finish_reason == "stop"


def test_vocabulary_rows_without_meaning_are_never_drawn():
    engine = Engine(Runner(random_model(CONFIG), context=64, page_size=4, vocab=10))
    drawn = answer(engine, prompt=[1, 2, 3], temperature=5.0, max_tokens=60, seed=0)
    assert max(drawn) < 10
    with pytest.raises(RequestError, match="prompt token 1 is 10; this model's tokens are 0 to 9"):
        submit(engine, [1, 10])


def test_next_turn_computes_only_what_is_new(engine):
    first = answer(engine, temperature=0.0)
    expected_prompt = [*PROMPT, *first, 1, 2, 3]
    fresh = Engine(Runner(random_model(CONFIG), context=96, page_size=4))
    expected = answer(fresh, prompt=expected_prompt, temperature=0.0)
    handle = submit(engine, expected_prompt)
    assert [event.token_id for event in handle] == expected
    assert handle.timings().cached_tokens == len(PROMPT) + len(first) - 1
    assert handle.timings().prefill_tokens == 4


def test_a_request_without_the_cache_neither_reads_nor_feeds_it(engine):
    prompt = random_ids(CONFIG, 30, seed=77)
    for use_cache, cached in ((False, 0), (True, 0), (False, 0), (True, 29)):
        handle = submit(engine, prompt, use_cache=use_cache)
        list(handle)
        assert handle.timings().cached_tokens == cached, use_cache


def test_prompt_scores_are_the_logprobs_of_its_tokens(engine):
    """Scoring in one pass gives what asking for each next token gives."""
    ids = random_ids(CONFIG, 40, seed=3)
    handle = submit(engine, ids, kind="score", params=SamplingParams(top_logprobs=MAX_TOP_LOGPROBS))
    [event] = list(handle)
    assert event == TokenEvent(None, None, "stop")
    scores = handle.scores
    assert scores[0] is None and len(scores) == len(ids)
    for t in (1, 2, 8, 9, 25, 39):
        expected = raw_logprobs(engine, ids[:t])
        assert scores[t].token_id == ids[t]
        for token_id, value in scores[t].top:
            assert value == pytest.approx(expected[token_id], abs=1e-4)


def test_scores_from_a_position_leave_out_what_is_before_it_and_use_the_cache(engine):
    ids = random_ids(CONFIG, 40, seed=4)
    whole = submit(engine, ids, kind="score")
    list(whole)
    list(submit(engine, ids[:30], params=SamplingParams(max_tokens=1)))  # its window stays in the prefix cache
    part = submit(engine, ids, kind="score", score_from=31)
    list(part)
    assert part.scores[:31] == [None] * 31
    assert [s.token_id for s in part.scores[31:]] == ids[31:]
    np.testing.assert_allclose([s.logprob for s in part.scores[31:]], [s.logprob for s in whole.scores[31:]], atol=1e-4)
    assert part.timings().cached_tokens == 30


def test_choices_have_the_logprobs_of_what_would_be_drawn_and_use_the_cache(engine):
    """More of them than one program scores at once, one twice; the prompt but its last token comes from the cache."""
    ids = random_ids(CONFIG, 35, seed=8)
    expected = raw_logprobs(engine, ids)
    choices = [*np.flatnonzero(np.isfinite(expected)).tolist() * 2, int(expected.argmax())]
    handle = submit(engine, ids, kind="choose", choices=tuple(choices))
    assert [event.finish_reason for event in handle] == ["stop"]
    assert [score.token_id for score in handle.scores] == choices
    np.testing.assert_allclose([score.logprob for score in handle.scores], expected[choices], atol=1e-4)
    assert handle.timings().cached_tokens == 34 and handle.timings().prefill_tokens == 1


def test_choices_that_are_no_tokens_or_nobodys_are_refused(engine):
    size = CONFIG.vocab_size
    with pytest.raises(RequestError, match=f"choices name token {size}; this model's tokens are 0 to {size - 1}"):
        submit(engine, kind="choose", choices=(1, size))
    for told in ({"kind": "choose"}, {"choices": (1,)}, {"kind": "score", "choices": (1,)}):
        with pytest.raises(RequestError, match='choices go with kind "choose", which needs some; got '):
            submit(engine, **told)


def test_of_several_requests_all_begin_or_none(engine):
    before = engine.stats().requests
    with pytest.raises(RequestError, match="prompt token 0 is -1"):
        engine.submit_all([Request(prompt=tuple(PROMPT), params=GREEDY), Request(prompt=(-1,), params=GREEDY)])
    assert engine.stats().requests == before
    handles = engine.submit_all([Request(prompt=tuple(PROMPT[:n]), params=GREEDY) for n in (3, 5)])
    assert [len(list(handle)) for handle in handles] == [12, 12]


def test_embedding_is_the_mean_of_the_final_states(engine):
    import jax.numpy as jnp

    from gemworks.model.gemma3 import full_batch

    ids = random_ids(CONFIG, 33, seed=5)
    h_TD, _ = random_model(CONFIG)(full_batch(jnp.asarray(ids), CONFIG))
    for _ in range(2):  # the second time its tokens are in the prefix cache, and all states are wanted nevertheless
        handle = submit(engine, ids, kind="embed")
        assert [event.finish_reason for event in handle] == ["stop"]
        np.testing.assert_allclose(handle.embedding, np.asarray(h_TD).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("kind", ["score", "embed"])
def test_what_draws_nothing_has_one_answer_whatever_n_is(engine, kind):
    """A handle must not wait for answers that nobody computes."""
    handle = submit(engine, PROMPT, kind=kind, n=3)
    assert [(event.index, event.finish_reason) for event in handle] == [(0, "stop")]


def test_n_answers_are_those_of_n_seeds_and_share_their_prompt(engine):
    prompt = random_ids(CONFIG, 30, seed=6)
    params = SamplingParams(max_tokens=6, seed=40, temperature=1.5)
    handle = submit(engine, prompt, params=params, n=3)
    drawn: dict[int, list[int | None]] = {0: [], 1: [], 2: []}
    for event in handle:
        drawn[event.index].append(event.token_id)
    alone = [answer(engine, prompt, max_tokens=6, seed=40 + i, temperature=1.5, top_k=64, top_p=0.95) for i in range(3)]
    assert list(drawn.values()) == alone
    assert len({tuple(ids) for ids in alone}) > 1
    assert [handle.timings(i).cached_tokens for i in range(3)] == [0, 29, 29]


def test_closing_an_answer_stops_it_and_the_engine_goes_on(engine):
    stream = iter(submit(engine))
    next(stream)
    stream.close()
    assert answer(engine, temperature=0.0)[:2] == answer(engine, temperature=0.0)[:2]


def test_a_newer_request_does_not_disturb_an_answer(engine):
    expected = answer(engine, temperature=0.0)
    stream = iter(submit(engine))
    got = [next(stream).token_id]
    for start in range(5):
        answer(engine, prompt=random_ids(CONFIG, 30, seed=start))
    assert got + [event.token_id for event in stream] == expected


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "message"),
    [
        ([], 1, "the prompt has no tokens"),
        ([1] * 90, 20, r"needs 110 tokens \(90 prompt \+ 20 answer\); the context holds 96.\nShorten .* by 14"),
        ([1] * 96, None, r"needs 97 tokens \(96 prompt \+ 1 answer\); the context holds 96"),
        ([1] * 97, None, r"needs 98 tokens \(97 prompt \+ 1 answer\); the context holds 96"),
        ([-1], 1, "prompt token 0 is -1"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(engine, prompt, max_tokens, message):
    with pytest.raises(RequestError, match=message):
        submit(engine, prompt, params=SamplingParams(max_tokens=max_tokens))


def test_more_than_all_pages_is_refused_with_both_numbers():
    engine = Engine(Runner(random_model(CONFIG), context=96, page_size=4, num_pages=8))
    with pytest.raises(CapacityError, match=r"stores 39 tokens; the KV cache holds 32"):
        submit(engine, [1] * 30, params=SamplingParams(max_tokens=10))
    assert len(events_of(engine, [1] * 30, max_tokens=3)) == 3


def test_an_image_is_embeddings_and_not_the_tokens_that_stand_for_it(engine):
    """The placeholder of an image is a token that is never drawn: its id may be beyond those that can be."""
    from gemworks.engine.types import SoftSpan

    rows_SD = np.random.default_rng(0).normal(0, 1, (5, CONFIG.model_dim)).astype(np.float32)
    span = SoftSpan(start=3, length=5, key="image", embed=lambda: rows_SD)
    answers = []
    for placeholder in (7, CONFIG.vocab_size, 10**6):
        prompt = [*PROMPT[:3], *[placeholder] * 5, *PROMPT[3:]]
        handle = submit(engine, prompt, spans=(span,), use_cache=False)
        answers.append([event.token_id for event in handle])
    assert (
        answers[0] == answers[1] == answers[2] != answer(engine, [*PROMPT[:3], *[7] * 5, *PROMPT[3:]], temperature=0.0)
    )


def test_stats_count_what_was_done():
    engine = Engine(Runner(random_model(CONFIG), context=96, num_sequences=2, page_size=4, num_local_pages=16))
    assert engine.stats().requests == engine.stats().steps == 0
    prompt = random_ids(CONFIG, 20, seed=8)
    for _ in range(2):
        list(submit(engine, prompt, params=SamplingParams(temperature=0.0, max_tokens=5)))
    stats = engine.stats()
    assert (stats.requests, stats.tokens_drawn, stats.tokens_cached) == (2, 10, 19)
    assert stats.tokens_prefilled == 20  # in chunks: the second prompt's last token was a row of its own
    # The first answer draws in its prefill step; a row may be launched that its stop id or limit makes superfluous.
    assert 4 + 5 <= stats.rows_decoded <= 4 + 5 + 2
    assert (stats.waiting, stats.running, stats.preemptions) == (0, 0, 0)
    assert stats.steps > 0 and stats.step_s > 0 and stats.host_s > 0
    assert stats.pages_free == stats.pages_total - 6  # 24 stored tokens stay in the prefix cache, once


def test_answer_without_limit_fills_the_context(engine):
    events = events_of(engine, [1] * 90, temperature=0.0)
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
        events_of(engine, logit_bias={160: 1.0})
