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
    batch = blank_batch(len(rows), columns, table_width=table_width, config=config)
    ids_RC = batch.ids_T.reshape(len(rows), columns)
    for r, row in enumerate(rows):
        assert 0 < len(row.ids) <= columns
        ids_RC[r, : len(row.ids)] = row.ids
        batch.local_plan.start_R[r] = row.sequence.stored
        batch.local_plan.count_R[r] = len(row.ids)
        batch.local_plan.ring_R[r] = row.sequence.ring
        batch.global_plan.table_RM[r, : len(row.sequence.table)] = row.sequence.table
    batch.position_T[:] = (batch.local_plan.start_R[:, None] + np.arange(columns, dtype=np.int32)).reshape(-1)
    return batch


def blank_batch(rows: int, columns: int, *, table_width: int, config: TextConfig) -> Batch:
    """Return a batch of `rows` empty rows: the shapes of a step, for compiling it."""
    window = config.local_spec.window if config.local_spec else None
    start_R, count_R, ring_R = (np.zeros(rows, np.int32) for _ in range(3))
    return Batch(
        np.zeros(rows * columns, np.int32),
        np.zeros(rows * columns, np.int32),
        RingPlan(start_R, count_R, ring_R, window or 0),
        PagePlan(start_R, count_R, np.zeros((rows, table_width), np.int32)),
    )
