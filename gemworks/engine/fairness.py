"""Whose turn it is: deficit round robin over keys, in computed tokens; and the order within a key.

A round gives every key that has runs `quantum` x weight tokens of credit, weight = 2 ** priority. A step is the turn of
one key, which has the turn while it has credit; when none has any, the next round begins. All that a step computes is
charged to the key it is computed for, but what rides along on another's turn leaves a key its last token of credit:
else rows that ride on every step would keep its prompts waiting. A key that comes back, or is new, goes first with what
this round still gives it, so a short request does not wait for the others' turns.

Bounds, for a key of weight w that always has something to compute, where a step computes at most `most` tokens:

    debt     never more than min(most, floor): what its own last turn took beyond its credit. So it has credit again
             after at most min(most, floor) / (quantum * w) + 1 rounds, and then has a turn in that round
    turns    in a round, key j has the turn for less than quantum * w_j + most tokens. So from any moment the key waits
             for its next turn while at most (min(most, floor) / (quantum * w) + 2) * sum over the others of
             (quantum * w_j + most) tokens are computed on turns that are not its own
    order    within a key a request is overtaken by less than AGEING * (difference of priority) later ones: the order
             is arrival less AGEING for each level, so that no stream of urgent requests starves a patient one
"""

from collections.abc import Collection, Hashable, Mapping

# Arrivals that a level of priority is worth within a key.
AGEING = 64

# Levels beyond these weigh no more: 2 ** 8 tokens for one are not told from all for one.
MOST_PRIORITY = 8


def weight_of(priority: int) -> float:
    """Return the share of a key whose best run has this priority, relative to priority 0."""
    return 2.0 ** max(-MOST_PRIORITY, min(MOST_PRIORITY, priority))


def place(order: int, priority: int) -> int:
    """Return where a run stands in its key's queue; less is sooner."""
    return order - AGEING * max(-MOST_PRIORITY, min(MOST_PRIORITY, priority))


class Turns:
    """Credit of every key. `quantum`: tokens a round, for weight 1; `floor`: the most debt that is remembered."""

    def __init__(self, quantum: int, floor: int):
        self.quantum, self.floor = quantum, floor
        self._credit: dict[Hashable, float] = {}  # of keys with runs, the newest last
        self._away: dict[Hashable, float] = {}  # of keys without, until the next round
        self._fresh: set[Hashable] = set()  # have not had this round's quantum, for nobody knew their weight yet
        self.rounds = 0

    def enter(self, key: Hashable) -> None:
        """Note that a key has runs now."""
        if key not in self._credit:
            if key not in self._away:
                self._fresh.add(key)
            self._credit[key] = self._away.pop(key, 0.0)

    def leave(self, key: Hashable) -> None:
        """Note that a key has none any more."""
        self._away[key] = self._credit.pop(key)
        if key in self._fresh:
            self._fresh.discard(key)
            del self._away[key]

    def credit(self, key: Hashable) -> float:
        """Return the tokens a key may still have in this round."""
        return self._credit[key]

    def pick(self, able: Collection[Hashable], weights: Mapping[Hashable, float]) -> Hashable:
        """Return whose turn it is among the keys that can be served now; `weights` are those of all keys with runs."""
        for key in self._fresh:
            self._credit[key] += self.quantum * weights[key]
        self._fresh.clear()
        while not any(self._credit[key] > 0 for key in able):
            self._begin_round(weights)
        return next(key for key in reversed(self._credit) if key in able and self._credit[key] > 0)

    def is_exhausted(self, key: Hashable) -> bool:
        """Whether a key has had what this round gives it, or rode along for as much."""
        return self._credit[key] <= 1

    def charge(self, key: Hashable, tokens: int, *, own_turn: bool) -> None:
        """Take computed tokens from a key's credit."""
        credit = self._credit[key]
        least = -float(self.floor) if own_turn else min(credit, 1.0)
        self._credit[key] = max(credit - tokens, least)

    def _begin_round(self, weights: Mapping[Hashable, float]) -> None:
        self.rounds += 1
        for key in self._credit:  # who could not use the last round's has no more than one round's
            self._credit[key] = min(self._credit[key] + self.quantum * weights[key], self.quantum * weights[key])
        # Who is away pays its debt all the same; what it did not use is gone.
        self._away = {key: credit + self.quantum for key, credit in self._away.items() if credit + self.quantum < 0}
