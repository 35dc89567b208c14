import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.data.packing import pack_rows


def rows_of(sizes, length, seed=0, documents=None):
    sizes = np.array(sizes, np.int64)
    starts = np.cumsum(sizes) - sizes
    return pack_rows(np.arange(sizes.size) if documents is None else documents, starts, sizes, length, seed), starts


def pieces_by_row(rows):
    bounds = zip([0, *rows.ends.tolist()], rows.ends.tolist(), strict=False)
    return [rows.pieces[a:b].tolist() for a, b in bounds]


@given(st.lists(st.integers(1, 60), max_size=50), st.integers(2, 20), st.integers(0, 3))
def test_every_target_is_laid_exactly_once_and_no_row_overflows(sizes, length, seed):
    rows, starts = rows_of(sizes, length, seed)
    seen = []
    for row in pieces_by_row(rows):
        assert 0 < sum(size for _, _, size in row) <= length
        for start, document, size in row:
            inside = start - starts[document]
            seen += [(document, inside + i) for i in range(size)]
    assert sorted(seen) == [(d, i) for d, n in enumerate(sizes) for i in range(n - 1)]


def test_a_document_is_cut_only_where_it_is_longer_than_a_row():
    rows, _ = rows_of([5, 9, 3, 21, 9], 8)
    lengths = {d: sorted(int(p["length"]) for p in rows.pieces if p["document"] == d) for d in range(5)}
    assert lengths == {0: [4], 1: [8], 2: [2], 3: [4, 8, 8], 4: [8]}


def test_a_piece_goes_into_the_fullest_row_that_has_room():
    """7, 6, 3, 2 and 2 positions in rows of 10: the 3 beside the 7, or the second 2 would need a row of its own."""
    assert rows_of([8, 7, 4, 3, 3], 10)[0].num_rows == 2


def test_rows_are_nearly_full():
    sizes = np.random.default_rng(0).geometric(1 / 300, 3000) + 1
    rows, _ = rows_of(sizes.tolist(), 512)
    assert rows.fill(512) > 0.99


def test_the_same_seed_gives_the_same_rows_and_another_gives_others():
    sizes = np.random.default_rng(0).integers(2, 90, 200).tolist()
    first, again, other = (rows_of(sizes, 64, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first.pieces, again.pieces)
    assert not np.array_equal(first.pieces, other.pieces)


def test_a_document_may_be_laid_twice():
    rows, _ = rows_of([6, 6], 5, documents=[0, 0, 1])
    assert sorted(rows.pieces["document"].tolist()) == [0, 0, 1]


@pytest.mark.parametrize("sizes", [[], [1, 1]])
def test_documents_without_a_target_make_no_rows(sizes):
    rows, _ = rows_of(sizes, 8)
    assert rows.num_rows == 0
    assert rows.pieces.size == 0
