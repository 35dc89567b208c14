"""Admission, chunks, groups, preemption, ends and errors of the scheduler, on a device that checks every read."""

import pytest
from device_model import STOP, VOCAB, Harness, expected_answer
from hypothesis import given
from hypothesis import strategies as st

from gemworks.engine.cost import StepCost, solve
from gemworks.engine.fairness import AGEING
from gemworks.engine.plan import Limits, SaveRing
from gemworks.engine.types import Request, SamplingParams, SoftSpan
from gemworks.errors import CapacityError, RequestError

SIZE = 4


def harness(num_pages: int = 200, num_local: int | None = 100, lag: int = 1, **changes) -> Harness:
    sizes = dict(max_sequences=4, context=64, page_size=SIZE, window=8, slots=8, chunks=(4, 8))
    return Harness(Limits(**sizes | changes), num_pages=num_pages, num_local=num_local, lag=lag)


def request(prompt, answer: int | None = 1, stop: tuple[int, ...] = (), **changes) -> Request:
    return Request(prompt=tuple(prompt), params=SamplingParams(max_tokens=answer, stop_ids=stop), **changes)


def text(length: int, seed: int = 1) -> list[int]:
    return [(i * i * seed + 5 * i + seed) % VOCAB for i in range(length)]


def image(start: int, length: int, key: int = 0) -> SoftSpan:
    return SoftSpan(start=start, length=length, key=key, embed=lambda: None)


# -- what can never fit ----------------------------------------------------------------------------------------------


def test_too_long_for_the_context_is_refused_with_both_numbers():
    with pytest.raises(RequestError, match=r"needs 70 tokens \(60 prompt \+ 10 answer\); the context holds 64"):
        harness().submit(request(text(60), 10))
    with pytest.raises(RequestError, match="needs 65 tokens; the context holds 64"):
        harness().submit(request(text(65), kind="score"))
    with pytest.raises(RequestError, match="the prompt has no tokens"):
        harness().submit(request([]))


def test_too_large_for_the_cache_is_refused_with_both_numbers():
    engine = harness(num_pages=11)
    with pytest.raises(CapacityError, match="stores 44 tokens; the KV cache holds 40"):
        engine.submit(request(text(40), 5))
    [run] = engine.submit(request(text(40), 1))
    engine.run_all()
    assert engine.done[run][0] == "length"


def test_answer_without_a_limit_ends_where_context_or_cache_does():
    for num_pages, total in ((100, 64), (11, 41)):  # the last token of an answer is not stored
        engine = harness(num_pages=num_pages)
        [run] = engine.submit(request(text(20), None))
        engine.run_all()
        assert engine.done[run][0] == "length" and len(run.tokens) == total


def test_image_longer_than_a_chunk_is_refused_with_both_numbers():
    with pytest.raises(RequestError, match="9 tokens must be computed in one chunk; the largest of this engine has 8"):
        harness().submit(request(text(20), spans=(image(3, 9),)))


def test_refused_request_leaves_nothing_behind():
    engine = harness()
    with pytest.raises(RequestError):
        engine.submit(request(text(65)))
    assert engine.scheduler.num_waiting == 0 and engine.scheduler.schedule(0.0) is None
    engine.check_empty()


# -- chunks ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(1, 8)), max_size=3))
def test_chunks_cover_the_prompt_once_and_cut_no_image(length, places):
    """The device model refuses a chunk that ends in an image; here: also none twice, none too long."""
    spans, end = [], 0
    for start, count in sorted(places):
        if start >= end and start + count <= length:
            spans.append(image(start, count))
            end = start + count
    engine = harness()
    [run] = engine.submit(request(text(length), kind="score", spans=tuple(spans)))
    covered = []
    while run in engine.live:
        plan = engine.scheduler.schedule(0.0)
        if plan is not None:
            covered += [range(row.start, row.start + row.count) for row in plan.rows]
            engine.launch(plan)
        if engine.in_flight:
            engine.read()
    assert [position for chunk in covered for position in chunk] == list(range(length))
    assert all(len(chunk) <= 8 for chunk in covered)
    engine.check_empty()


def test_one_key_alone_computes_as_much_as_it_can():
    """Every row decodes beside the largest chunk, whatever the step is predicted to take."""
    engine = harness(max_sequences=4)
    for seed in range(1, 4):
        engine.submit(request(text(9, seed), 30))
    for _ in range(8):
        engine.step()
    engine.submit(request(text(40, 7), 5))
    plan = engine.scheduler.schedule(0.0)
    assert len(plan.decode) == 3 and plan.prefill.count == 8
    engine.launch(plan)
    engine.run_all()


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 8, 21])
def test_n_answers_compute_their_prompt_once(length):
    engine = harness()
    runs = engine.submit(request(text(length), 6, n=4))
    assert [run.index for run in runs] == [0, 1, 2, 3] and [run.order for run in runs] == [0, 1, 2, 3]
    engine.run_all()
    # Three others each compute the prompt's last token, to draw from it.
    assert engine.tokens == length + 3 + 4 * 5
    assert [run.cached_tokens for run in runs] == [0] + [length - 1] * 3
    engine.check_empty()


def test_group_goes_on_when_its_first_run_is_cancelled_in_the_prompt():
    engine = harness()
    runs = engine.submit(request(text(30), 5, n=3))
    engine.step()
    engine.cancel(runs[0])
    engine.run_all()
    assert [engine.done[run][0] for run in runs] == ["cancelled", "length", "length"]


# -- ends ------------------------------------------------------------------------------------------------------------


def test_stop_id_that_is_read_a_step_late_ends_the_answer_there():
    for seed in range(1, 12):
        engine = harness()
        [run] = engine.submit(request(text(10, seed), 40, stop=(STOP,)))
        engine.run_all()
        assert run.answer == expected_answer(run.request, 0, 40) and STOP not in run.answer
        engine.check_empty()


def test_cancel_frees_at_once():
    engine = harness()
    runs = [engine.submit(request(text(20, seed), 20))[0] for seed in (1, 2)]
    for _ in range(5):
        engine.step()
    for run in runs:
        engine.cancel(run)
    assert engine.rings.num_free == 4 and engine.scheduler.num_running == 0
    engine.run_all()
    engine.check_empty()


def test_deadline_ends_a_run_that_draws_and_one_that_waits():
    engine = harness(max_sequences=1)
    [draws] = engine.submit(request(text(5), 50, deadline_s=10.0))
    [waits] = engine.submit(request(text(5, 2), 50, deadline_s=6.0))
    engine.run_all()
    assert engine.done[draws][0] == engine.done[waits][0] == "deadline"
    assert 0 < len(draws.answer) < 12 and waits.answer == []


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
def test_draft_is_accepted_as_far_as_it_is_right(wrong):
    engine = harness(slots=12, draft=3)
    [run] = engine.submit(request(text(10), 20))
    run.ahead = False
    while not run.answer:
        engine.step()
    known = len(run.answer)
    right = expected_answer(run.request, 0, 20)[known : known + 3]
    run.draft = [(token + (i == wrong)) % VOCAB for i, token in enumerate(right)]
    while len(run.answer) == known:
        engine.step()
    assert len(run.answer) == known + 1 + (3 if wrong is None else wrong)
    assert run.computed == len(run.tokens) - 1 and run.drawn == len(run.answer)
    engine.run_all()


# -- order and preemption --------------------------------------------------------------------------------------------


def finished_in(engine: Harness) -> list[int]:
    return [run.order for run in engine.done]


def test_within_a_key_priority_comes_first_then_arrival():
    engine = harness(max_sequences=1)
    for priority in (0, 0, 2, 1):
        engine.submit(request(text(5, priority + 1), 3, priority=priority))
    engine.run_all()
    assert finished_in(engine) == [2, 3, 0, 1]


def test_a_stream_of_urgent_requests_does_not_starve_a_patient_one():
    """It is overtaken by fewer than AGEING later ones for each level of priority."""
    engine = harness(max_sequences=1)
    [patient] = engine.submit(request(text(5), 2, priority=0))
    for _ in range(3 * AGEING):
        engine.submit(request(text(5, 2), 2, priority=1))
    engine.run_all()
    overtaken_by = finished_in(engine).index(patient.order)
    assert 0 < overtaken_by <= AGEING


def test_running_out_of_pages_preempts_the_youngest_and_everything_ends():
    engine = harness(num_pages=17, num_local=20)
    runs = [engine.submit(request(text(8, seed), 50))[0] for seed in range(1, 5)]
    engine.run_all()
    assert engine.scheduler.preemptions > 0
    assert all(engine.done[run] == ("length", expected_answer(run.request, 0, 50)) for run in runs)
    assert finished_in(engine)[0] == 0, "the oldest was not the first to end"
    engine.check_empty()


def test_preempted_run_waits_before_new_ones():
    engine = harness(max_sequences=1)
    [first] = engine.submit(request(text(8), 20))
    for _ in range(6):
        engine.step()
    engine.submit(request(text(8, 2), 3, priority=2))
    engine.scheduler._composer.preempt(engine.scheduler._queues.entries[first])
    engine.run_all()
    assert finished_in(engine) == [0, 1]


def test_run_with_a_draw_on_its_way_is_not_resumed_before_it_is_read():
    """Else the same token would be drawn twice."""
    engine = harness(max_sequences=1)
    [run] = engine.submit(request(text(8), 9))
    engine.launch(engine.scheduler.schedule(0.0))
    assert run.drawn == 1 and not run.answer
    engine.scheduler._composer.preempt(engine.scheduler._queues.entries[run])
    plan = engine.scheduler.schedule(0.0)
    assert plan is None or not plan.rows
    if plan is not None:
        engine.launch(plan)
    engine.run_all()
    assert len(run.answer) == 9


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("acted", [False, True])
def test_step_that_dies_ends_its_runs_and_leaves_no_false_belief(acted):
    """Saves of the dead step may not have happened, so what they were for is forgotten."""
    engine = harness()
    [done] = engine.submit(request(text(20), 5))
    while done in engine.live:
        engine.step()
    [guilty] = engine.submit(request(text(12, 3), 5))
    pending = [action for action in engine.scheduler._alloc.actions if isinstance(action, SaveRing)]
    assert pending, "nothing to lose: the test does not test what it should"
    engine.fail(acted=acted, guilty=1)
    assert engine.done[guilty][0] == "error"
    engine.submit(request(done.tokens, 5))
    engine.run_all()
    engine.check_empty()


def test_run_whose_copies_died_with_the_step_starts_again():
    engine = harness()
    engine.submit(request(text(21)))
    engine.run_all()
    [run] = engine.submit(request([*text(18), 1, 2], 9))
    engine.fail(acted=False, guilty=0)
    assert run.ring is None and run.computed == 0
    engine.run_all()
    assert engine.done[run][0] == "length"


def test_lost_cache_is_computed_again_with_the_tokens_that_are_known():
    engine = harness()
    runs = [engine.submit(request(text(9, seed), 20))[0] for seed in (1, 2, 3)]
    for _ in range(9):
        engine.step()
    known = [len(run.answer) for run in runs]
    engine.lose()
    assert engine.scheduler.num_running == 0 and [len(run.answer) for run in runs] == known
    assert engine.scheduler.cached_pages == 0
    engine.run_all()
    engine.check_empty()


# -- cost ------------------------------------------------------------------------------------------------------------


def test_cost_is_sane_before_the_first_step():
    cost = StepCost()
    steps = [cost.predict(rows, chunk) for rows, chunk in ((1, 0), (2, 0), (16, 0), (16, 64), (16, 512))]
    assert steps == sorted(steps) and steps[0] > 0


@given(st.floats(0.001, 0.1), st.floats(0.0005, 0.02), st.floats(0.0002, 0.02))
def test_cost_learns_a_machine_from_a_few_shapes(base, row, column):
    """Shapes that were not seen come from the plane through those that were."""
    cost = StepCost()
    for rows, chunk in ((1, 0), (4, 0), (16, 0), (1, 16), (4, 128), (0, 512)):
        for _ in range(5):
            cost.observe(rows, chunk, base + row * rows + column * chunk)
    for rows, chunk in ((8, 0), (2, 64), (16, 256)):
        true = base + row * rows + column * chunk
        assert cost.predict(rows, chunk) == pytest.approx(true, rel=0.35)
    assert cost.predict(4, 128) == pytest.approx(base + row * 4 + column * 128, rel=1e-6)


def test_one_slow_step_does_not_change_the_estimate_much():
    cost = StepCost()
    for _ in range(20):
        cost.observe(4, 0, 0.03)
    cost.observe(4, 0, 3.0)
    assert cost.predict(4, 0) < 0.034
    for _ in range(40):
        cost.observe(4, 0, 0.06)
    assert cost.predict(4, 0) == pytest.approx(0.06, rel=0.05)


@given(st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=3, max_size=3), st.data())
def test_solve_solves(factor, data):
    matrix = [
        [sum(a * b for a, b in zip(u, v, strict=True)) + (i == j) for j, v in enumerate(factor)]
        for i, u in enumerate(factor)
    ]
    x = data.draw(st.lists(st.floats(-5, 5), min_size=3, max_size=3))
    right = [sum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]
    assert solve(matrix, right) == pytest.approx(x, abs=1e-6)


def test_who_left_a_moment_ago_does_not_come_back_to_a_full_step():
    """A key that is alone gets the largest chunks, but not while another is only between two short requests."""
    engine = harness(context=4096, num_pages=2000, num_local=1000, chunks=(4, 8, 16, 32, 64))
    engine.submit(request(text(4000), key="long"))

    def largest_chunk(steps: int) -> int:
        before = len(chunks)
        for _ in range(steps):
            engine.step()
        return max(chunks[before:])

    chunks, launch = [], engine.launch
    engine.launch = lambda plan: (chunks.append(plan.prefill.count if plan.prefill else 0), launch(plan))
    assert largest_chunk(4) == 64
    engine.submit(request(text(5, seed=2), key="short"))
    while any(run.request.key == "short" for run in engine.live):
        engine.step()
    assert largest_chunk(8) < 64  # a step is a second here
    assert largest_chunk(12) == 64
