"""Embeddings of image spans, kept by what they show: a second turn about an image does not pay its encoder again.

Least recently used first out, by bytes: an image of 256 tokens is 2.6 MB for 4B (2560 * 4 bytes a token), and its
encoder takes seconds. Plain Python and numpy. One thread: the engine's.
"""

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

from gemworks.engine.types import SoftSpan
from gemworks.errors import RequestError

# n tokens of a span, D model width


class EncoderCache:
    """At most `max_bytes` of embeddings of width `dim`; one that is larger than all of it is not kept."""

    def __init__(self, max_bytes: int, dim: int):
        self.max_bytes, self.dim = max_bytes, dim
        self.nbytes = 0
        self.hits = self.misses = 0
        self._kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, span: SoftSpan) -> np.ndarray:
        """Return the span's embeddings, [n, D] fp32 and read-only; calls `span.embed()` where they are not kept.

        Raises RequestError if what it returns is of another shape or not finite. What `embed` raises passes through.
        """
        kept = self._kept.get(span.key)
        if kept is not None and len(kept) == span.length:
            self._kept.move_to_end(span.key)
            self.hits += 1
            return kept
        self.misses += 1
        rows_nD = self._checked(span, np.array(span.embed(), np.float32))
        self._keep(span.key, rows_nD)
        return rows_nD

    def clear(self) -> None:
        """Forget every image; the counts stay."""
        self._kept.clear()
        self.nbytes = 0

    def _checked(self, span: SoftSpan, rows_nD: np.ndarray) -> np.ndarray:
        where = f"the image at tokens {span.start} to {span.end - 1}"
        if rows_nD.shape != (span.length, self.dim):
            raise RequestError(
                f"{where} must have embeddings [{span.length}, {self.dim}], and its encoder gave {[*rows_nD.shape]}.\n"
                "An encoder must be of the model's own checkpoint, and a span as long as its image has tokens."
            )
        if not (finite := np.isfinite(rows_nD)).all():
            raise RequestError(
                f"{where} must have finite embeddings, and {rows_nD.size - int(finite.sum()):,} of {rows_nD.size:,} "
                "numbers are not.\nThe image's pixels or the encoder's weights are damaged."
            )
        rows_nD.flags.writeable = False
        return rows_nD

    def _keep(self, key: Hashable, rows_nD: np.ndarray) -> None:
        if (old := self._kept.pop(key, None)) is not None:
            self.nbytes -= old.nbytes
        if rows_nD.nbytes > self.max_bytes:
            return
        self._kept[key] = rows_nD
        self.nbytes += rows_nD.nbytes
        while self.nbytes > self.max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.nbytes -= oldest.nbytes
