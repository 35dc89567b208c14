"""How long a step takes, learnt from the steps that were run.

Seconds of a step are close to base + rows * a + columns * b: on the machine this was written on 1B int4 needs 24 ms for
one decode row, 2.7 ms for each further one and 2.55 ms for each column of a prefill chunk. Shapes that were seen are
remembered one by one, since programs are compiled for a few shapes and pad to these; others are taken from the plane
that fits what was seen. Only ratios matter to the scheduler, so before the first step those of that machine do.
"""

import math

PRIOR_S = (0.0213, 0.0027, 0.00255)  # base, a row, a column

# A step may take many times its usual time for reasons that are not its shape (another process, a page fault).
OUTLIER = 2.0

# Weight of the newest observation of a shape, once there are some.
NEWEST = 0.1

# How much the prior counts against what was seen, in shapes.
PRIOR_SHAPES = 0.01


def padded(count: int, least: int = 1) -> int:
    """Return the next power of two, at least `least`; 0 stays 0."""
    return 0 if count == 0 else max(least, 1 << (count - 1).bit_length())


class StepCost:
    """Seconds of a step of `rows` decode rows and a prefill chunk of `chunk` columns (0: none)."""

    def __init__(self, prior: tuple[float, float, float] = PRIOR_S):
        self._prior = prior
        self._seen: dict[tuple[int, int], tuple[float, int]] = {}  # shape -> seconds, times seen up to 1 / NEWEST
        self._scales: tuple[float, ...] | None = None  # of the prior's three terms, for the plane

    def observe(self, rows: int, chunk: int, seconds: float) -> None:
        """Note that a step of this shape took `seconds`."""
        if (not rows and not chunk) or not 0 < seconds < math.inf:
            return
        shape = (padded(rows), padded(chunk, 16))
        usual, times = self._seen.get(shape, (seconds, 0))
        times = min(times + 1, round(1 / NEWEST))
        self._seen[shape] = (usual + (min(seconds, OUTLIER * usual) - usual) / times, times)
        self._scales = None

    def predict(self, rows: int, chunk: int) -> float:
        """Return the seconds that a step of this shape is likely to take."""
        shape = (padded(rows), padded(chunk, 16))
        if shape in self._seen:
            return self._seen[shape][0]
        if self._scales is None:
            self._scales = self._fit()
        return sum(scale * term for scale, term in zip(self._scales, self._terms(shape), strict=True))

    def _terms(self, shape: tuple[int, int]) -> tuple[float, float, float]:
        base, row, column = self._prior
        return base, row * shape[0], column * shape[1]

    def _fit(self) -> tuple[float, ...]:
        """Return by what to multiply the prior's terms: least squares of relative errors, held near one common factor.

        With f the factor that fits best by itself, minimises sum over shapes of (1 - scales . terms / seconds)^2 +
        PRIOR_SHAPES * |scales / f - 1|^2; then each scale is at least a twentieth of f, so that no term is free.
        """
        if not self._seen:
            return (1.0, 1.0, 1.0)
        ratios = [seconds / sum(self._terms(shape)) for shape, (seconds, _) in self._seen.items()]
        factor = math.exp(sum(map(math.log, ratios)) / len(ratios))
        matrix = [[PRIOR_SHAPES * (i == j) for j in range(3)] for i in range(3)]
        right = [PRIOR_SHAPES] * 3
        for shape, (seconds, _) in self._seen.items():
            x = [factor * term / seconds for term in self._terms(shape)]
            for i in range(3):
                right[i] += x[i]
                for j in range(3):
                    matrix[i][j] += x[i] * x[j]
        return tuple(factor * max(scale, 0.05) for scale in solve(matrix, right))


def solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Return x with matrix x = right, for a small positive definite matrix (so no pivot is needed)."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(n):
        for k in range(i + 1, n):
            ratio = rows[k][i] / rows[i][i]
            rows[k] = [a - ratio * b for a, b in zip(rows[k], rows[i], strict=True)]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][j] * x[j] for j in range(i + 1, n))) / rows[i][i]
    return x
