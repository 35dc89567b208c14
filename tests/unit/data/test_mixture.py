from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.data.mixture import Mixture, unimax
from gemworks.data.permutation import key_of, permuted
from gemworks.errors import ConfigError

weights = st.lists(st.floats(1e-3, 10), min_size=1, max_size=6).map(lambda w: {f"g{i}": x for i, x in enumerate(w)})


def slow(mixture, rows):
    """The definition: all due times up to a bound, sorted, ties by group."""
    total = sum(mixture.units)
    due = [
        (Fraction(2 * n + 1, units), group, n)
        for group, units in enumerate(mixture.units)
        for n in range(rows * units // total + 2)
    ]
    return [(group, n) for _, group, n in sorted(due)[:rows]]


@given(weights, st.integers(0, 120), st.integers(1, 40))
def test_any_stretch_of_rows_is_that_of_the_definition(weights, start, number):
    mixture = Mixture.of(weights)
    assert list(mixture.draws(start, number)) == slow(mixture, start + number)[start:]


@given(weights, st.integers(0, 10**12))
def test_counts_stay_close_to_the_weights_at_any_row(weights, row):
    mixture = Mixture.of(weights)
    counts = mixture.counts(row)
    assert sum(counts) == row
    exact = [Fraction(units, sum(mixture.units)) * row for units in mixture.units]
    assert all(abs(n - x) <= 1 + len(weights) / 2 for n, x in zip(counts, exact, strict=True))


def test_weights_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r'the weight of "a" must be a number of at least 0, got -1'):
        Mixture.of({"a": -1})
    with pytest.raises(ConfigError, match="a group of weight above 0"):
        Mixture.of({"a": 0.0})
    assert Mixture.of({"a": 1, "b": 0}).names == ("a",)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 1000])
def test_a_permutation_is_one_to_one_and_differs_by_key(size):
    orders = {key: [permuted(i, size, key_of(key, 1)) for i in range(size)] for key in range(3)}
    assert all(sorted(order) == list(range(size)) for order in orders.values())
    if size >= 17:
        assert len({tuple(order) for order in orders.values()}) == 3


def test_a_permutation_moves_every_place_about_evenly():
    """Chi-square of where the first of 8 goes over 4,000 keys: 7 degrees of freedom, 24.3 at one in a thousand."""
    counts = Counter(permuted(0, 8, key_of(key)) for key in range(4000))
    assert sum((counts[i] - 500) ** 2 / 500 for i in range(8)) < 24.3


def test_unimax_gives_equal_shares_under_the_caps():
    """Worked by hand: 100 over sizes 2, 10, 400 with 4 epochs: 8, then 92 / 2 capped at 40, then the rest."""
    assert unimax({"big": 400, "small": 2, "middle": 10}, 100, 4) == {"big": 52.0, "small": 8.0, "middle": 40.0}
    assert unimax({"a": 100, "b": 100}, 50) == {"a": 25.0, "b": 25.0}
    assert unimax({"a": 1, "b": 2}, 1000, 3) == {"a": 3.0, "b": 6.0}


@given(st.dictionaries(st.text("abc", min_size=1), st.floats(1, 1e6), min_size=1, max_size=6), st.floats(1, 1e7))
def test_unimax_spends_the_budget_and_keeps_the_caps(sizes, budget):
    got = unimax(sizes, budget, 4)
    assert sum(got.values()) == pytest.approx(min(budget, 4 * sum(sizes.values())))
    assert all(got[name] <= 4 * sizes[name] * (1 + 1e-9) for name in sizes)
    uncapped = [got[name] for name in sizes if got[name] < 4 * sizes[name] * (1 - 1e-9)]
    assert not uncapped or max(uncapped) == pytest.approx(min(uncapped))
