"""What a call passes: draining, the queue, its key's limits; and what is written down when it ends."""

import asyncio
from types import SimpleNamespace

import pytest

from gemworks.engine.types import Timings
from gemworks.errors import CapacityError, LimitError, RequestError
from gemworks.llm.answers import Completion
from gemworks.server.calls import Calls
from gemworks.server.keys import Caller
from gemworks.server.limits import Limits
from gemworks.server.metrics import Metrics
from gemworks.server.record import Record
from gemworks.server.settings import LimitSettings


class Clock:
    def __init__(self):
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Office:
    """Calls with what they need; `ended` has the records of those that are over."""

    def __init__(self, **limits):
        settings = LimitSettings(**limits)
        self.clock, self.ended = Clock(), []
        self.metrics = Metrics(["tiny"])
        self.calls = Calls(
            settings.queue, Limits(settings, clock=self.clock), self.metrics, self.ended.append, clock=self.clock
        )

    def admit(self, name="", model="tiny"):
        record = Record(id="r", method="POST", path="/v1/chat/completions", started=self.clock.now)
        state = SimpleNamespace(record=record, caller=Caller(name=name), fair_key=name or "10.0.0.1")
        return self.calls.admit(SimpleNamespace(state=state), route="chat", model=model)

    def metric(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"gemworks_{name}", labels)


def completion(tokens=3, reason="length", cached=1):
    timings = Timings(queue_s=0.25, cached_tokens=cached)
    return Completion(text="secret", prompt_tokens=7, completion_tokens=tokens, finish_reason=reason, timings=timings)


async def one_call(office):
    async with office.admit() as call:
        call.done()


def test_a_call_is_written_down_with_its_counts():
    office = Office()

    async def run():
        async with office.admit("ann") as call:
            assert (call.key, call.priority) == ("ann", 0)
            call.charge(7, 6)
            office.clock.now += 0.5
            call.first_token()
            office.clock.now += 0.02
            call.token(2)
            call.done([completion(3, "stop"), completion(2)])

    asyncio.run(run())
    (record,) = office.ended
    assert (record.outcome, record.model, record.call) == ("done", "tiny", "chat")
    assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 5, 1)
    assert record.finish_reasons == ["stop", "length"]
    assert record.first_token_s == 0.5 and record.queue_s == 0.25
    assert office.metric("time_to_first_token_seconds_sum", model="tiny") == 0.5
    assert office.metric("inter_token_seconds_count", model="tiny") == 2
    assert office.metric("inter_token_seconds_sum", model="tiny") == pytest.approx(0.02)
    assert office.metric("tokens_total", kind="prompt", model="tiny") == 7
    assert office.metric("tokens_total", kind="completion", model="tiny") == 5


def test_the_first_token_may_come_by_token():
    office = Office()

    async def run():
        async with office.admit() as call:
            office.clock.now += 0.25
            call.token(1)
            call.done(completion())

    asyncio.run(run())
    assert office.ended[0].first_token_s == 0.25
    assert office.metric("inter_token_seconds_count", model="tiny") == 0


def test_embeddings_have_no_completion():
    office = Office()

    async def run():
        async with office.admit() as call:
            call.charge(9)
            call.done(prompt_tokens=9)

    asyncio.run(run())
    assert (office.ended[0].outcome, office.ended[0].prompt_tokens, office.ended[0].completion_tokens) == ("done", 9, 0)


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (None, "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (RequestError("x"), "failed"),
        (KeyError("x"), "failed"),
        (CapacityError("x"), "refused"),
    ],
)
def test_a_call_that_leaves_without_done_is_written_down_too(raised, outcome):
    office = Office(concurrency=1)

    async def run():
        async with office.admit():
            if raised is not None:
                raise raised

    if raised is None:
        asyncio.run(run())
    else:
        with pytest.raises(type(raised)):
            asyncio.run(run())
    (record,) = office.ended
    assert record.outcome == outcome
    assert record.error == ("" if outcome == "cancelled" else type(raised).__name__)
    assert (office.calls.waiting, office.calls.running) == (0, 0)
    asyncio.run(one_call(office))  # its place is free


def test_a_full_queue_is_429_with_when_to_come_back():
    office = Office(queue=2)

    async def run():
        async with office.admit(), office.admit() as second:
            with pytest.raises(LimitError, match="2 calls wait already") as caught:
                async with office.admit():
                    pass
            assert 1 <= caught.value.retry_after_s <= 60
            second.first_token()  # has left the queue, though it is not done
            async with office.admit():
                assert office.calls.waiting == 2 and office.calls.running == 3

    asyncio.run(run())
    assert office.metric("refused_total", reason="queue") == 1
    assert (office.calls.waiting, office.calls.running) == (0, 0)


def test_a_full_queue_tells_a_time_that_grows_with_the_time_calls_take():
    office = Office(queue=100)

    async def one(seconds):
        async with office.admit() as call:
            office.clock.now += seconds
            call.first_token()

    for _ in range(50):
        asyncio.run(one(0.01))
    quick = office.calls.retry_after_s()
    for _ in range(50):
        asyncio.run(one(2.0))
    assert quick == 1.0 and 10 < office.calls.retry_after_s() <= 60


def test_while_draining_new_calls_are_refused_and_running_ones_finish():
    office = Office()

    async def run():
        entered, leave = asyncio.Event(), asyncio.Event()

        async def running():
            async with office.admit() as call:
                entered.set()
                await leave.wait()
                call.done(completion())

        task = asyncio.create_task(running())
        await entered.wait()
        office.calls.drain()
        with pytest.raises(CapacityError, match="is stopping"):
            async with office.admit():
                pass
        idle = asyncio.create_task(office.calls.idle())
        await asyncio.sleep(0)
        assert not idle.done()
        leave.set()
        await task
        await asyncio.wait_for(idle, 1)

    asyncio.run(run())
    assert [record.outcome for record in office.ended] == ["done"]


def test_a_token_limit_is_charged_before_and_settled_after():
    office = Office(tokens_per_minute=30)

    async def run():
        async with office.admit("ann") as call:
            call.charge(7, 20)
            with pytest.raises(LimitError):
                call.charge(1, 20)
            call.done(completion(1))
        async with office.admit("ann") as call:  # 7 + 1 are taken, not 27
            call.charge(2, 20)
            call.done(completion(1))

    asyncio.run(run())
    assert office.metric("refused_total", reason="tokens") == 1


def test_what_failed_at_once_is_free_and_what_was_cancelled_pays_for_what_it_took():
    office = Office(tokens_per_minute=30)

    async def run(error, drawn):
        async with office.admit("ann") as call:
            call.charge(10, 15)
            for _ in range(drawn):
                call.token(1)
            raise error

    for _ in range(3):
        with pytest.raises(RequestError):
            asyncio.run(run(RequestError("x"), 0))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run(asyncio.CancelledError(), 5))
    assert (office.ended[-1].prompt_tokens, office.ended[-1].completion_tokens) == (10, 5)
    with pytest.raises(LimitError, match="15 are taken"):
        asyncio.run(run(RequestError("x"), 0))


def test_a_model_that_is_not_in_the_list_is_counted_as_other():
    office = Office()

    async def run():
        async with office.admit(model="x" * 1000) as call:
            call.charge(3)
            call.done(completion())

    asyncio.run(run())
    assert office.ended[0].model == "other"
    assert office.metric("tokens_total", kind="prompt", model="other") == 3
