"""Speculation changes how soon tokens come, never which."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import random_ids, random_model, small_config
from table_model import PARAMS, LittleRunner, OracleSometimes, TableModel, decode, draw, speculate

from gemworks.engine.engine import Engine, EngineStats
from gemworks.engine.plan import Run
from gemworks.engine.runner import Runner
from gemworks.engine.sampler import RowSampler, row_params
from gemworks.engine.shapes import DRAFT_LENGTHS
from gemworks.engine.speculative import DraftChoice, DraftModel, PromptLookup, verify
from gemworks.engine.types import Request, SamplingParams


@pytest.mark.parametrize(
    ("draft", "drawn", "accepted"),
    [
        ([], [5], [5]),
        ([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]),
        ([1, 2, 3], [1, 9, 3, 4], [1, 9]),
        ([1, 2, 3], [7, 2, 3, 4], [7]),
        ([1], [1, 0], [1, 0]),
    ],
)
def test_the_draft_is_accepted_as_far_as_it_is_what_was_drawn(draft, drawn, accepted):
    assert verify(draft, drawn) == accepted


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "plain", "filtered", "hot"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_text_with_speculation_is_the_text_without(params, k):
    """To the token, whatever guesses and however well."""
    for seed in range(3):
        model = TableModel(12, seed)
        prompt = np.random.default_rng(seed).integers(0, 12, 9).tolist()
        expected = decode(model, prompt, params, 60)
        truth = [*prompt, *expected]
        steps = []
        for chance in (0.0, 0.5, 1.0):
            got, taken = speculate(model, prompt, params, 60, OracleSometimes(truth, 12, chance), k=k)
            assert got == expected
            steps.append(taken)
        assert steps[2] == -(-60 // (k + 1)) < steps[1] <= steps[0] <= 60
        assert speculate(model, prompt, params, 60, PromptLookup(12), k=k)[0] == expected
        drafting = functools.partial(DraftModel, LittleRunner(TableModel(12, seed + 50)), vocab=12)
        assert speculate(model, prompt, params, 60, drafting, k=k)[0] == expected


def test_an_engine_writes_the_same_texts_with_drafts_and_without(monkeypatch):
    """A random Gemma 3 whose window wraps, four guesses of five right: rings and pages are as if nothing was wrong."""
    config = small_config(window=8)
    config = small_config(window=8, layers=(config.layers[0], config.layers[5]))  # a local one and a global one
    runner = Runner(random_model(config), context=64, page_size=4, draft=DRAFT_LENGTHS[-1], chunks=(32,))
    asked = [SamplingParams(temperature=t, top_k=9, top_p=1.0, seed=s, max_tokens=30) for s, t in enumerate((0, 1, 3))]
    prompts = [tuple(random_ids(config, 7 + 5 * i, i)) for i in range(3)]

    def texts(new_proposer) -> tuple[list[list[int]], EngineStats]:
        engine, answers = Engine(runner, new_proposer=new_proposer), []
        for prompt, params in zip(prompts, asked, strict=True):
            handle = engine.submit(Request(prompt=prompt, params=params, use_cache=False))
            answers.append([event.token_id for event in handle])
        engine.close()
        return answers, engine.stats()

    expected, _ = texts(None)
    truth = dict(zip(prompts, expected, strict=True))

    def guesses(run: Run) -> OracleSometimes:
        return OracleSometimes([*run.request.prompt, *truth[run.request.prompt]], config.vocab_size, 0.8)

    for k in DRAFT_LENGTHS:
        # Whether it pays here or not.
        choice = DraftChoice(k, 0.0, 1.0)
        monkeypatch.setattr("gemworks.engine.drafting.choose_length", lambda *told, choice=choice, **more: choice)
        got, stats = texts(guesses)
        assert got == expected
        assert stats.drafts_proposed > stats.drafts_accepted > 10


def accept_if_likely(draft, drawn):
    """A wrong rule: a guess is taken for good half of the time that it is not what was drawn."""
    accepted = []
    for guess, token in zip(draft, drawn, strict=False):
        accepted.append(guess if (guess + token + len(accepted)) % 2 else token)
        if accepted[-1] != guess:
            return accepted
    return [*accepted, drawn[len(draft)]]


def chi_square(counts: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Return Pearson's statistic over cells with 5 or more expected, and its quantile at 1e-6 (Wilson and Hilferty)."""
    often = expected >= 5
    freedom = often.sum() - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 4.75 * np.sqrt(2 / (9 * freedom))) ** 3
    return float(((counts - expected)[often] ** 2 / expected[often]).sum()), float(limit)


def pairs_drawn(rule, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return counts of the answers' first two tokens over seeds, and what they should be: p(a) p(b | a).

    All seeds in one program: each has its own row, at index 0 and, after the guess, at index 1.
    """
    model = TableModel(6, 3, spread=1.0)
    guess = int(np.argmax(model.probs(0, 1)))
    samplers = [RowSampler(SamplingParams(top_k=6, top_p=1.0, seed=i), [], vocab=6) for i in range(samples)]
    tables = jnp.asarray(model.table)
    first = np.asarray(draw(6)(jnp.tile(tables[0, 1], (samples, 1)), row_params(samplers)))
    after_guess = np.asarray(draw(6)(jnp.tile(tables[1, guess], (samples, 1)), row_params(samplers, [1] * samples)))
    counts = np.zeros((6, 6))
    rest = []
    for i, (x, y) in enumerate(zip(first.tolist(), after_guess.tolist(), strict=True)):
        accepted = rule([guess], [x, y])
        if len(accepted) == 2:
            counts[accepted[0], accepted[1]] += 1
        else:
            rest.append((i, accepted[0]))
    second = row_params([samplers[i] for i, _ in rest], [1] * len(rest))
    nexts = draw(6)(tables[1, np.array([a for _, a in rest])], second)
    for (_, a), b in zip(rest, np.asarray(nexts).tolist(), strict=True):
        counts[a, b] += 1
    p = model.probs(0, 1)
    return counts.reshape(-1), samples * np.concatenate([p[a] * model.probs(1, a) for a in range(6)])


def test_speculation_leaves_the_distribution_as_it_was():
    """20,000 answers of two tokens, 36 cells, the first token guessed: chi-square below its 1e-6 quantile."""
    statistic, limit = chi_square(*pairs_drawn(verify, 20_000))
    assert statistic < limit


def test_a_wrong_rule_is_found_out():
    statistic, limit = chi_square(*pairs_drawn(accept_if_likely, 20_000))
    assert statistic > 10 * limit
