"""Limits per key: no minute, wherever it begins, holds more than was allowed, and nobody waits longer than needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.errors import LimitError
from gemworks.server.keys import Caller
from gemworks.server.limits import WINDOW_S, Limits, Window
from gemworks.server.settings import LimitSettings

ANN, BOB = Caller(name="ann"), Caller(name="bob")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def most_in_a_window(admitted: list[tuple[float, int]]) -> int:
    """The largest sum in any half-open window of WINDOW_S seconds, by trying each that begins with an admission."""
    return max(
        (sum(amount for at, amount in admitted if begin <= at < begin + WINDOW_S) for begin, _ in admitted), default=0
    )


steps = st.lists(st.tuples(st.floats(0, 45, allow_nan=False), st.integers(1, 40)), max_size=60)


@given(st.integers(1, 60), steps)
def test_no_window_ever_admits_more_than_the_limit(limit, asked):
    window, now, admitted = Window(limit), 0.0, []
    for pause, amount in asked:
        now += pause
        if window.wait_s(amount, now) == 0:
            window.add(amount, now)
            admitted.append((now, amount))
        assert window.used <= limit
    assert most_in_a_window(admitted) <= limit


@given(st.integers(1, 30), st.lists(st.floats(0, 20, allow_nan=False), max_size=80))
def test_no_window_ever_admits_more_calls_than_the_limit(limit, pauses):
    """Through `Limits`, as the server asks it; and whoever waits as long as Retry-After says is let in."""
    clock, admitted = Clock(), []
    limits = Limits(LimitSettings(requests_per_minute=limit), clock=clock)
    for pause in pauses:
        clock.now += pause
        try:
            limits.enter(ANN)
        except LimitError as error:
            assert 0 < error.retry_after_s <= WINDOW_S
            clock.now += error.retry_after_s
            limits.enter(ANN)
        admitted.append((clock.now, 1))
    assert most_in_a_window(admitted) <= limit


charges = st.lists(
    st.tuples(st.floats(0, 30), st.integers(0, 50), st.one_of(st.none(), st.integers(0, 120))), max_size=50
)


@given(st.integers(1, 200), charges)
def test_no_window_ever_takes_more_tokens_than_the_limit(limit, asked):
    """Charged before, settled after: what the calls took, none more than it was charged, stays within the limit."""
    clock, took = Clock(), []
    limits = Limits(LimitSettings(tokens_per_minute=limit), clock=clock)
    for pause, charged, used in asked:
        clock.now += pause
        ticket = limits.enter(ANN)
        try:
            ticket.charge(charged)
        except LimitError:
            continue
        finally:
            ticket.close()
        spent = charged if used is None else min(used, charged)
        if used is not None:
            ticket.settle(spent)
        took.append((clock.now, spent))
    assert most_in_a_window(took) <= limit


@given(st.integers(1, 200), charges)
def test_the_sum_is_that_of_what_still_counts(limit, asked):
    """Against a list of everything: `used` is never less than the last minute's, nor more than that of 61 seconds."""
    clock, kept = Clock(), []
    limits = Limits(LimitSettings(tokens_per_minute=limit), clock=clock)
    for pause, charged, used in asked:
        clock.now += pause
        ticket = limits.enter(ANN)
        try:
            ticket.charge(charged)
            amount = charged
            if used is not None:
                ticket.settle(used)
                amount = used
            kept.append((clock.now, amount))
        except LimitError:
            pass
        ticket.close()
        window = limits._account(ANN).tokens
        assert window is not None
        window.expire(clock.now)
        last = sum(amount for at, amount in kept if at + WINDOW_S > clock.now)
        assert last <= window.used <= sum(amount for at, amount in kept if at + WINDOW_S + 1 > clock.now)


def test_a_key_over_its_limit_leaves_others_alone():
    clock = Clock()
    limits = Limits(LimitSettings(requests_per_minute=2), clock=clock)
    limits.enter(ANN), limits.enter(ANN)
    with pytest.raises(
        LimitError, match=r'the key "ann" may make 2 calls a minute, and made as many. Try again in 60 s'
    ):
        limits.enter(ANN)
    limits.enter(BOB)


def test_a_keys_own_limits_win():
    limits = Limits(LimitSettings(requests_per_minute=1), clock=Clock())
    rich = Caller(name="rich", requests_per_minute=3)
    for _ in range(3):
        limits.enter(rich)
    with pytest.raises(LimitError):
        limits.enter(rich)


def test_calls_at_the_same_time_are_counted_until_they_end():
    limits = Limits(LimitSettings(concurrency=2), clock=Clock())
    one, _ = limits.enter(ANN), limits.enter(ANN)
    with pytest.raises(LimitError, match="2 calls at the same time") as caught:
        limits.enter(ANN)
    assert caught.value.retry_after_s == 1.0
    one.close()
    one.close()
    limits.enter(ANN)
    with pytest.raises(LimitError):
        limits.enter(ANN)


def test_a_refused_call_counts_nothing():
    clock = Clock()
    limits = Limits(LimitSettings(concurrency=1, requests_per_minute=2, tokens_per_minute=10), clock=clock)
    held = limits.enter(ANN)
    with pytest.raises(LimitError):
        limits.enter(ANN)
    with pytest.raises(LimitError, match=r"may take 11 tokens .* its key may take 10 a minute. Lower max_tokens"):
        held.charge(11)
    held.charge(10)
    with pytest.raises(LimitError, match=r"10 are taken and this request may take 1\. Try again in 60 s"):
        held.charge(1)
    held.close()
    limits.enter(ANN)


def test_what_a_call_did_not_take_is_given_back_and_what_it_took_beyond_is_counted():
    limits = Limits(LimitSettings(tokens_per_minute=100), clock=Clock())
    one, other = limits.enter(ANN), limits.enter(ANN)
    one.charge(60)
    other.charge(40)
    one.settle(10)
    other.charge(50)
    other.settle(120)  # nobody said max_tokens
    with pytest.raises(LimitError, match="130 are taken"):
        limits.enter(ANN).charge(1)


def test_limits_that_change_keep_what_was_used():
    limits = Limits(LimitSettings(), clock=Clock())
    for _ in range(2):
        limits.enter(Caller(name="ann", requests_per_minute=2))
    with pytest.raises(LimitError):
        limits.enter(Caller(name="ann", requests_per_minute=1))
    limits.enter(Caller(name="ann", requests_per_minute=3))


def test_headers_are_those_openai_clients_read():
    clock = Clock()
    limits = Limits(LimitSettings(requests_per_minute=3, tokens_per_minute=100), clock=clock)
    ticket = limits.enter(ANN)
    ticket.charge(30)
    clock.now += 20.5
    assert dict(ticket.headers()) == {
        b"x-ratelimit-limit-requests": b"3",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"40s",
        b"x-ratelimit-limit-tokens": b"100",
        b"x-ratelimit-remaining-tokens": b"70",
        b"x-ratelimit-reset-tokens": b"40s",
    }
    clock.now += 39.25
    assert dict(ticket.headers())[b"x-ratelimit-reset-requests"] == b"250ms"
    assert Limits(LimitSettings(), clock=clock).enter(ANN).headers() == []


def test_a_key_costs_the_same_memory_whatever_its_limit_is():
    window = Window(10**9)
    for i in range(100_000):
        window.add(1, i / 1000)
    assert window.used <= 61_000
    assert len(window._groups) <= 62
