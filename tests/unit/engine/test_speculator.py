"""When to guess at all: what pays, what it may lose, and for whom."""

import numpy as np
import pytest
from table_model import OracleSometimes

from gemworks.engine.sampler import RowSampler
from gemworks.engine.shapes import DRAFT_LENGTHS
from gemworks.engine.speculative import PromptLookup, Speculator, can_speculate, choose_length
from gemworks.engine.types import SamplingParams


def flat(rows: int, columns: int) -> float:
    """A machine where columns cost a little: 0.1 of a step each."""
    return 1.0 + 0.1 * (rows * columns - 1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Replay:
    """Decodes a text that is known beforehand with a Speculator, and adds up what its steps would take."""

    def __init__(self, text, prompt: int, proposer, *, cost=flat, clock=None):
        self.text, self.at, self.cost, self.seconds, self.clock = text, prompt, cost, 0.0, clock or Clock()
        self.speculator = Speculator(proposer, clock=self.clock)
        self.drafts: list[int] = []

    def run(self, until: int) -> float:
        """Return the seconds of decoding up to there."""
        started = self.seconds
        while self.at < until:
            known = self.text[: self.at]
            self.speculator.observe(known)
            choice = choose_length([self.speculator], 1, self.cost)
            before = self.clock.now
            draft = self.speculator.draft(known, choice, until - self.at)
            self.seconds += self.clock.now - before + self.cost(1, choice.length + 1 if draft else 1)
            self.drafts.append(len(draft))
            truth = self.text[self.at : self.at + len(draft) + 1]
            self.at += len(self.speculator.verify(draft, [*truth, *[0] * (len(draft) + 1 - len(truth))]))
        return self.seconds - started


def novel(count: int, seed: int = 0, alphabet: int = 30) -> list[int]:
    """Text with words that come back, but not what follows them: matches that fail."""
    return np.random.default_rng(seed).integers(0, alphabet, count).tolist()


def test_copied_text_takes_fewer_seconds():
    source = novel(400, alphabet=10**5)
    replay = Replay([*source, *source[100:356]], 400, PromptLookup(10**6))
    assert 256 / replay.run(656) > 2.5
    assert replay.speculator.accepted / replay.speculator.proposed > 0.95
    assert max(replay.drafts) == DRAFT_LENGTHS[-1] and set(replay.drafts) <= {0, *range(8)}


@pytest.mark.parametrize("alphabet", [2, 4, 8, 30, 1000])
@pytest.mark.parametrize("cost", [flat, lambda rows, columns: 1.0 + 0.4 * (columns - 1)], ids=["cheap", "dear"])
def test_text_where_lookup_fails_loses_two_percent_at_most(alphabet, cost):
    """Whatever the alphabet: with two letters a guess is right half of the time, with eight trigrams mislead."""
    for seed in range(3):
        replay = Replay(novel(1256, seed, alphabet), 1000, PromptLookup(10**6), cost=cost)
        assert replay.run(1256) <= 1.02 * 256


def test_guesses_that_start_to_fail_are_given_up_and_taken_up_again():
    source = novel(300, alphabet=10**5)
    text = [*source, *source[:150], *novel(200, 5, alphabet=8), *source[:150]]
    replay = Replay(text, 300, PromptLookup(10**6))
    assert replay.run(450) < 75
    assert replay.run(650) <= 1.03 * 200
    replay.drafts.clear()
    assert replay.run(800) < 75


class Slow(OracleSometimes):
    """Takes half a step for each token, and a hundred steps to read a prompt."""

    def __init__(self, truth, vocab, chance, clock, guess_s=0.1):
        super().__init__(truth, vocab, chance)
        self.clock, self.guess_s, self.has_read, self.asked = clock, guess_s, False, []

    def read(self, tokens):
        self.clock.now += 0.0 if self.has_read else 100.0
        self.has_read = True

    def propose(self, tokens, k):
        self.clock.now += self.guess_s * k
        self.asked.append(len(tokens))
        return super().propose(tokens, k)


def test_a_drafting_model_that_is_right_is_used():
    clock, text = Clock(), novel(600)
    replay = Replay(text, 100, Slow(text, 30, 0.9, clock), clock=clock)
    assert replay.run(600) - 100 < 0.6 * 500


def test_a_drafting_model_that_is_wrong_or_slow_is_tried_ever_more_seldom():
    for chance, guess_s in ((0.0, 0.1), (0.9, 2.0), (0.2, 0.5)):
        clock, text = Clock(), novel(4100)
        replay = Replay(text, 100, Slow(text, 30, chance, clock, guess_s), clock=clock)
        assert replay.run(4100) - 100 <= 1.02 * 4000
        asked = np.array(replay.speculator._proposer.asked)
        assert len(asked) < 60
        assert (asked > 2100).sum() <= (asked <= 2100).sum()


def test_no_more_is_guessed_than_may_be_answered():
    source = novel(100, alphabet=10**5)
    replay = Replay([*source, *source], 100, PromptLookup(10**6))
    replay.run(160)
    known = [*source, *source[:60]]
    replay.speculator.observe(known)
    choice = choose_length([replay.speculator], 1, flat)
    assert choice.length == 7
    assert [len(replay.speculator.draft(known, choice, room)) for room in (0, 1, 2, 4, 8, 100)] == [0, 0, 1, 3, 7, 7]


def test_columns_that_one_text_would_use_are_not_paid_by_fifteen_others():
    source = novel(100, alphabet=10**5)
    copying = Replay([*source, *source], 100, PromptLookup(10**6))
    copying.run(140)
    copying.speculator.observe([*source, *source[:40]])
    other = Speculator(PromptLookup(10**6))
    other.observe(source)
    assert choose_length([copying.speculator], 1, flat).length == 7
    assert choose_length([copying.speculator, *[other] * 15], 16, flat).length == 0
    assert choose_length([copying.speculator] * 16, 16, lambda rows, columns: 1.0).length == 7
    assert choose_length([copying.speculator], 1, flat, longest=3).length == 3
    assert choose_length([], 4, flat).length == 0


def test_whose_drafts_a_step_can_check():
    def of(mask=None, **params) -> bool:
        return can_speculate(RowSampler(SamplingParams(**params), [], vocab=300, mask=mask))

    assert of() and of(temperature=0.0) and of(seed=1, top_k=5)
    assert not of(presence_penalty=1.0) and not of(logit_bias={1: 1.0}) and not of(mask=lambda answer: None)
    assert not of(top_k=0) and not of(logprobs=True)
