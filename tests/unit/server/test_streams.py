"""Streams end with their client: what nobody reads is not computed, and nothing is left half open."""

import asyncio

import pytest
from app_in_process import FakeServer
from fake_llm import FakeLLM

from gemworks.server.settings import LimitSettings, ModelSettings, Settings
from gemworks.server.streams import merged

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
BODIES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True, "n": 2}),
    ("/v1/completions", {"prompt": ["a", "b"]}),
    ("/v1/completions", {"prompt": ["a", "b"], "stream": True}),
    ("/v1/responses", {"input": "Hi"}),
    ("/v1/responses", {"input": "Hi", "stream": True}),
]


@pytest.fixture
def server(tmp_path):
    settings = Settings(
        usage_file=tmp_path / "usage.sqlite",
        models=ModelSettings(names=("tiny",)),
        limits=LimitSettings(stream_idle_s=1),
    )
    made = FakeServer(tmp_path, settings, llm=FakeLLM("word " * 40))
    yield made
    made.close()


async def until(condition, what):
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never came: {what}")


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("when", ["waiting", "amid"])
def test_a_client_that_goes_away_ends_its_call(server, path, body, when):
    llm, calls = server.llm, server.services.calls

    async def go():
        gone = asyncio.Event()
        if when == "waiting":
            llm.gate = asyncio.Event()
        else:
            llm.delay_s = 0.02
        asking = asyncio.create_task(server.ask("POST", path, body, gone=gone))
        await until(lambda: llm.running, "a running call")
        await asyncio.sleep(0.03)
        gone.set()
        answer = await asyncio.wait_for(asking, 5)
        await until(lambda: not llm.running and not calls.running, "the end of the call")
        return answer

    answer = server.run(go())
    assert not answer.is_whole or answer.status == 499
    assert calls.waiting == 0


def test_a_client_that_goes_before_the_first_read_cancels(server, monkeypatch):
    """The call is queued and its generator was never begun: closing that runs none of it."""
    cancelled = []
    monkeypatch.setattr("fake_llm.FakeAsk.cancel", lambda ask, index=None: cancelled.append(ask))

    async def go():
        gone = asyncio.Event()

        async def leave(piece):
            gone.set()
            await asyncio.sleep(10)

        await asyncio.wait_for(server.ask("POST", *BODIES[1], gone=gone, take=leave), 5)

    server.run(go())
    assert cancelled and not server.llm.running


def test_a_client_that_reads_nothing_is_given_up(server):
    from gemworks.server.record import SlowReader

    async def go():
        async def never(piece):
            await asyncio.sleep(60)

        with pytest.raises(SlowReader):
            await asyncio.wait_for(server.ask("POST", *BODIES[1], take=never), 10)

    server.run(go())
    assert server.services.calls.running == 0


def test_a_slow_client_delays_nobody(server):
    async def go():
        taken = asyncio.Event()

        async def slow(piece):
            await taken.wait()

        first = asyncio.create_task(server.ask("POST", *BODIES[1], take=slow))
        await asyncio.sleep(0.05)
        whole = await asyncio.wait_for(server.ask("POST", "/v1/chat/completions", CHAT | {"stream": True}), 5)
        taken.set()
        return whole, await first

    for answer in server.run(go()):
        assert answer.is_whole and answer.events[-1] == "[DONE]"


def test_the_server_ending_a_task_is_no_clients_doing(server):
    """A cancelled task stays cancelled: only a client's going is swallowed."""

    async def go():
        server.llm.gate = asyncio.Event()
        asking = asyncio.create_task(server.ask("POST", *BODIES[0]))
        await until(lambda: server.llm.running, "a running call")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    server.run(go())
    assert server.services.calls.running == 0


def test_merged_streams_keep_their_order_and_raise_what_one_raises():
    async def count(to, fail=False):
        for i in range(to):
            await asyncio.sleep(0)
            yield i
        if fail:
            raise ValueError("one")

    async def go():
        got = [pair async for pair in merged([count(200), count(3), count(0)])]
        assert [i for place, i in got if place == 0] == list(range(200))
        assert [i for place, i in got if place == 1] == [0, 1, 2]
        with pytest.raises(ValueError, match="one"):
            async for _ in merged([count(3, fail=True), count(10**6)]):
                pass
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())
