"""Models by name: loaded once however many ask, kept while used, let go as settings say; paths never."""

import asyncio
import gc
import threading
import time
import weakref

import pytest
from fake_llm import FakeLLM

from gemworks.errors import CapacityError, ConfigError, LimitError, NotFoundError
from gemworks.server.host import ModelHost
from gemworks.server.settings import ModelSettings
from gemworks.weights import hub, store


class Loads:
    def __init__(self):
        self.names, self.made, self.seconds = [], [], 0.0

    def __call__(self, name):
        self.names.append(name)
        time.sleep(self.seconds)
        self.made.append(FakeLLM(name=name))
        return self.made[-1]


@pytest.fixture
def loads(monkeypatch):
    """Two models beside tiny that this machine has: a created one and a pulled one."""
    monkeypatch.setattr(store, "created_exists", lambda name: name.removesuffix(":latest") in ("pirate", "poet"))
    monkeypatch.setattr(hub, "pulled", lambda repository: None)
    real = hub.resolve
    monkeypatch.setattr(hub, "resolve", lambda name: real("tiny"))
    return Loads()


def host(loads, size=None, **told):
    return ModelHost(ModelSettings(**({"names": ("tiny",)} | told)), load=loads, size=size)


def test_who_asks_together_shares_a_load(loads):
    loads.seconds = 0.05
    made = host(loads)

    async def ask():
        async with made.use(None) as loaded:
            return loaded.llm

    async def go():
        leaver = asyncio.create_task(ask())
        others = [asyncio.create_task(ask()) for _ in range(4)]
        await asyncio.sleep(0.01)
        leaver.cancel()
        return await asyncio.gather(*others)

    assert len(set(map(id, asyncio.run(go())))) == 1
    assert loads.names == ["tiny"]


def test_a_load_does_not_stop_the_event_loop(loads):
    loads.seconds = 0.3
    made = host(loads)

    async def go():
        use = asyncio.create_task(made.use("tiny").__aenter__())
        beats = 0
        while not use.done():
            await asyncio.sleep(0.01)
            beats += 1
        return beats

    assert asyncio.run(go()) > 5


def test_a_load_that_fails_is_told_and_tried_again(loads):
    def fail(name):
        loads.names.append(name)
        raise ConfigError("cannot be loaded.")

    made = host(fail)

    async def go():
        for _ in range(2):
            with pytest.raises(ConfigError, match="cannot be loaded"):
                async with made.use("tiny"):
                    pass

    asyncio.run(go())
    assert loads.names == ["tiny", "tiny"]


def test_models_go_when_their_time_is_over_and_not_while_they_are_used(loads):
    made = host(loads, max_loaded=3, keep_alive_s=0.05)

    async def go():
        async with made.use("pirate") as loaded:
            await asyncio.sleep(0.15)
            assert not loaded.llm.closed and loaded.expires_at is None
        assert loaded.expires_at is not None
        await asyncio.sleep(0.3)
        assert loaded.llm.closed and made.loaded() == []
        async with made.use("tiny") as served:  # of the command line: stays
            pass
        await asyncio.sleep(0.1)
        assert made.loaded() == [served] and served.expires_at is None
        async with made.use("poet", keep_alive=-1):
            pass
        await asyncio.sleep(0.15)
        assert {one.name for one in made.loaded()} == {"tiny", "poet"}
        async with made.use("poet", keep_alive=0):
            pass
        await asyncio.sleep(0.15)
        assert {one.name for one in made.loaded()} == {"tiny"}

    asyncio.run(go())


def test_unloading_waits_for_the_last_user(loads):
    made = host(loads)

    async def go():
        async with made.use("tiny") as loaded:
            assert await made.unload("tiny")
            assert not loaded.llm.closed
        await asyncio.sleep(0.1)
        assert loaded.llm.closed and not await made.unload("tiny")
        async with made.use("tiny") as again:  # and comes back when asked for
            assert again.llm is not loaded.llm

    asyncio.run(go())


def test_the_idle_model_used_longest_ago_makes_room(loads):
    made = host(loads, max_loaded=2)

    async def go():
        for name in ("tiny", "pirate", "poet"):
            async with made.use(name):
                pass
        assert {one.name for one in made.loaded()} == {"tiny", "poet"}  # served ones go last
        async with made.use("tiny"), made.use("poet"):
            with pytest.raises(LimitError, match="in use"):
                async with made.use("pirate"):
                    pass
        await made.close()
        assert all(llm.closed for llm in loads.made)

    asyncio.run(go())


def test_models_stay_within_their_bytes(loads):
    """The idle one used longest ago goes, served ones last; what is in use never does."""
    sizes = {"tiny": 2_000, "pirate": 3_000, "poet": 4_000}
    made = host(loads, size=sizes.__getitem__, memory_bytes=8_000, max_loaded=9)

    async def go():
        for name in ("tiny", "pirate", "poet"):
            async with made.use(name):
                pass
        assert [one.name for one in made.loaded()] == ["tiny", "poet"]
        async with made.use("poet"):
            with pytest.raises(LimitError, match=r"pirate needs .* in use.*: poet .* by 1 request") as refused:
                sizes["pirate"] = 5_000
                async with made.use("pirate"):
                    pass
            assert refused.value.retry_after_s > 0
            assert [one.name for one in made.loaded()] == ["tiny", "poet"], "nobody went for what would not fit"
        sizes["pirate"] = 9_000
        with pytest.raises(CapacityError, match="Use a smaller format") as refused:
            async with made.use("pirate"):
                pass
        assert not isinstance(refused.value, LimitError), "waiting would not help"

    asyncio.run(go())
    assert [llm.name for llm in loads.made if llm.closed] == ["pirate"]


def test_a_limit_without_sizes_counts_files(loads):
    made = host(loads, memory_bytes=10)

    async def go():
        with pytest.raises(CapacityError, match="tiny needs"):
            async with made.use("tiny"):
                pass

    asyncio.run(go())
    assert loads.names == []


def test_a_model_that_is_gone_is_held_by_nobody(loads):
    made = host(loads)

    async def go():
        async with made.use("tiny") as loaded:
            assert (loaded.users, loaded.keep_alive_s) == (1, float("inf"))
        gone = weakref.ref(loaded.llm)
        del loaded
        loads.made.clear()
        await made.unload("tiny")
        return gone

    gone = asyncio.run(go())
    gc.collect()
    assert gone() is None


def test_a_model_that_is_asked_for_while_it_goes_comes_back(loads):
    made = host(loads, max_loaded=1, any_local=True)

    async def ask(name):
        for _ in range(20):
            async with made.use(name) as loaded:
                assert not loaded.llm.closed
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    async def go():
        await asyncio.gather(*(retried(ask, name) for name in ("tiny", "pirate", "poet")))
        await made.close()

    async def retried(ask, name):
        while True:
            try:
                return await ask(name)
            except LimitError:
                await asyncio.sleep(0.002)

    asyncio.run(go())
    assert all(llm.closed for llm in loads.made)


@pytest.mark.parametrize(
    "name", ["./tiny", "/etc", "../x", "~/m", "a/../../b", "m.gguf", "C:\\m", "", "x\0y", "e" * 5000]
)
def test_a_request_never_names_a_path(loads, name):
    with pytest.raises(NotFoundError, match="not found"):
        host(loads).resolve(name)


def test_names_are_those_of_this_machine(loads):
    made = host(loads)
    assert made.resolve("tiny:latest") == "tiny" and made.resolve("pirate:latest") == "pirate"
    assert host(loads, names=("gemma3:1b",)).resolve("google/gemma-3-1b-it") == "gemma3:1b"
    with pytest.raises(NotFoundError, match="model 'gpt-4o' not found"):
        made.resolve("gpt-4o")
    with pytest.raises(NotFoundError):
        host(loads, any_local=False).resolve("pirate")
    assert threading.current_thread() is threading.main_thread()
