"""Which group every row of training comes from: a pure function of weights and the row's number, with no state.

The n-th row of a group of weight w is due at time (n + 1/2) / w; rows come in the order of these times, ties in the
order of the groups. That is the divisor method of Webster and Sainte-Lague: after t rows a group of weight w has had
w * t of them, to within one or two, at every t. Unlike the choice of the largest deficit w * t - n, which takes nearly
the same course, it needs no run through the rows before: the counts at row t are found by bisection, in microseconds
at any t. So a resumed run, another number of hosts and an audit of step 4,217 all see the same.

All arithmetic is on integers and fractions: no rounding, the same on every machine.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from gemworks.errors import ConfigError

_UNITS = 2**32  # weights become integers of about this sum; 2e-10 is the smallest share that counts


@dataclass(frozen=True)
class Mixture:
    """Groups with integer weights. Made by `of`."""

    names: tuple[str, ...]
    units: tuple[int, ...]

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> "Mixture":
        """Return the mixture of these weights, of any sum. Groups of weight 0 are left out. ConfigError."""
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise ConfigError(f'the weight of "{name}" must be a number of at least 0, got {weight}.')
        total = sum(weights.values())
        if total <= 0:
            raise ConfigError(f"a mixture must have a group of weight above 0, got {dict(weights)}.")
        kept = {name: max(1, round(weight / total * _UNITS)) for name, weight in weights.items() if weight > 0}
        return cls(tuple(kept), tuple(kept.values()))

    @property
    def shares(self) -> dict[str, float]:
        """Fractions of the rows, by group; they add up to 1."""
        return {name: units / sum(self.units) for name, units in zip(self.names, self.units, strict=True)}

    def counts(self, row: int) -> list[int]:
        """Return how many of the rows 0 ... row - 1 belong to each group."""
        assert row >= 0
        # The last instant at which at most `row` rows were due; the few that are due at that instant follow one by one.
        low, high = 0, 1
        while sum(self._due_before(high)) <= row:
            high *= 2
        while high - low > 1:
            middle = (low + high) // 2
            if sum(self._due_before(middle)) <= row:
                low = middle
            else:
                high = middle
        counts = self._due_before(low)
        for group, number in self._following(counts, row - sum(counts)):
            counts[group] = number + 1
        return counts

    def draws(self, start: int, number: int) -> Iterator[tuple[int, int]]:
        """Yield (group, n) for rows start ... start + number - 1: that row is the n-th of its group, from 0."""
        return self._following(self.counts(start), number)

    def _due_before(self, instant: int) -> list[int]:
        """Rows of each group due before the time instant / (2 * sum of units): the n with (2 n + 1) / 2 u < time."""
        total = sum(self.units)
        return [max(0, -((total - units * instant) // (2 * total))) for units in self.units]

    def _following(self, counts: Sequence[int], number: int) -> Iterator[tuple[int, int]]:
        queue = [
            (Fraction(2 * n + 1, units), i, n) for i, (n, units) in enumerate(zip(counts, self.units, strict=True))
        ]
        heapq.heapify(queue)
        for _ in range(number):
            _, group, n = queue[0]
            heapq.heapreplace(queue, (Fraction(2 * n + 3, self.units[group]), group, n + 1))
            yield group, n


def unimax(sizes: Mapping[str, float], budget: float, max_epochs: float = 4.0) -> dict[str, float]:
    """Return how much of each language to train on: an equal share, but no language more than `max_epochs` times.

    `sizes` and `budget` are in one unit (tokens). Languages are served from the smallest: each gets what is left of
    the budget divided by the languages left, at most max_epochs * size (UniMax, Chung et al. 2023, algorithm 1:
    https://arxiv.org/abs/2304.09151). The sum is the budget, or less where every language meets its cap.
    The default of 4 epochs is where repeated text is about as good as new (Muennighoff et al. 2023); what Gemma 3
    used is not disclosed.
    """
    if budget <= 0 or max_epochs <= 0:
        raise ConfigError(f"budget and max_epochs must be above 0, got {budget:g} and {max_epochs:g}.")
    allotted, left = {}, float(budget)
    ascending = sorted(sizes, key=lambda name: (sizes[name], name))
    for number, name in enumerate(ascending):
        allotted[name] = min(left / (len(ascending) - number), max_epochs * sizes[name])
        left -= allotted[name]
    return {name: allotted[name] for name in sizes}
