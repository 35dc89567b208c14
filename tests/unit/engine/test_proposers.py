"""What guesses the next tokens: prompt lookup against a search, a drafting model against decoding."""

import dataclasses
import functools

import numpy as np
import pytest
from table_model import PARAMS, LittleRunner, TableModel, decode, speculate

from gemworks.engine.sampler import RowSampler
from gemworks.engine.speculative import DraftModel, PromptLookup
from gemworks.engine.types import SamplingParams
from gemworks.errors import CapacityError


def search(tokens: list[int], vocab: int, k: int, longest: int = 16, look_back: int = 8) -> list[int]:
    """What PromptLookup should find, by looking at every place."""
    best, length_of_best, seen = -1, 0, 0
    for place in range(len(tokens) - 1, 2, -1):
        if tokens[place - 3 : place] != tokens[-3:] or seen == look_back:
            continue
        seen += 1
        length = 3
        while length < min(place, longest) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length > length_of_best:
            best, length_of_best = place, length
    if best < 0:
        return []
    text = list(tokens)
    while len(text) < len(tokens) + k and text[best + len(text) - len(tokens)] < vocab:
        text.append(text[best + len(text) - len(tokens)])
    return text[len(tokens) :]


@pytest.mark.parametrize("alphabet", [2, 4, 30])
def test_lookup_finds_what_a_search_finds(alphabet):
    rng = np.random.default_rng(alphabet)
    for _ in range(20):
        lookup, tokens = PromptLookup(vocab=alphabet - 1), rng.integers(0, alphabet, rng.integers(0, 40)).tolist()
        for _ in range(60):
            assert lookup.propose(tokens, 7) == search(tokens, alphabet - 1, 7)
            tokens += rng.integers(0, alphabet, rng.integers(1, 4)).tolist()


def test_lookup_takes_the_longest_match_and_then_the_latest():
    text = [9, 1, 2, 3, 50, 8, 1, 2, 3, 60, 7, 1, 2, 3, 70]
    assert PromptLookup(100).propose([*text, 8, 1, 2, 3], 1) == [60]
    assert PromptLookup(100).propose([*text, 4, 1, 2, 3], 1) == [70]


def test_lookup_goes_on_over_its_own_end():
    assert PromptLookup(100).propose([1, 2, 3, 4, 1, 2, 3], 7) == [4, 1, 2, 3, 4, 1, 2]
    assert PromptLookup(100).propose([5, 5, 5, 5], 3) == [5, 5, 5]


def test_lookup_does_not_search():
    """Constant work a token: reads of the text do not grow with its length."""

    class Counted(list):
        reads = 0

        def __getitem__(self, at):
            Counted.reads += 1
            return super().__getitem__(at)

    tokens, lookup, reads = Counted(), PromptLookup(10**6), []
    for i in range(4000):
        tokens.append(i % 7 if i % 3 else i)
        Counted.reads = 0
        lookup.propose(tokens, 3)
        reads.append(Counted.reads)
    assert max(reads[2000:]) <= max(reads[:2000]) <= 8 * 32 + 10


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "plain", "filtered", "hot"])
@pytest.mark.parametrize("spare", [None, 8, 0])
def test_a_model_that_drafts_for_itself_is_always_right(params, spare):
    """Same logits, seed and index give the same token: every draft is accepted whole, whatever had to be forgotten."""
    model = TableModel(12, 1)
    runner = LittleRunner(model, spare=spare)
    prompt = [1, 2, 3, 4, 5, 6]
    got, steps = speculate(model, prompt, params, 40, lambda s: DraftModel(runner, s, vocab=12), k=3)
    assert got == decode(model, prompt, params, 40) and steps == 10
    # The prompt, and then each token once: what was accepted is not computed again.
    if spare is None:
        assert runner.stored <= len(prompt) + 40


def test_a_similar_model_with_the_same_numbers_agrees_more_than_one_with_its_own():
    """Why the draft is drawn with the request's seed. Distributions: the target's, and one close to it."""
    target, close = TableModel(12, 1), TableModel(12, 1)
    close.table = close.table + np.random.default_rng(9).normal(0, 0.2, close.table.shape).astype(np.float32)
    params = SamplingParams(top_k=12, top_p=1.0, seed=4)

    def steps(draft_seed: int | None) -> int:
        def proposer(sampler):
            if draft_seed is not None:
                sampler = RowSampler(dataclasses.replace(params, seed=draft_seed), [], vocab=12)
            return DraftModel(LittleRunner(close), sampler, vocab=12)

        return speculate(target, [1, 2, 3], params, 200, proposer, k=3)[1]

    assert steps(None) < 0.7 * steps(99)


@pytest.mark.parametrize(("target_rows", "draft_rows"), [(12, 16), (16, 12), (12, 12)])
def test_vocabularies_of_different_rows(target_rows, draft_rows):
    """Drafts stay inside the target's, and what the drafting model has no row for is read as another id."""
    target, runner = TableModel(target_rows, 1, spread=1.0), LittleRunner(TableModel(draft_rows, 2, spread=1.0))
    params = SamplingParams(temperature=2.0, top_k=16, top_p=1.0, seed=2)
    proposed = []

    class Watched(DraftModel):
        def propose(self, tokens, k):
            draft = super().propose(tokens, k)
            proposed.extend(draft)
            return draft

    prompt = [0, target_rows - 1, 3]
    got, _ = speculate(target, prompt, params, 60, functools.partial(Watched, runner, vocab=target_rows))
    assert got == decode(target, prompt, params, 60)
    assert proposed and max(proposed) < target_rows


@pytest.mark.parametrize("spare", [None, 8, 2])
def test_what_was_not_accepted_is_forgotten(spare):
    """After every draft the drafting model's cache begins with the true text, whatever became of the draft before."""
    runner = LittleRunner(TableModel(4, 2), spare=spare)
    drafting = DraftModel(runner, RowSampler(SamplingParams(temperature=0.0), [], vocab=4), vocab=4)
    rng, text = np.random.default_rng(1), [3, 1, 2]
    for _ in range(60):
        k = int(rng.integers(1, 8))
        draft = drafting.propose(text, k)
        held = runner.sequences[0].tokens
        assert held[: len(text)] == text and held[len(text) :] == draft[:-1] and len(draft) == k
        # Often right for a while, then not; checked at once or after steps without a draft.
        text = [*text, *draft[: rng.integers(0, k + 1)], *rng.integers(0, 4, rng.integers(1, 4)).tolist()]


def test_drafting_ends_where_its_context_or_memory_does():
    sampler = RowSampler(SamplingParams(temperature=0.0), [], vocab=12)
    drafting = DraftModel(LittleRunner(TableModel(12, 1), context=10), sampler, vocab=12)
    assert [len(drafting.propose([1] * n, 3)) for n in (6, 8, 9, 10, 11)] == [3, 3, 2, 1, 0]
    full = LittleRunner(TableModel(12, 1), room=1)
    first, second = (DraftModel(full, sampler, vocab=12) for _ in range(2))
    assert first.propose([1, 2], 3) and not second.propose([1, 2], 3)
    first.close()
    assert full.sequences[0].freed
    full.room = 2
    assert second.propose([1, 2], 3)


def test_running_out_of_memory_in_a_draft_frees_it():
    runner = LittleRunner(TableModel(12, 1))
    drafting = DraftModel(runner, RowSampler(SamplingParams(temperature=0.0), [], vocab=12), vocab=12)
    before, runner.next_token = runner.next_token, lambda *_: (_ for _ in ()).throw(CapacityError("no page is free"))
    assert drafting.propose([1, 2, 3], 3) == [] and runner.sequences[0].freed
    runner.next_token = before
    assert len(drafting.propose([1, 2, 3], 3)) == 3


def test_reading_a_long_text_first_changes_nothing():
    text = np.random.default_rng(0).integers(0, 12, 50).tolist()
    sampler = RowSampler(SamplingParams(seed=3, top_k=12), [], vocab=12)
    plain, early = (DraftModel(LittleRunner(TableModel(12, 1)), sampler, vocab=12) for _ in range(2))
    early.read(text)
    calls = early._runner.calls
    assert plain.propose(text, 3) == early.propose(text, 3)
    assert early._runner.calls - calls == 3 and early._runner.stored == plain._runner.stored
