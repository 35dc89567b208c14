"""From rows of Python integers to the fixed-shape arrays of one step."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from gemworks.engine.sequence import Sequence
from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Batch
from gemworks.ops.kv import PagePlan, RingPlan

# R rows, C columns, T = R * C tokens, M pages of a row


@dataclass(frozen=True, slots=True)
class Row:
    """The next tokens of one sequence, which owns the pages for them but does not store them yet."""

    sequence: Sequence
    ids: list[int]


def make_batch(rows: Seq[Row], columns: int, *, table_width: int, config: TextConfig) -> Batch:
    """Return the step of `rows`, each padded to `columns` tokens. Arrays are numpy int32."""
    R = len(rows)
    ids_RC = np.zeros((R, columns), np.int32)
    start_R, count_R, ring_R = (np.zeros(R, np.int32) for _ in range(3))
    table_RM = np.zeros((R, table_width), np.int32)
    for r, row in enumerate(rows):
        assert 0 < len(row.ids) <= columns
        ids_RC[r, : len(row.ids)] = row.ids
        start_R[r], count_R[r], ring_R[r] = row.sequence.stored, len(row.ids), row.sequence.ring
        table_RM[r, : len(row.sequence.table)] = row.sequence.table
    position_RC = start_R[:, None] + np.arange(columns, dtype=np.int32)
    window = config.local_spec.window if config.local_spec else None
    return Batch(
        ids_RC.reshape(-1),
        position_RC.reshape(-1),
        RingPlan(start_R, count_R, ring_R, window or 0),
        PagePlan(start_R, count_R, table_RM),
    )
