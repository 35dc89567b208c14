"""The pool of adapters: slots, who may be evicted, what is refused, and that the matrices are in their places."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from small_models import small_config

from gemworks.engine.adapters import AdapterPool
from gemworks.errors import CapacityError, ConfigError, RequestError
from gemworks.model.lora import TARGETS, target_shape
from gemworks.weights.adapter import LoraAdapter, LoraDelta

CONFIG = small_config(num_layers=2)


def adapter(rank: int = 2, targets=("q", "down"), layers=(0, 1), seed: int = 0) -> LoraAdapter:
    rng = np.random.default_rng(seed)

    def delta(target):
        F, D = target_shape(CONFIG, target)
        return LoraDelta(rng.normal(size=(rank, D)).astype(np.float32), rng.normal(size=(F, rank)).astype(np.float32))

    return LoraAdapter("somewhere", {(layer, target): delta(target) for layer in layers for target in targets})


def pool(slots: int = 2, max_rank: int = 4, **options) -> AdapterPool:
    return AdapterPool(CONFIG, slots=slots, max_rank=max_rank, **options)


def test_matrices_lie_in_their_slots_padded_with_zeros():
    own, one, two = pool(slots=3), adapter(rank=2, seed=1), adapter(rank=4, targets=("q", "up"), layers=(1,), seed=2)
    assert (own.load("one", one), own.load("two", two)) == (1, 2)
    for i, layer in enumerate(own.adapters.layers):
        assert set(layer) == set(TARGETS)
        for target, delta in layer.items():
            F, D = target_shape(CONFIG, target)
            expected = np.zeros((F, D))
            for slot, each in ((1, one), (2, two)):
                columns = slice((slot - 1) * 4, slot * 4)
                if (i, target) in each.deltas:
                    wanted = each.deltas[i, target]
                    expected += wanted.b_Fr @ wanted.a_rD
                    rank = len(wanted.a_rD)
                    np.testing.assert_array_equal(delta.a_PD[columns][:rank], wanted.a_rD)
                    assert not np.asarray(delta.a_PD[columns][rank:]).any()
                    assert not np.asarray(delta.b_FP[:, columns][:, rank:]).any()
                else:
                    assert not np.asarray(delta.a_PD[columns]).any()
            np.testing.assert_allclose(np.asarray(delta.b_FP) @ np.asarray(delta.a_PD), expected, atol=1e-5)


def test_the_arrays_change_with_a_load_only():
    own = pool()
    own.load("a", adapter())
    first = own.adapters
    own.acquire("a")
    own.release("a")
    own.unload("a")
    assert own.adapters is first
    kept = np.array(first.layers[0]["q"].a_PD)
    own.load("b", adapter(seed=5))
    assert own.adapters is not first
    np.testing.assert_array_equal(first.layers[0]["q"].a_PD, kept)  # a step in flight still reads them


def test_bytes_are_those_of_the_arrays():
    for own in (pool(), pool(slots=1, max_rank=3, targets=("q", "v"))):
        arrays = [x for layer in own.adapters.layers for delta in layer.values() for x in (delta.a_PD, delta.b_FP)]
        assert own.nbytes == sum(array.nbytes for array in arrays)


def test_the_idle_adapter_unused_the_longest_makes_room():
    own = pool(slots=2)
    own.load("a", adapter())
    own.load("b", adapter())
    slot = own.acquire("a")
    own.release("a")  # b is the older one now
    assert own.load("c", adapter()) != slot
    assert own.names == ("a", "c")
    own.acquire("a")
    own.load("d", adapter())
    assert own.names == ("a", "d")


def test_running_requests_keep_their_adapter():
    own = pool(slots=2)
    for name in ("sum", "chat"):
        own.load(name, adapter())
        own.acquire(name)
    own.acquire("chat")
    with pytest.raises(CapacityError, match='"new" needs a slot, and running requests use all 2: chat, sum'):
        own.load("new", adapter())
    with pytest.raises(CapacityError, match='"chat" must be idle to be unloaded, and 2 running requests use it'):
        own.unload("chat")
    with pytest.raises(CapacityError, match='"sum" must be idle to be replaced, and 1 running request uses it'):
        own.load("sum", adapter())
    own.release("chat")
    own.release("chat")
    own.unload("chat")
    assert own.load("new", adapter()) == 2


def test_a_load_of_the_same_name_replaces_and_has_another_version():
    own = pool()
    slot = own.load("a", adapter(seed=1))
    before = own.key("a")
    assert own.load("a", adapter(seed=2)) == slot
    assert own.key("a") != before and own.names == ("a",)
    np.testing.assert_array_equal(own.adapters.layers[0]["q"].a_PD[:2], adapter(seed=2).deltas[0, "q"].a_rD)


def test_an_unknown_adapter_is_told_what_is_loaded():
    own = pool()
    with pytest.raises(RequestError, match=r'no adapter named "sql" is loaded\.\nLoaded: none'):
        own.acquire("sql")
    own.load("sql-v2", adapter())
    own.load("chat", adapter())
    with pytest.raises(RequestError, match=r'Did you mean "sql-v2"\?\nLoaded: chat, sql-v2') as refused:
        own.acquire("sql-v1")
    assert 'no adapter named "sql-v1"' in str(refused.value)
    for call in (own.unload, own.key):
        with pytest.raises(RequestError, match="no adapter named"):
            call("sql-v1")


def test_an_adapter_that_does_not_fit_is_refused_with_both_numbers():
    with pytest.raises(CapacityError, match=r'"big" has rank 9, and this engine holds rank 4 at most\.\n.*max_rank=9'):
        pool().load("big", adapter(rank=9))
    with pytest.raises(CapacityError, match='"wide" changes gate, up, and this engine adapts q, v only'):
        pool(targets=("q", "v")).load("wide", adapter(targets=("q", "gate", "up")))
    with pytest.raises(ConfigError, match="at least 1 slot and rank 1, got 0 and 4"):
        pool(slots=0)


class Pool(RuleBasedStateMachine):
    """Against a list of names in the order of use, with a count each."""

    names = st.sampled_from("abcdef")

    def __init__(self):
        super().__init__()
        self.pool, self.used, self.slots, self.running = pool(slots=3), [], {}, {}
        self.versions = set()

    @rule(name=names)
    def load(self, name):
        if self.running.get(name):
            with pytest.raises(CapacityError):
                self.pool.load(name, adapter())
            return
        idle = [one for one in self.used if not self.running[one]]
        if name not in self.used and len(self.used) == 3:
            if not idle:
                with pytest.raises(CapacityError):
                    self.pool.load(name, adapter())
                return
            self.forget(idle[0])
        elif name in self.used:
            self.forget(name)
        self.slots[name] = self.pool.load(name, adapter())
        self.used.append(name)
        self.running[name] = 0
        assert self.pool.key(name) not in self.versions
        self.versions.add(self.pool.key(name))

    def forget(self, name):
        self.used.remove(name)
        del self.slots[name], self.running[name]

    @rule(name=names)
    def acquire(self, name):
        if name not in self.used:
            with pytest.raises(RequestError):
                self.pool.acquire(name)
            return
        assert self.pool.acquire(name) == self.slots[name]
        self.running[name] += 1
        self.used.remove(name)
        self.used.append(name)

    @rule(name=names)
    def release(self, name):
        if self.running.get(name):
            self.pool.release(name)
            self.running[name] -= 1

    @rule(name=names)
    def unload(self, name):
        if name not in self.used:
            with pytest.raises(RequestError):
                self.pool.unload(name)
        elif self.running[name]:
            with pytest.raises(CapacityError):
                self.pool.unload(name)
        else:
            self.pool.unload(name)
            self.forget(name)

    @invariant()
    def slots_are_apart(self):
        assert self.pool.names == tuple(sorted(self.used))
        assert len(set(self.slots.values())) == len(self.slots) <= 3
        assert all(1 <= slot <= 3 for slot in self.slots.values())


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
