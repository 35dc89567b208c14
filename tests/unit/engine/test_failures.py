"""What goes wrong in a step ends the requests it touched, by name, and nobody else's."""

import jax
import numpy as np
import pytest
from driven_engine import (
    CONFIG,
    DrivenEngine,
    Reference,
    collected,
    greedy,
    model,
    new_runner,
    random_adapter,
    resized,
)
from small_models import random_ids

from gemworks.engine.adapters import AdapterPool
from gemworks.engine.engine import Engine
from gemworks.engine.runner import Pending
from gemworks.engine.types import Request, SamplingParams, SoftSpan
from gemworks.errors import BackendError, RequestError

VOCAB = CONFIG.vocab_size
ADAPTERS = {"one": random_adapter(CONFIG, 1)}


@pytest.fixture(scope="module")
def runner():
    return new_runner(model())


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(model(), ADAPTERS)


@pytest.fixture
def engine(runner):
    pool = AdapterPool(CONFIG, slots=1, max_rank=3)
    pool.load("one", ADAPTERS["one"])
    engine = DrivenEngine(resized(runner), adapters=pool)
    yield engine
    engine.check_empty()


def texts(count: int) -> list[Request]:
    return [greedy(random_ids(CONFIG, 12 + 9 * i, seed=i), 10, name=f"request {i}") for i in range(count)]


def check_ends(engine, reference, requests, handles) -> list[str]:
    """Check the answers of all that ended well and return the errors of the others, "" for none."""
    errors = []
    for request, handle in zip(requests, handles, strict=True):
        try:
            reference.check(request, handle, collected(handle))
            errors.append("")
        except (BackendError, RequestError) as error:
            errors.append(str(error))
    assert not engine._live
    return errors


def fail_once(monkeypatch, where, name: str, on_call: int, error: Exception, before=lambda: None) -> list:
    """Make call number `on_call` of a method raise; return what is filled with its first argument then."""
    real, calls, failed = getattr(where, name), 0, []

    def maybe(*args, **told):
        nonlocal calls
        calls += 1
        if calls == on_call:
            before()
            failed.append(args[0])
            raise error
        return real(*args, **told)

    monkeypatch.setattr(where, name, maybe)
    return failed


@pytest.mark.parametrize("on_call", [1, 2, 3, 5, 8, 12])
def test_a_step_that_dies_before_it_runs_ends_its_own_requests(engine, runner, reference, monkeypatch, on_call):
    failed = fail_once(monkeypatch, runner, "launch", on_call, ValueError("a bad step"))
    requests = texts(5)
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    errors = check_ends(engine, reference, requests, handles)
    touched = {row.run.request.name for row in failed[0].rows}
    assert {request.name for request, error in zip(requests, errors, strict=True) if error} == touched
    for error in filter(None, errors):
        assert "a step of the engine raised ValueError: a bad step" in error
        assert all(name in error for name in touched)
    assert 0 < len(touched) < 5


@pytest.mark.parametrize("on_call", [2, 4, 7])
def test_a_result_that_cannot_be_read_ends_its_own_requests(engine, reference, monkeypatch, on_call):
    """The step after it is on its way by then, and what it computes for others is kept."""
    failed = fail_once(monkeypatch, Pending, "read", on_call, ValueError("unreadable"))
    requests = texts(5)
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    errors = check_ends(engine, reference, requests, handles)
    touched = {row.run.request.name for row in failed[0].plan.rows}
    assert {request.name for request, error in zip(requests, errors, strict=True) if error} == touched


@pytest.mark.parametrize("kind", ["generate", "score", "embed"])
@pytest.mark.parametrize("on_call", [2, 3, 4, 6, 9])
def test_a_step_that_takes_the_pools_along_has_the_others_recomputed(
    engine, runner, reference, monkeypatch, on_call, kind
):
    """A donated buffer that is gone: the device failed after it was given the cache."""

    def lose() -> None:
        for pool in runner._kv:
            pool.delete()

    failed = fail_once(monkeypatch, runner, "launch", on_call, RuntimeError("device lost"), lose)
    requests = [
        *texts(3),
        Request(
            prompt=tuple(random_ids(CONFIG, 60, seed=9)),
            kind=kind,
            name="other",
            params=SamplingParams(temperature=0.0, max_tokens=8),
        ),
    ]
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    errors = check_ends(engine, reference, requests, handles)
    touched = {row.run.request.name for row in failed[0].rows}
    assert {request.name for request, error in zip(requests, errors, strict=True) if error} == touched
    assert runner.is_intact()


def test_an_error_of_the_device_on_reading_has_the_others_recomputed(engine, reference, monkeypatch):
    fail_once(monkeypatch, Pending, "read", 4, jax.errors.JaxRuntimeError("INTERNAL: out of memory"))
    requests = texts(5)
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    errors = check_ends(engine, reference, requests, handles)
    assert any("out of memory" in error for error in errors) and "" in errors


@pytest.mark.parametrize("on_call", range(1, 6))
def test_a_copy_that_fails_leaves_no_wrong_cache_behind(engine, runner, reference, monkeypatch, on_call):
    """Saving a ring, loading one, copying a page: whichever fails, what comes after is right."""
    fail_once(monkeypatch, runner, "transfer", on_call, ValueError("no copy"))
    prompt = random_ids(CONFIG, 30)
    requests = [
        greedy(prompt, 6, name="first"),
        greedy([*prompt, 1, 2], 6, name="second"),
        greedy(prompt, 6, name="third"),
    ]
    failures = 0
    for request in requests * 2:
        handle = engine.submit(request)
        engine.run_until_idle()
        failures += check_ends(engine, reference, [request], [handle]) != [""]
    assert failures <= 1


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("adapter", [None, "one"])
@pytest.mark.parametrize("at", [0, 2])
def test_a_mask_that_allows_nothing_ends_its_request_only(engine, reference, n, adapter, at):
    def mask(answer: list[int]) -> np.ndarray | None:
        return np.zeros(VOCAB // 32, np.uint32) if len(answer) == at else None

    params = SamplingParams(max_tokens=6, seed=1)
    masked = Request(prompt=(1, 2, 3), params=params, mask=mask, n=n, adapter=adapter, name="masked")
    requests = [*texts(2), masked]
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    errors = check_ends(engine, reference, requests, handles)
    assert errors[:2] == ["", ""] and f"the mask allows no token after {at} answer tokens" in errors[2]


def test_a_mask_that_raises_ends_its_request_only(engine, reference):
    def mask(answer: list[int]) -> None:
        raise KeyError("grammar")

    requests = [*texts(2), greedy([1, 2, 3], 6, mask=mask)]
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    errors = check_ends(engine, reference, requests, handles)
    assert errors[:2] == ["", ""] and "the mask of this request raised KeyError" in errors[2]


@pytest.mark.parametrize(
    ("embed", "message"), [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: np.zeros((2, 2)), "must have embeddings")]
)
def test_an_encoder_that_fails_ends_its_request_only(engine, reference, embed, message):
    span = SoftSpan(start=1, length=4, key="broken", embed=embed)
    requests = [*texts(2), greedy([5] * 9, 6, spans=(span,))]
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle()
    errors = check_ends(engine, reference, requests, handles)
    assert errors[0] == "" and message in errors[2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its traceback is for the log
def test_an_engine_that_is_wrong_itself_tells_its_callers_and_goes_on(runner, reference, monkeypatch):
    """Not a step but the scheduler raises: everybody is told, and the next request finds a thread that works."""
    engine = Engine(resized(runner))
    real, calls = engine._scheduler.schedule, 0

    def broken(now):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise AssertionError("an invariant broke")
        return real(now)

    monkeypatch.setattr(engine._scheduler, "schedule", broken)
    handle = engine.submit(greedy([1, 2, 3], 30))
    with pytest.raises(Exception, match="an invariant broke"):
        list(handle)
    again = engine.submit(greedy([1, 2, 3], 5))
    assert reference.check(again.request, again, list(again)) == 5
    engine.close()


def test_an_adapter_in_use_cannot_be_unloaded(engine):
    handle = engine.submit(greedy([1, 2, 3], 6, adapter="one"))
    engine._worker.take_commands()
    with pytest.raises(Exception, match="must be idle to be unloaded"):
        engine._adapters.unload("one")
    engine.run_until_idle()
    collected(handle)
    with pytest.raises(RequestError, match=r'no adapter named "ome" is loaded\. Did you mean "one"'):
        engine.submit(greedy([1], 1, adapter="ome"))
