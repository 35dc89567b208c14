"""Shares, bounds and latency between keys: on the arithmetic alone, and in a simulation of one machine's time."""

import itertools
import random
from collections import Counter

import pytest
from device_model import Harness
from hypothesis import given
from hypothesis import strategies as st

from gemworks.engine.composer import PATIENCE
from gemworks.engine.fairness import AGEING, Turns, place, weight_of
from gemworks.engine.plan import Limits, StepPlan
from gemworks.engine.types import Request, SamplingParams

LIMITS = Limits(max_sequences=16, context=8192, page_size=16, window=512, slots=512, chunks=(16, 32, 64, 128, 256, 512))


def step_s(plan: StepPlan) -> float:
    """Return the seconds of a step of 1B int4 on two cores (measured): decode rows, and columns of a chunk, add up."""
    rows = 0.024 + 0.0027 * (len(plan.decode) - 1) if plan.decode else 0.0
    if plan.prefill is None:
        return rows
    chunk = next(size for size in LIMITS.chunks if size >= plan.prefill.count)
    return (rows or 0.024) + 0.00255 * chunk


class Blind:
    """Draws something for every row and looks at nothing: the prompts here are long, and reads are tested elsewhere."""

    def launch(self, plan: StepPlan) -> list[list[int]]:
        return [[5] if row.draws else [] for row in plan.rows]

    def check_cache(self, scheduler) -> None:
        pass


class Machine(Harness):
    """A harness in a machine's own time: a step begins when the one before is done, and is read when it is done."""

    def __init__(self, limits: Limits = LIMITS, num_pages: int = 4096, num_local: int = 1024):
        super().__init__(limits, num_pages=num_pages, num_local=num_local, step_s=lambda _: 0.0)
        self.device = Blind()
        self.times = {}  # run -> when it was submitted, then when each of its tokens came
        self.served = Counter()  # key -> tokens computed
        self.ready: list[float] = []  # when the steps in flight are done
        self.free_s = 0.0  # when the machine is
        self.rng = random.Random(0)

    def ask(self, key: str, prompt: int, answer: int, priority: int = 0):
        """Submit a prompt of random tokens."""
        ids = tuple(self.rng.randrange(10, 100_000) for _ in range(prompt))
        params = SamplingParams(max_tokens=answer)
        [run] = self.submit(Request(prompt=ids, params=params, key=key, priority=priority))
        self.times[run] = [self.clock.now]
        return run

    def launch(self, plan):
        super().launch(plan)
        self.free_s = max(self.free_s, self.clock.now) + step_s(plan)
        self.ready.append(self.free_s)
        self.scheduler.cost.observe(len(plan.decode), plan.prefill.count if plan.prefill else 0, step_s(plan))
        for row in plan.rows:
            self.served[row.run.request.key] += row.count

    def read(self):
        plan, _ = self.in_flight[0]
        self.clock.now = max(self.clock.now, self.ready.pop(0))
        known = {row.run: len(row.run.answer) for row in plan.rows}
        super().read()
        for row in plan.rows:
            self.times[row.run] += [self.clock.now] * (len(row.run.answer) - known[row.run])

    def finish(self, run, reason):
        self.done[run] = (reason, self.live.pop(run))


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))]


def one_after_the_other(machine: Machine, count: int) -> tuple[float, float]:
    """Return (p95 of time to first token, p95 of time between tokens) of short requests, the next when one is done."""
    first, between = [], []
    for _ in range(count):
        run = machine.ask("user", 128, 64)
        while run in machine.live:
            machine.step()
        times = machine.times[run]
        first.append(times[1] - times[0])
        between += [b - a for a, b in itertools.pairwise(times[1:])]
    return p95(first), p95(between)


@pytest.mark.parametrize("answer", [64, 512])
def test_bulk_of_one_key_does_not_spoil_the_latency_of_another(answer):
    """50 prompts of 4,000 tokens: p95 between tokens <= 2.5x, to the first token <= 3x that of an idle machine.

    Measured here, first token and between: 2.41x and 1.56x with answers of 64 tokens, 2.41x and 2.35x with 512.
    """
    idle_first, idle_between = one_after_the_other(Machine(), 20)
    machine = Machine()
    for _ in range(50):
        machine.ask("bulk", 4000, answer)
    for _ in range(100):
        machine.step()
    before = machine.served["bulk"]
    first, between = one_after_the_other(machine, 20)
    assert between <= 2.5 * idle_between and first <= 3 * idle_first
    # Nor is the bulk starved: what it gets is at least its share, half of the tokens, less a round or two.
    assert machine.served["bulk"] - before >= machine.served["user"] - 700


@pytest.mark.parametrize("priority", [0, 1, 2, -1])
def test_keys_share_in_proportion_to_their_weight(priority):
    """Both always have prompts to compute: tokens are as 1 to 2 ** priority."""
    machine = Machine()
    for _ in range(100):
        machine.ask("a", 700, 1)
        machine.ask("b", 700, 1, priority)
    while sum(machine.served.values()) < 40_000:
        machine.step()
    assert machine.served["b"] / machine.served["a"] == pytest.approx(2.0**priority, rel=0.1)


def test_key_of_many_rows_gives_up_a_ring_for_one_that_has_none():
    """All rings are taken by long answers; another key's short request does not wait for one to end."""
    machine = Machine()
    for _ in range(40):
        machine.ask("many", 32, 2000)
    while machine.rings.num_free:
        machine.step()
    run = machine.ask("few", 32, 4)
    steps = machine.steps
    while run in machine.live:
        machine.step()
    assert machine.steps - steps < 60 and machine.scheduler.preemptions <= 2


def test_key_of_many_pages_gives_some_up_for_one_within_its_share():
    machine = Machine(num_pages=401)
    for _ in range(10):
        machine.ask("many", 1000, 400)
    while machine.pages.num_free > 50:
        machine.step()
    run = machine.ask("few", 2000, 4)
    begun = machine.clock.now
    while run in machine.live:
        machine.step()
    # 2,000 tokens in chunks of 16 or 32, as many for the other key meanwhile.
    assert machine.clock.now - begun < 20
    machine.run_all()
    machine.check_empty()


def test_large_request_is_not_starved_by_a_stream_of_small_ones():
    """It needs more than its share of the pages, so it must wait until others have ended, but not for ever."""
    machine = Machine(num_pages=129)
    for _ in range(4):
        machine.ask("small", 200, 60)
    machine.step()
    large = machine.ask("large", 1900, 4)
    steps = 0
    while large.ring is None:
        while sum(run.request.key == "small" for run in machine.live) < 6:
            machine.ask("small", 200, 60)
        machine.step()
        steps += 1
        assert steps < PATIENCE + 800, "starved"


# -- turns by themselves ---------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.sampled_from([1, 7, 64]), st.sampled_from([0, 30, 512]), st.integers(1, 200))
def test_key_that_can_always_be_served_waits_no_longer_than_the_bound(seed, quantum, floor, most):
    """The bound of the module's docstring, with others that come and go and are charged for riding along."""
    rng, turns = random.Random(seed), Turns(quantum, floor)
    priority = {key: rng.randint(-1, 2) for key in range(5)}
    weights = {key: weight_of(level) for key, level in priority.items()}
    turns.enter(0)
    live, waited = {0}, 0
    others = sum(quantum * weights[key] + most for key in range(1, 5))
    bound = (min(most, floor) / (quantum * weights[0]) + 2) * others
    for _ in range(600):
        for key in range(1, 5):
            if rng.random() < 0.2:
                (turns.leave if key in live else turns.enter)(key)
                live ^= {key}
        able = {0} | {key for key in live if rng.random() < 0.8}
        chosen = turns.pick(able, {key: weights[key] for key in live})
        assert chosen in able
        tokens = rng.randint(1, most)
        waited = 0 if chosen == 0 else waited + tokens
        assert waited <= bound
        for key in {chosen, rng.choice(sorted(live))}:
            turns.charge(key, tokens, own_turn=key == chosen)
        assert all(turns.credit(key) >= -floor for key in live)


def test_turn_lasts_while_there_is_credit():
    turns = Turns(quantum=10, floor=100)
    turns.enter("a")
    turns.enter("b")
    order = []
    for _ in range(6):
        key = turns.pick({"a", "b"}, {"a": 1.0, "b": 1.0})
        order.append(key)
        turns.charge(key, 5, own_turn=True)
    assert order == ["b", "b", "a", "a", "b", "b"]


def test_coming_back_gives_no_second_quantum_in_a_round():
    """A key that sends many short requests one by one gets no more than one that sends them at once."""
    turns = Turns(quantum=10, floor=100)
    turns.enter("steady")
    served = Counter()
    for _ in range(300):
        turns.enter("visitor")
        key = turns.pick({"steady", "visitor"}, {"steady": 1.0, "visitor": 1.0})
        turns.charge(key, 5, own_turn=True)
        served[key] += 5
        turns.leave("visitor")
    assert served["steady"] == pytest.approx(served["visitor"], rel=0.05)


def test_place_of_a_run_is_arrival_less_what_its_priority_is_worth():
    assert place(100, 0) == 100 and place(100 + AGEING, 1) == 100
    assert place(0, 50) == place(0, 8), "priorities far apart would starve"
