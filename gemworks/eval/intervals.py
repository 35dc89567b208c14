"""Figures with their uncertainty: 95 % intervals of a share (Wilson) and of a ratio of sums."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured number. n: how many items it rests on. low, high: its 95 % interval; None where n is too small for
    one, and with n = 0 there is no value either. `is_share`: a part of n, between 0 and 1. `is_better`: "higher",
    "lower", or "" where neither is.
    """

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    is_share: bool = True
    is_better: str = "higher"

    def as_dict(self) -> dict[str, Any]:
        """The figure as JSON has it."""
        return asdict(self)

    def shown(self) -> str:
        """The figure in words: 87.5 % (78.5 to 93.1, n = 80)."""
        if self.value is None:
            return "none (n = 0)"
        value, low, high = (None if x is None else 100 * x if self.is_share else x for x in self._three())
        digits = 1 if self.is_share else 3
        unit = " %" if self.is_share else ""
        between = f"{low:.{digits}f} to {high:.{digits}f}, " if low is not None and high is not None else ""
        return f"{value:.{digits}f}{unit} ({between}n = {self.n:,})"

    def _three(self) -> tuple[float | None, float | None, float | None]:
        return self.value, self.low, self.high


def share(name: str, successes: int, n: int, *, is_better: str = "higher") -> Figure:
    """The share of successes among n with Wilson's interval, which holds near 0 and 1, where the usual one does not.

        centre = (p + z^2 / 2n) / (1 + z^2 / n),  half = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, got {successes} of {n}.")
    if n == 0:
        return Figure(name=name, value=None, n=0, is_better=is_better)
    p, zz = successes / n, Z_95 * Z_95
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + zz / (4 * n * n)) / (1 + zz / n)
    # Rounding leaves 1e-17 where the bound is 0 or 1.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Figure(name=name, value=p, n=n, low=low, high=high, is_better=is_better)


def ratio(name: str, tops: Sequence[float], bottoms: Sequence[float], *, is_better: str = "lower") -> Figure:
    """sum(tops) / sum(bottoms) over independent items (documents), with the linearised interval of a ratio.

        variance = n / (n - 1) * sum((top - r * bottom)^2) / sum(bottoms)^2

    W. G. Cochran, Sampling Techniques, 3rd ed. (1977), section 6.3. One item has no interval.
    """
    n, bottom = len(tops), math.fsum(bottoms)
    if n == 0 or bottom == 0:
        return Figure(name=name, value=None, n=n, is_share=False, is_better=is_better)
    value = math.fsum(tops) / bottom
    if n == 1:
        return Figure(name=name, value=value, n=1, is_share=False, is_better=is_better)
    residuals = math.fsum((t - value * b) ** 2 for t, b in zip(tops, bottoms, strict=True))
    half = Z_95 * math.sqrt(n / (n - 1) * residuals) / bottom
    return Figure(name=name, value=value, n=n, low=value - half, high=value + half, is_share=False, is_better=is_better)
