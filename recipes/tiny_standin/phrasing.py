"""How a question is worded, and what is kept from training so that the evaluation means something.

Two kinds of things are held out:

    phrasings   the wordings in `Phrasing.held` are never trained on (facts: the fact itself is, in other words)
    items       number pairs, words and names for which `is_held_*` is true are never asked about in training
"""

import random
import zlib
from dataclasses import dataclass, field
from typing import Any

_BEFORE = ("Please:", "Ok,", "So,", "Tiny,", "Now,", "Question:", "Well,")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One user turn and the answer to it. `slots` is what a follow-up question needs to know."""

    task: str
    user: str
    answer: str
    slots: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Phrasing:
    """Templates for str.format: `known` are trained on, `held` only evaluated."""

    known: tuple[str, ...]
    held: tuple[str, ...]

    def ask(self, rng: random.Random, *, held: bool = False, lower_slots: bool = True, **slots: Any) -> str:
        """Return a question. Trained ones are also in lower case now and then, without the last mark, or after a word.

        lower_slots=False keeps the slots as they are where the answer must copy them.
        """
        if held:
            return rng.choice(self.held).format(**slots)
        template = rng.choice(self.known)
        if rng.random() < 0.25:
            template = template.lower()
            if lower_slots:
                slots = {name: str(value).lower() for name, value in slots.items()}
        if rng.random() < 0.25 and template[-1] in ".?!":
            template = template[:-1]
        if rng.random() < 0.08:
            template = f"{rng.choice(_BEFORE)} {template}"
        return template.format(**slots)


def is_held_pair(a: int, b: int) -> bool:
    """Whether a + b, b + a, a - b and b - a are kept from training: one pair in ten, never two one-digit numbers."""
    low, high = sorted((a, b))
    return high >= 10 and _bucket(f"{low} {high}") == 0


def is_held_range(first: int, last: int) -> bool:
    """Whether counting from `first` to `last` is kept from training: one range in ten, none from 1."""
    return first != 1 and _bucket(f"{first}..{last}") == 0


def is_held_word(word: str) -> bool:
    """Whether spelling, repeating or being called `word` is kept from training: one word in ten."""
    return _bucket(word) == 0


def _bucket(text: str) -> int:
    return zlib.crc32(text.encode()) % 10
