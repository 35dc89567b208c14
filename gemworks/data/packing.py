"""Documents cut and laid into rows of one length, so that almost no position is wasted.

A document of n tokens has n - 1 positions: each of its tokens but the last is an input, and the next token its target.
Positions, not tokens, are packed, so a document that is cut loses no target at the cut:

    document        <bos> a b c d e <eos>          7 tokens, 6 positions; rows of 4
    piece 1 inputs  <bos> a b c        targets  a b c d
    piece 2 inputs  d e                targets  e <eos>

A document longer than a row becomes whole rows and one rest; rests and short documents are laid into the fullest row
that still has room (best fit), largest first within a window of documents in shuffled order. A piece is a segment of
its own with positions from 0; one that continues a document starts without <bos>.
"""

from dataclasses import dataclass

import numpy as np

from gemworks.data.permutation import key_of

PIECE = np.dtype([("start", "<i8"), ("document", "<u4"), ("length", "<u4")])
_WINDOW = 2**15  # documents sorted by size together; also the most rows that are open at once


@dataclass(frozen=True)
class Rows:
    """Rows of pieces (PIECE): row r is pieces[ends[r - 1] : ends[r]]. `start` counts tokens of the store."""

    pieces: np.ndarray
    ends: np.ndarray  # int64

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.ends.size)

    def fill(self, length: int) -> float:
        """Fraction of positions that hold a token."""
        return float(self.pieces["length"].sum()) / max(1, self.num_rows * length)


def pack_rows(documents: np.ndarray, starts: np.ndarray, sizes: np.ndarray, length: int, seed: int) -> Rows:
    """Return rows of `length` positions over `documents` (indices, which may repeat), a pure function of all arguments.

    starts, sizes: first token and number of tokens of every document of the store. Documents of one token have no
    position and are left out.
    """
    assert length >= 1
    rng = np.random.Generator(np.random.PCG64(key_of(seed, length)))
    order = rng.permutation(np.asarray(documents, np.int64))
    positions = np.asarray(sizes, np.int64)[order] - 1
    order, positions = order[positions > 0], positions[positions > 0]
    packer = _Packer(length)
    for at in range(0, order.size, _WINDOW):
        packer.add(order[at : at + _WINDOW], positions[at : at + _WINDOW])
    rows = packer.finish()
    # Best fit leaves whole rows first and short documents last within a window: rows are shuffled when they are read.
    return _with_starts(rows, np.asarray(starts, np.int64))


class _Packer:
    """Open rows by the room they have left. Memory: one window of documents and the pieces made."""

    def __init__(self, length: int):
        self._length = length
        self._made: list[np.ndarray] = []  # (row, document, length, skipped) in blocks
        self._num_rows = 0
        self._by_room: list[list[int]] = [[] for _ in range(length + 1)]
        self._rooms = 0  # bit r is set where a row with room r is open
        self._num_open = 0

    def add(self, documents: np.ndarray, positions: np.ndarray) -> None:
        """Lay a window of documents: whole rows first, then the rests from the largest."""
        length = self._length
        whole = positions // length
        of = np.repeat(np.arange(documents.size), whole)
        number = np.arange(of.size) - np.repeat(np.cumsum(whole) - whole, whole)
        full = np.empty((of.size, 4), np.int64)
        full[:, 0] = self._num_rows + np.arange(of.size)
        full[:, 1], full[:, 2], full[:, 3] = documents[of], length, number * length
        self._num_rows += of.size
        self._made.append(full)
        rest = positions - whole * length
        order = np.argsort(-rest, kind="stable")
        order = order[rest[order] > 0]
        sizes = rest[order].tolist()
        rows = [self._place(size) for size in sizes]
        laid = np.empty((order.size, 4), np.int64)
        laid[:, 0], laid[:, 1], laid[:, 2], laid[:, 3] = rows, documents[order], sizes, (whole * length)[order]
        self._made.append(laid)
        if self._num_open > _WINDOW:
            self._close_all()

    def _place(self, size: int) -> int:
        """The row for a piece of `size`: the open one with the least room that is enough, else a new one."""
        fitting = self._rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = self._by_room[room].pop()
            self._num_open -= 1
            if not self._by_room[room]:
                self._rooms &= ~(1 << room)
        else:
            row, room = self._num_rows, self._length
            self._num_rows += 1
        if left := room - size:
            self._by_room[left].append(row)
            self._rooms |= 1 << left
            self._num_open += 1
        return row

    def _close_all(self) -> None:
        self._by_room = [[] for _ in range(self._length + 1)]
        self._rooms = self._num_open = 0

    def finish(self) -> Rows:
        """All rows; pieces of a row in the order they were laid."""
        made = np.concatenate(self._made) if self._made else np.empty((0, 4), np.int64)
        made = made[np.argsort(made[:, 0], kind="stable")]
        pieces = np.zeros(len(made), PIECE)
        pieces["document"], pieces["length"] = made[:, 1], made[:, 2]
        pieces["start"] = made[:, 3]
        ends = np.cumsum(np.bincount(made[:, 0], minlength=self._num_rows)).astype(np.int64)
        return Rows(pieces, ends)


def _with_starts(rows: Rows, starts: np.ndarray) -> Rows:
    rows.pieces["start"] += starts[rows.pieces["document"]]
    return rows
