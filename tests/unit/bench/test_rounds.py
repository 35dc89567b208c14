"""Systems take turns, and one that fails does not stop the others."""

import pytest

from gemworks.bench.rounds import interleaved
from gemworks.errors import BackendError


def counting(log, name, value):
    def call(round):
        log.append(f"{name}{round}")
        return {"rate": value + round}

    return call


def test_every_system_has_its_turn_in_every_round_and_the_first_is_not_counted():
    log = []
    calls = {"a": counting(log, "a", 10), "b": counting(log, "b", 20)}
    values = interleaved(calls, 3, between=lambda: log.append("-"), say=log.append)
    assert log == ["b0", "a0", "-", "a1", "b1", "-", "b2", "a2", "-", "a3", "b3"]
    assert values == {"a": {"rate": [11, 12, 13]}, "b": {"rate": [21, 22, 23]}}


def test_a_system_that_fails_is_told_and_left_out():
    said = []

    def failing(round):
        if round == 2:
            raise BackendError("b: out of memory")
        return {"rate": 1.0}

    values = interleaved(
        {"a": lambda round: {"rate": float(round)}, "b": failing}, 3, between=lambda: None, say=said.append
    )
    assert values == {"a": {"rate": [1.0, 2.0, 3.0]}}
    assert said == ["b: out of memory"]


def test_one_call_may_have_several_figures():
    values = interleaved(
        {"a": lambda round: {"in": round, "out": -round}}, 2, between=lambda: None, say=lambda text: None
    )
    assert values == {"a": {"in": [1, 2], "out": [-1, -2]}}


def test_who_may_stop_keeps_what_was_measured():
    def interrupted(at):
        def call(round):
            if round == at:
                raise KeyboardInterrupt
            return {"rate": float(round)}

        return call

    told = {"between": lambda: None, "say": lambda text: None}
    calls = {"a": lambda round: {"rate": float(round)}, "b": interrupted(2)}
    assert interleaved(calls, 3, may_stop=True, **told) == {"a": {"rate": [1.0]}, "b": {"rate": [1.0]}}
    for may_stop, at in ((False, 2), (True, 1), (True, 0)):
        with pytest.raises(KeyboardInterrupt):
            interleaved({"b": interrupted(at)}, 3, may_stop=may_stop, **told)
