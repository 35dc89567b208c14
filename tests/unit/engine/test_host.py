"""Models that are names and sizes: who is loaded, who has to go, and that the budget holds at every moment."""

import random
import threading
import time
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gemworks.engine.host import ModelHost
from gemworks.errors import CapacityError, CheckpointError, LimitError

GB = 10**9
SIZES = {"a": 2 * GB, "b": 3 * GB, "c": 4 * GB, "d": 5 * GB, "e": 6 * GB, "huge": 99 * GB}


class World:
    """What is really in memory, and when it is."""

    def __init__(self, budget=10 * GB):
        self.budget, self.now = budget, 0.0
        self.in_memory, self.loads, self.closed, self.failing = Counter(), Counter(), [], set()
        self.loading, self.lock = 0, threading.Lock()
        self.before_load = lambda name: None

    def load(self, name):
        with self.lock:
            self.loading += 1
            assert self.loading == 1, "two models were loaded at once"
            self.in_memory[name] += 1
            self.check()
        try:
            self.before_load(name)
            if name in self.failing:
                with self.lock:
                    self.in_memory[name] -= 1
                raise CheckpointError(f"{name}: the file is damaged.")
            self.loads[name] += 1
            return name
        finally:
            with self.lock:
                self.loading -= 1

    def close(self, name):
        time.sleep(1e-5)
        with self.lock:
            self.in_memory[name] -= 1
            assert self.in_memory[name] == 0
            self.closed.append(name)

    def check(self):
        assert sum(SIZES[name] * count for name, count in self.in_memory.items()) <= self.budget

    def host(self, **more):
        return ModelHost(
            self.budget, self.load, size=SIZES.__getitem__, close=self.close, clock=lambda: self.now, **more
        )


@pytest.fixture
def world():
    return World()


def names(host):
    return [model.name for model in host.models()]


def test_a_model_is_loaded_once_and_lent_to_all(world):
    host = world.host()
    with host.get("a") as one, host.get("a") as two:
        assert one is two
        assert host.models()[0].leases == 2
    assert world.loads == {"a": 1}
    assert host.models()[0].leases == 0


def test_the_model_used_longest_ago_goes_first(world):
    host = world.host(keep_alive_s=None)
    for name in ("a", "b", "c"):  # 9 of 10
        host.get(name).release()
        world.now += 1
    host.get("a").release()  # so b is the one
    with host.get("d"):  # 5 more: b (3) is not enough, c goes too
        assert world.closed == ["b", "c"]
        assert names(host) == ["d", "a"]


def test_nobody_is_unloaded_for_a_model_that_would_not_fit_all_the_same(world):
    host = world.host()
    host.get("a").release()
    with host.get("d"), pytest.raises(CapacityError) as refused:
        host.get("e")
    assert world.closed == []
    assert str(refused.value) == (
        "e needs 6.00 GB of memory; the models of this process may take 10.00 GB, of which 5.00 GB are in use and "
        "5.00 GB can be had: d 5.00 GB by 1 request.\n"
        "Ask again when they are done, or give the models more memory."
    )


def test_so_many_models_and_no_more(world):
    host = world.host(most=2, keep_alive_s=60)
    host.get("a", keep_alive_s=None).release()  # kept for ever: goes last
    host.get("b").release()
    with host.get("c"):
        assert world.closed == ["b"] and names(host) == ["c", "a"]
        with host.get("a"), pytest.raises(LimitError, match="2 models may be loaded, and all of them are in use"):
            host.get("b")
    assert world.closed == ["b"]


def test_without_a_budget_only_the_number_counts():
    world = World(budget=10**15)
    host = ModelHost(None, world.load, size=lambda name: 0, close=world.close, most=3)
    for name in ("huge", "a", "b", "c"):
        host.get(name).release()
    assert world.closed == ["huge"]


def test_a_model_that_is_there_is_lent_without_waiting(world):
    host = world.host(keep_alive_s=60)
    assert host.lend("a", keep_alive_s=5) is None and world.loads == {}
    host.get("a").release()
    lease = host.lend("a", keep_alive_s=5)
    assert lease.model == "a" and host.model("a").leases == 1
    lease.release()
    assert host.model("a").expires_at == 5 and host.keep("a", 7) and host.model("a").expires_at == 7
    assert host.keep("b", 7) is False and host.model("b") is None
    world.now = 7
    assert host.expire() is None and world.closed == ["a"]
    host.close()
    assert host.lend("a", keep_alive_s=5) is None


def test_a_model_in_use_is_never_unloaded_and_its_users_are_counted(world):
    host = world.host()
    first, second = host.get("d"), host.get("d")
    with host.get("b"), pytest.raises(CapacityError) as refused:
        host.get("c")
    assert str(refused.value) == (
        "c needs 4.00 GB of memory; the models of this process may take 10.00 GB, of which 8.00 GB are in use and "
        "2.00 GB can be had: d 5.00 GB by 2 requests, b 3.00 GB by 1 request.\n"
        "Ask again when they are done, or give the models more memory."
    )
    first.release()
    second.release()
    assert host.get("c").model == "c"
    assert world.closed == ["b"]  # 2 GB were missing: the one released first is enough


def test_a_model_larger_than_all_there_is_says_so(world):
    host = world.host()
    host.get("a").release()
    with pytest.raises(CapacityError, match=r"huge needs 99\.00 GB of memory; the models .* may take 10\.00 GB\.\nUse"):
        host.get("huge")
    assert names(host) == ["a"]


def test_an_idle_model_stays_for_its_time(world):
    host = world.host(keep_alive_s=60)
    with host.get("a"):
        world.now = 1000
        assert host.expire() is None  # in use: no end
    with host.get("b", keep_alive_s=10):
        pass
    host.get("c", keep_alive_s=None).release()
    assert {model.name: model.expires_at for model in host.models()} == {"a": 1060, "b": 1010, "c": None}
    assert host.expire() == 10
    world.now = 1010
    assert host.expire() == 50
    assert world.closed == ["b"]
    world.now = 2000
    host.get("c").release()
    assert world.closed == ["b", "a"]


def test_keep_alive_zero_unloads_at_the_last_release(world):
    host = world.host()
    lease, other = host.get("a", keep_alive_s=0), host.get("a", keep_alive_s=0)
    lease.release()
    assert world.closed == []
    other.release()
    assert world.closed == ["a"]


def test_unload_waits_for_the_last_user_and_a_new_one_keeps_the_model(world):
    host = world.host()
    assert host.unload("a") is False
    lease = host.get("a")
    assert host.unload("a") is False
    again = host.get("a")
    lease.release()
    again.release()
    assert world.closed == []
    assert host.unload("a") is True
    lease = host.get("a")
    host.unload("a")
    lease.release()
    assert world.closed == ["a", "a"]


def test_a_lease_is_released_once(world):
    host = world.host()
    lease, other = host.get("a"), host.get("a")
    lease.release()
    lease.release()
    assert host.models()[0].leases == 1
    with pytest.raises(AssertionError, match="the lease on a was released"):
        _ = lease.model
    other.release()


def test_a_failed_load_leaves_its_room_to_others(world):
    host = world.host()
    world.failing = {"d"}
    for _ in range(3):
        with pytest.raises(CheckpointError, match="d: the file is damaged"):
            host.get("d")
    assert host.free_bytes == 10 * GB
    world.failing = set()
    assert host.get("d").model == "d"


def test_an_unknown_name_is_the_size_function_s_error(world):
    with pytest.raises(KeyError):
        world.host().get("nobody")
    assert world.loads == {}


def test_after_close_idle_models_are_gone_and_leases_end_with_theirs(world):
    host = world.host()
    lease = host.get("a")
    host.get("b").release()
    host.close()
    assert world.closed == ["b"]
    with pytest.raises(CapacityError, match="this process is shutting down"):
        host.get("c")
    lease.release()
    assert world.closed == ["b", "a"]


@pytest.mark.parametrize("fails", [False, True])
def test_threads_that_want_a_model_that_is_loading_share_it(world, fails):
    """Nine wait while the tenth loads; nobody else can take the model away before they have it."""
    host, started = world.host(keep_alive_s=0), threading.Event()
    go = threading.Event()

    def before_load(name):
        started.set()
        assert go.wait(10)

    world.before_load = before_load
    world.failing = {"d"} if fails else set()
    results, held = [], threading.Barrier(1 if fails else 11)

    def want():
        try:
            with host.get("d") as model:
                results.append(model)
                held.wait(10)
        except CheckpointError as error:
            results.append(str(error))

    threads = [threading.Thread(target=want) for _ in range(10)]
    threads[0].start()
    assert started.wait(10)
    for thread in threads[1:]:
        thread.start()
    while host._loading.waiting < 9:  # all have come
        threading.Event().wait(0.001)
    go.set()
    if not fails:
        held.wait(10)
    for thread in threads:
        thread.join(10)
    assert results == (["d: the file is damaged."] if fails else ["d"]) * 10
    assert world.loads["d"] == (0 if fails else 1)
    assert world.closed == ([] if fails else ["d"])


def test_room_that_is_being_given_back_is_waited_for(world):
    """A model that is closing still takes its memory: the next one is loaded after it, not beside it."""
    closing, go = threading.Event(), threading.Event()

    def close(name):
        closing.set()
        assert go.wait(10)
        world.close(name)

    host = ModelHost(world.budget, world.load, size=SIZES.__getitem__, close=close, clock=lambda: world.now)
    for name in ("d", "b"):
        host.get(name).release()
    unloading = threading.Thread(target=host.unload, args=("d",))
    unloading.start()
    assert closing.wait(10)
    loading = threading.Thread(target=lambda: host.get("d").release())
    loading.start()
    loading.join(0.05)
    assert world.loads["d"] == 1
    go.set()
    unloading.join(10)
    loading.join(10)
    assert world.loads["d"] == 2
    assert world.closed == ["d"]  # b stayed: waiting was enough


def test_a_model_that_is_closing_is_not_loaded_beside_itself(world):
    """Even where there would be room for both."""
    closing, go = threading.Event(), threading.Event()

    def close(name):
        closing.set()
        assert go.wait(10)
        world.close(name)

    host = ModelHost(world.budget, world.load, size=SIZES.__getitem__, close=close, clock=lambda: world.now)
    host.get("a").release()
    unloading = threading.Thread(target=host.unload, args=("a",))
    unloading.start()
    assert closing.wait(10)
    loading = threading.Thread(target=lambda: host.get("a").release())
    loading.start()
    loading.join(0.05)
    assert world.loads["a"] == 1
    go.set()
    unloading.join(10)
    loading.join(10)
    assert (world.loads["a"], world.closed, names(host)) == (2, ["a"], ["a"])


def test_threads_at_random_never_pass_the_budget(world):
    """Eight threads, 1,200 uses: World asserts the budget and one loader at every load, and no double close."""
    host, failures = world.host(keep_alive_s=1.0), []
    world.before_load = lambda name: time.sleep(1e-4)

    def work(seed):
        rng = random.Random(seed)
        try:
            for _ in range(150):
                name = rng.choice("abcd")
                try:
                    with host.get(name, keep_alive_s=rng.choice([0.0, 1.0, None])) as model:
                        assert model == name and world.in_memory[name] == 1
                        time.sleep(rng.random() * 1e-4)
                        if rng.random() < 0.1:
                            host.unload(name)
                        assert world.in_memory[name] == 1
                except CapacityError:
                    pass
                if rng.random() < 0.1:
                    world.now += 0.5
                    host.expire()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    host.close()
    assert not +world.in_memory
    assert host.free_bytes == world.budget
    assert sum(world.loads.values()) == len(world.closed)


class Hosting(RuleBasedStateMachine):
    """Any order of calls in one thread, against what must be true of names and leases."""

    def __init__(self):
        super().__init__()
        self.world = World()
        self.host = self.world.host(keep_alive_s=5.0)
        self.leases = []

    @rule(name=st.sampled_from("abcd"), keep=st.sampled_from(["host", 0.0, 3.0, None]))
    def get(self, name, keep):
        in_use = sum(SIZES[n] for n in {lease.model for lease in self.leases})
        fits = name in [lease.model for lease in self.leases] or in_use + SIZES[name] <= self.world.budget
        try:
            self.leases.append(self.host.get(name, keep_alive_s=keep))
        except CapacityError:
            assert not fits
        else:
            assert fits

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data):
        self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))).release()

    @rule(name=st.sampled_from("abcd"))
    def unload(self, name):
        self.host.unload(name)

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0]))
    def wait(self, seconds):
        self.world.now += seconds
        left = self.host.expire()
        assert left is None or left > 0

    @invariant()
    def what_is_used_is_loaded_and_nothing_is_forgotten(self):
        used = Counter(lease.model for lease in self.leases)
        models = {model.name: model for model in self.host.models()}
        assert {name: model.leases for name, model in models.items() if model.leases} == dict(used)
        assert set(models) == set(+self.world.in_memory)
        self.world.check()
        assert self.host.free_bytes == self.world.budget - sum(model.num_bytes for model in models.values())


TestHosting = Hosting.TestCase
TestHosting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
