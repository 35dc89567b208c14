"""Callers: threads and event loops at once, loops left early, cancellation, deadlines, an engine that is closed."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
from driven_engine import CONFIG, DrivenEngine, Reference, collected, greedy, model, new_runner, resized
from small_models import random_ids

from gemworks.engine.engine import Engine
from gemworks.engine.handle import Handle
from gemworks.engine.types import Request, SamplingParams, TokenEvent
from gemworks.errors import BackendError


@pytest.fixture(scope="module")
def runner():
    return new_runner(model())


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(model())


@pytest.fixture
def driven(runner):
    engine = DrivenEngine(resized(runner))
    yield engine
    engine.check_empty()


@pytest.fixture
def engine(runner):
    """With its own thread."""
    engine = Engine(resized(runner))
    yield engine
    engine.close()


def asked(number: int) -> Request:
    params = SamplingParams(max_tokens=5 + number % 4, seed=number, temperature=(0.0, 1.0)[number % 2])
    return Request(
        prompt=tuple(random_ids(CONFIG, 1 + number * 7 % 40, seed=number % 5)), params=params, name=str(number)
    )


def wait_until(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def test_many_threads_and_an_event_loop_at_once(engine, reference):
    """Every caller gets its own answer, whole and in order."""
    answers: dict[int, tuple[Handle, list[TokenEvent]]] = {}

    def in_a_thread(numbers: range) -> None:
        for number in numbers:
            handle = engine.submit(asked(number))
            answers[number] = handle, list(handle)

    async def in_a_loop(numbers: range) -> None:
        async def one(number: int) -> None:
            handle = engine.submit(asked(number))
            answers[number] = handle, [event async for event in handle]

        await asyncio.gather(*(one(number) for number in numbers))

    threads = [threading.Thread(target=in_a_thread, args=(range(i * 5, i * 5 + 5),)) for i in range(6)]
    for thread in threads:
        thread.start()
    asyncio.run(in_a_loop(range(30, 40)))
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(answers) == list(range(40))
    for number, (handle, events) in answers.items():
        assert reference.check(asked(number), handle, events) == 5 + number % 4
    stats = engine.stats()
    assert (stats.requests, stats.waiting, stats.running) == (40, 0, 0)


def test_leaving_the_loop_early_frees_at_once(engine):
    free = engine.stats().pages_total
    stream = iter(engine.submit(greedy([3] * 20, 70, use_cache=False)))
    next(stream)
    assert engine.stats().running == 1
    stream.close()
    wait_until(lambda: engine.stats().running == 0)
    assert engine.stats().pages_free == free
    assert engine.stats().tokens_drawn < 70


def test_leaving_an_async_loop_early_frees_too(engine):
    free = engine.stats().pages_total

    async def some() -> None:
        events = aiter(engine.submit(greedy([3] * 20, 70, use_cache=False)))
        await anext(events)
        await events.aclose()

    asyncio.run(some())
    wait_until(lambda: engine.stats().running == 0)
    assert engine.stats().pages_free == free


def test_an_event_loop_that_is_gone_harms_nobody(engine, reference):
    """A loop that ends while its request runs: the engine goes on, and the request is cancelled."""

    async def begin() -> Handle:
        handle = engine.submit(greedy([3] * 20, 60))
        task = asyncio.ensure_future(anext(aiter(handle)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return handle

    asyncio.run(begin())
    handle = engine.submit(asked(1))
    reference.check(asked(1), handle, list(handle))
    wait_until(lambda: engine.stats().running == 0)


def test_cancel_ends_with_one_last_event(driven, reference):
    request = greedy(random_ids(CONFIG, 20), 40)
    handle, steps = driven.submit(request), 0

    def cancel_later() -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            handle.cancel()

    driven.between_steps = cancel_later
    driven.run_until_idle()
    events = collected(handle)
    assert events[-1] == TokenEvent(None, None, "cancelled") and 1 < len(events) < 10
    reference.check(request, handle, events)
    handle.cancel()  # of what has ended: nothing
    driven.run_until_idle()
    assert driven.stats().running == 0


def test_one_of_n_answers_can_be_cancelled(driven, reference):
    params = SamplingParams(max_tokens=12, seed=5, temperature=1.0)
    request = Request(prompt=tuple(random_ids(CONFIG, 9)), params=params, n=3)
    handle, steps = driven.submit(request), 0

    def cancel_later() -> None:
        nonlocal steps
        steps += 1
        if steps == 6:
            handle.cancel(1)

    driven.between_steps = cancel_later
    driven.run_until_idle()
    events = collected(handle)
    reference.check(request, handle, events)
    assert [[e.finish_reason for e in events if e.index == i][-1] for i in range(3)] == [
        "length",
        "cancelled",
        "length",
    ]


def test_a_request_that_waits_can_be_cancelled(driven):
    waiting = driven.submit(greedy([1] * 80, 8))
    waiting.cancel()
    driven.run_until_idle()
    assert collected(waiting) == [TokenEvent(None, None, "cancelled")]
    assert driven.stats().steps == 0


def test_deadlines_end_running_and_waiting_requests_with_what_they_have(runner, reference):
    now = 0.0

    def tick() -> None:
        nonlocal now
        now += 1.0

    engine = DrivenEngine(resized(runner, sequences=1), clock=lambda: now)
    engine.between_steps = tick
    requests = [
        greedy([9] * 5, 60, deadline_s=10.0),
        greedy([8] * 5, 6, deadline_s=5.0),
        greedy([7] * 5, 6, deadline_s=99.0),
    ]
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    events = [collected(handle) for handle in handles]
    for request, handle, got in zip(requests, handles, events, strict=True):
        reference.check(request, handle, got)
    assert [got[-1].finish_reason for got in events] == ["deadline", "deadline", "length"]
    assert 3 < len(events[0]) < 11 and events[1] == [TokenEvent(None, None, "deadline")]
    engine.check_empty()


def test_close_ends_what_runs_and_what_waits(runner):
    engine = Engine(resized(runner))
    handles = [engine.submit(greedy([i] * 10, 80)) for i in range(6)]
    next(iter(handles[0]))
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 10, "it computed to the end"
    ends = []
    for handle in handles[1:]:
        try:
            list(handle)
        except BackendError as error:
            ends.append(str(error))
    assert ends == ["this engine was closed; load the model again."] * 5
    with pytest.raises(BackendError, match="this engine was closed"):
        engine.submit(greedy([1], 1))
    engine.close()


def test_what_was_asked_just_before_close_does_not_hang(runner):
    for _ in range(20):
        engine = Engine(resized(runner))
        handle = engine.submit(greedy([1], 2))
        engine.close()
        try:
            assert len(list(handle)) == 2
        except BackendError:
            assert handle.is_done


def test_an_engine_nobody_has_is_collected(runner, monkeypatch):
    monkeypatch.setattr("gemworks.engine.worker.IDLE_S", 0.05)
    engine = Engine(resized(runner))
    list(engine.submit(greedy([1], 2)))
    gone = weakref.ref(engine)
    del engine

    def is_gone() -> bool:
        gc.collect()
        return gone() is None

    wait_until(is_gone)


def test_an_idle_thread_ends_and_comes_back(runner, monkeypatch):
    monkeypatch.setattr("gemworks.engine.worker.IDLE_S", 0.02)
    engine = Engine(resized(runner))
    first = [event.token_id for event in engine.submit(greedy([1, 2], 4))]
    wait_until(lambda: engine._worker._inbox.thread is None)
    assert [event.token_id for event in engine.submit(greedy([1, 2], 4))] == first
    engine.close()
