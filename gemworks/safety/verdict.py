"""What a guard answers: how likely an image violates each policy, and whether that is too likely."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemworks.errors import RequestError

DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """One image under some policies. `probabilities`: by the policy's name, in the order asked; 0 is safe, 1 is not.

    image: what the caller called it. width, height: of the picture as it was decoded, in pixels.
    """

    image: str
    probabilities: Mapping[str, float]
    threshold: float = DEFAULT_THRESHOLD
    width: int = 0
    height: int = 0

    @property
    def violated(self) -> tuple[str, ...]:
        """Names of the policies whose probability is at least the threshold."""
        return tuple(name for name, probability in self.probabilities.items() if probability >= self.threshold)

    @property
    def flagged(self) -> bool:
        """Whether any policy is violated."""
        return bool(self.violated)

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON has it (docs/guard.md)."""
        return {
            "image": self.image,
            "flagged": self.flagged,
            "violated": list(self.violated),
            "probabilities": dict(self.probabilities),
            "threshold": self.threshold,
            "width": self.width,
            "height": self.height,
        }


def checked_threshold(threshold: float) -> float:
    """Return the threshold; RequestError unless it is above 0 and at most 1.

    At 0 everything would be flagged and above 1 nothing, whatever the model says.
    """
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not is_number or not 0 < threshold <= 1:
        raise RequestError(f"threshold must be above 0 and at most 1, got {threshold!r:.80}.")
    return float(threshold)


def yes_probability(yes: float, no: float) -> float:
    """Return exp(yes) / (exp(yes) + exp(no)): what Yes has of the two, from their logits or log-probabilities."""
    if math.isnan(yes - no):
        raise RequestError(f"scores of Yes and No must be finite, got {yes} and {no}.\nThe weights are damaged.")
    # Never exp of a large positive number, which overflows.
    return 1 / (1 + math.exp(no - yes)) if yes >= no else math.exp(yes - no) / (1 + math.exp(yes - no))
