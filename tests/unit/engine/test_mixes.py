"""Every answer equals the same request alone: random mixes of everything an engine can be asked, driven step by step.

The expected answers are computed without any cache (driven_engine.py). A mix is made from its number alone
(random_mixes.py); one that fails says its number and can be run again with `check_mixes([number], ...)`.
"""

import dataclasses
import random

import numpy as np
import pytest
from driven_engine import DrivenEngine, Reference, collected, greedy, model, new_runner, resized, wraps
from random_mixes import ADAPTERS, IMAGES, VOCAB, DraftsOfAnOracle, Mix, adapter_pool

from gemworks.engine.types import SoftSpan

QUICK, FULL = 10, 500


@pytest.fixture(scope="module")
def runner():
    return new_runner(model())


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(model(), ADAPTERS)


class Seen:
    """What the mixes had in them, so that a mix that tests nothing is noticed."""

    def __init__(self):
        self.tokens = self.preemptions = self.cached = self.cancelled = self.deadlines = 0
        self.accepted = self.proposed = 0
        self.wraps: set[int] = set()
        self.kinds: set[str] = set()

    def add(self, engine: DrivenEngine, mix: Mix, reference: Reference) -> None:
        """Compare every request of a mix and count."""
        for request, handle in mix.asked:
            events = collected(handle)
            self.tokens += reference.check(request, handle, events)
            self.cancelled += sum(event.finish_reason == "cancelled" for event in events)
            self.deadlines += sum(event.finish_reason == "deadline" for event in events)
            self.wraps.add(wraps(len(request.prompt) + len(events)))
            self.kinds |= {
                request.kind,
                *(["image"] * bool(request.spans)),
                *([request.adapter] if request.adapter else []),
            }
        stats = engine.stats()
        self.preemptions += stats.preemptions
        self.cached += stats.tokens_cached
        engine.check_empty()


def check_mixes(numbers, runner, reference) -> Seen:
    seen = Seen()
    for number in numbers:
        mix = Mix(number)
        engine = mix.run(runner)
        try:
            seen.add(engine, mix, reference)
        except BaseException as error:
            error.add_note(f"mix {number}")
            raise
    return seen


def test_quick_mixes(runner, reference):
    """The first 10 of 500; the others are in `test_all_mixes`."""
    seen = check_mixes(range(QUICK), runner, reference)
    assert seen.tokens > 150 and seen.cached > 50


@pytest.mark.exhaustive
def test_all_mixes(runner, reference):
    seen = check_mixes(range(QUICK, FULL), runner, reference)
    assert seen.tokens > 10_000 and seen.cached > 5_000 and seen.preemptions > 100
    assert seen.cancelled > 50 and seen.deadlines > 10
    assert seen.wraps >= set(range(6)) and seen.kinds >= {"generate", "score", "embed", "image", *ADAPTERS}


@pytest.fixture(scope="module")
def drafting_runner():
    return new_runner(model(), draft=3)


def check_drafts(numbers, runner, reference) -> Seen:
    seen = Seen()
    for number in numbers:
        plain = Mix(number)
        plain.has_adapters = False
        plain.run(runner)
        answers = {}
        for request, handle in plain.asked:
            events = collected(handle)
            for i in range(request.n):
                answers[request.name, i] = [e.token_id for e in events if e.index == i and e.token_id is not None]
        # The same requests, all there from the start: with drafts other things are in flight when others come.
        mix = Mix(number)
        mix.arrivals, made = [0] * len(plain.asked), iter([request for request, _ in plain.asked])
        mix.request = lambda _, made=made: dataclasses.replace(next(made), deadline_s=None)
        oracle = DraftsOfAnOracle(answers, random.Random(number), 3)
        engine = mix.run(runner, oracle)
        seen.add(engine, mix, reference)
        seen.proposed, seen.accepted = seen.proposed + oracle.proposed, seen.accepted + oracle.accepted
    return seen


@pytest.mark.exhaustive
def test_mixes_with_drafts(drafting_runner, reference):
    """Rows that carry guesses, right and wrong, give what rows without them give. Short forms: test_speculative.py."""
    seen = check_drafts(range(1000, 1100), drafting_runner, reference)
    assert seen.proposed > seen.accepted > 300 and seen.preemptions > 5


def test_a_request_in_a_mix_is_the_request_alone(runner, reference):
    """The claim word for word: a fresh engine with one sequence and no prefix cache."""
    compared = 0
    for number in range(2000, 2006):
        mix = Mix(number)
        mix.run(runner)
        for request, handle in mix.asked:
            events = collected(handle)
            if request.kind != "generate" or {event.finish_reason for event in events} & {"cancelled", "deadline"}:
                continue
            alone = resized(runner, sequences=1, local_pages=0)
            pool = adapter_pool() if request.adapter else None
            for i in range(request.n):
                seed = request.params.seed + i
                params = dataclasses.replace(request.params, seed=seed)
                one = dataclasses.replace(request, params=params, n=1, deadline_s=None)
                expected = DrivenEngine(alone, adapters=pool).answer(one)
                got = [event for event in events if event.index == i]
                assert [e.token_id for e in got] == [e.token_id for e in expected]
                compared += len(got)
    assert compared > 100


def test_images_in_the_same_text_are_told_apart(runner, reference):
    """The prefix cache knows an image by its key: the tokens that stand for it are always the same."""
    resized(runner, local_pages=30)
    engine = DrivenEngine(runner)
    cached = []
    for key in ("image 0", "image 1", "image 0"):
        rows = IMAGES[key].astype(np.float32)
        span = SoftSpan(start=2, length=8, key=key, embed=lambda rows=rows: rows)
        request = greedy([5, 6, *[VOCAB - 1] * 8, *range(12)], 6, spans=(span,), name=key)
        handle = engine.submit(request)
        engine.run_until_idle()
        assert reference.check(request, handle, collected(handle)) == 6
        cached.append(handle.timings().cached_tokens)
    assert cached == [0, 0, 21]
