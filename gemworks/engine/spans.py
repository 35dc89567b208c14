"""Image spans of a chunk: embeddings in the place of tokens, and who sees whom."""

from collections.abc import Sequence

import numpy as np

from gemworks.engine.encoder_cache import EncoderCache
from gemworks.engine.plan import RowPlan
from gemworks.engine.types import SoftSpan
from gemworks.model.layers import SoftTokens

# P columns of a chunk, D model width


def spans_in(row: RowPlan) -> list[SoftSpan]:
    """Return the spans a row computes; a chunk has the whole of a span or nothing of it."""
    return [span for span in row.run.request.spans if row.start <= span.start < row.start + row.count]


def soft_tokens(
    row: RowPlan, spans: Sequence[SoftSpan], cache: EncoderCache, columns: int
) -> tuple[SoftTokens, list[int]]:
    """Return the embeddings for a chunk padded to `columns` tokens, and the last position each real one may see.

    Calls the encoder of an image that is not in the cache. Tokens of an image see to its end, others themselves.
    """
    rows_PD = np.zeros((columns, cache.dim), np.float32)
    index_P = np.full(columns, -1, np.int32)
    see = list(range(row.start, row.start + row.count))
    for span in spans:
        at = slice(span.start - row.start, span.end - row.start)
        rows_PD[at] = cache.get(span)
        index_P[at] = np.arange(at.start, at.stop)
        if span.sees_ahead:
            see[at] = [span.end - 1] * span.length
    return SoftTokens(rows_PD, index_P), see
