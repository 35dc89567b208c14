"""The scheduler against a device that checks every read, in whatever order requests, cancellations and faults come."""

import random

import pytest
from device_model import STOP, VOCAB, Harness, expected_answer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gemworks.engine.plan import Limits
from gemworks.engine.types import Request, SamplingParams, SoftSpan

CONTEXT = 40
TEXTS = [[(7 * i * i + 3 * i * k + k) % VOCAB for i in range(CONTEXT)] for k in range(3)]


@st.composite
def engines(draw) -> dict:
    """Sizes of an engine: windows of none to four pages, rings with and without spare slots, few pages and many."""
    size = draw(st.sampled_from([1, 2, 4]))
    window = draw(st.sampled_from([None, 1, 2, 3, 5, 8]))
    spare = draw(st.sampled_from([0, 3, 9]))
    slots = -(-((window or 1) + spare) // size) * size
    limits = Limits(
        max_sequences=draw(st.integers(1, 4)),
        context=CONTEXT,
        page_size=size,
        window=window,
        slots=slots,
        chunks=draw(st.sampled_from([(4, 8), (2, 4, 8, 16), (8,)])),
        draft=3 if window is None else min(3, slots - window),
    )
    return {
        "limits": limits,
        "num_pages": -(-CONTEXT // size) + 1 + draw(st.sampled_from([0, 3, 10, 60])),
        "num_local": draw(st.sampled_from([None, 2, 6, 12, 60])),
        "lag": draw(st.integers(0, 1)),
    }


def random_request(rng: random.Random, now: float, finished: list[list[int]]) -> Request:
    """A request; many share a beginning with another, or go on from an answer.

    From a random source, not a strategy: hypothesis would spend ten times the scheduler's time on drawing.
    """
    text = rng.choice([*TEXTS, *finished[-2:]])
    prompt = [*text[: rng.randint(1, 30)], *(rng.randrange(VOCAB) for _ in range(rng.randint(0, 3)))]
    room = CONTEXT - len(prompt)
    spans = []
    if len(prompt) > 6 and rng.random() < 0.25:
        start, length = rng.randint(0, len(prompt) - 4), rng.randint(1, 4)
        spans.append(SoftSpan(start=start, length=length, key=rng.randint(0, 1), embed=lambda: None))
    most = rng.choice([None, 1, 4, 9, 20, 30])
    few = rng.randrange(10)
    kind = "score" if few == 0 else "embed" if few == 1 else "generate"
    return Request(
        prompt=tuple(prompt),
        params=SamplingParams(
            max_tokens=most and min(most, room), seed=rng.randint(1, 2), stop_ids=rng.choice([(), (STOP,), (STOP, 1)])
        ),
        kind=kind,
        n=rng.choice([1, 1, 1, 3]) if kind == "generate" else 1,
        key=rng.choice("abc"),
        priority=rng.choice([0, 0, 0, 1, -1]),
        deadline_s=now + rng.randint(1, 60) if few == 2 else None,
        spans=tuple(spans),
        adapter=rng.choice([None, None, None, "x"]),
        score_from=rng.randint(1, len(prompt)),
        use_cache=few != 3,
    )


class Mixes(RuleBasedStateMachine):
    """Any order of requests, steps, cancellations and faults."""

    steps = 0
    counts = dict.fromkeys(("preemptions", "cached_tokens", "evictions"), 0)

    @initialize(sizes=engines())
    def start(self, sizes):
        self.harness = Harness(sizes.pop("limits"), **sizes)

    @rule(seed=st.integers(0, 2**32), count=st.integers(1, 6))
    def submit(self, seed, count):
        harness, rng = self.harness, random.Random(seed)
        for _ in range(count):
            if len(harness.live) < 16:
                harness.submit(random_request(rng, harness.clock.now, [run.tokens for run in harness.done]))

    @rule(seed=st.integers(0, 2**32), count=st.sampled_from([1, 3, 10, 30, 100]), busy=st.booleans())
    def step(self, seed, count, busy):
        """Compute some steps, with a request before every tenth or so if `busy`."""
        rng = random.Random(seed)
        for _ in range(count):
            if busy and rng.random() < 0.1:
                self.submit(rng.randrange(2**32), 1)
            self.harness.step()
            self.harness.scheduler.audit()

    @precondition(lambda self: self.harness.live)
    @rule(which=st.integers(0, 11))
    def cancel(self, which):
        runs = list(self.harness.live)
        self.harness.cancel(runs[which % len(runs)])

    @rule(seconds=st.integers(1, 30))
    def time_passes(self, seconds):
        self.harness.clock.now += seconds

    @precondition(lambda self: self.harness.live)
    @rule(which=st.integers(0, 11))
    def needs_the_host(self, which):
        runs = list(self.harness.live)
        runs[which % len(runs)].ahead = False

    @precondition(lambda self: self.harness.live)
    @rule(count=st.integers(1, 3), wrong=st.integers(0, 3))
    def draft(self, count, wrong):
        """Guess the next tokens of every run that waits for the host, of which one may be wrong."""
        for run in self.harness.live:
            if not run.ahead and run.request.kind == "generate":
                known = len(run.answer)
                guess = expected_answer(run.request, run.index, run.limit)[known : known + count]
                run.draft = [(token + (i == wrong)) % VOCAB for i, token in enumerate(guess)]

    @rule(pool=st.sampled_from(["pages", "local_pages", "rings"]), count=st.integers(1, 3))
    def allocation_fails(self, pool, count):
        if (pool := getattr(self.harness, pool)) is not None:
            pool.faults = count

    @precondition(lambda self: self.harness.live)
    @rule(acted=st.booleans(), guilty=st.integers(0, 5))
    def step_fails(self, acted, guilty):
        self.harness.fail(acted=acted, guilty=guilty)

    @rule(really=st.integers(0, 3))
    def cache_is_lost(self, really):
        if not really:
            self.harness.lose()

    @rule(really=st.integers(0, 3))
    def cache_is_dropped(self, really):
        if not really:
            self.harness.scheduler.drop_cache()

    @invariant()
    def audit(self):
        if hasattr(self, "harness"):
            self.harness.scheduler.audit()

    def teardown(self):
        if not hasattr(self, "harness"):
            return
        harness = self.harness
        for pool in (harness.pages, harness.rings, harness.local_pages):
            if pool is not None:
                pool.faults = 0
        harness.run_all(most=20_000)
        harness.check_empty()
        Mixes.steps += harness.steps
        for name in Mixes.counts:
            Mixes.counts[name] += getattr(harness.scheduler, name)


def run(examples: int, rules: int) -> int:
    """Run the machine and return how many steps were computed."""
    before = Mixes.steps
    run_state_machine_as_test(Mixes, settings=settings(max_examples=examples, stateful_step_count=rules))
    assert all(Mixes.counts.values()), f"something never happened: {Mixes.counts}"
    return Mixes.steps - before


def test_every_read_is_right_whatever_happens():
    assert run(60, 60) > 4_000


@pytest.mark.exhaustive
def test_every_read_is_right_for_100_000_steps():
    assert run(1_100, 60) > 100_000
