"""Pages, rings and sequences as integers: ownership, and what a wrapped ring allows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.engine.pages import PagePool
from gemworks.engine.rings import RingPool
from gemworks.engine.sequence import Sequence
from gemworks.errors import CapacityError


def test_page_zero_is_never_handed_out():
    pool = PagePool(5, 4)
    assert sorted(pool.take(4)) == [1, 2, 3, 4]
    pool.audit()


def test_too_many_pages_are_refused_and_none_is_taken():
    pool = PagePool(4, 16)
    with pytest.raises(CapacityError, match="3 free pages of 16 tokens, 4 were asked for"):
        pool.take(4)
    assert pool.num_free == 3


def test_shared_page_is_free_after_its_last_owner():
    pool = PagePool(3, 4)
    pages = pool.take(1)
    pool.share(pages)
    pool.release(pages)
    assert pool.num_free == 1
    pool.release(pages)
    assert pool.num_free == 2
    pool.audit()


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "release"]), st.integers(0, 6)), max_size=60))
def test_pages_are_free_or_owned_whatever_happens(steps):
    pool, owned = PagePool(8, 4), []
    for action, amount in steps:
        if action == "take" and amount <= pool.num_free:
            owned += [[page] for page in pool.take(amount)]
        elif action == "share" and amount < len(owned):
            pool.share(owned[amount])
            owned.append(owned[amount])
        elif action == "release" and amount < len(owned):
            pool.release(owned.pop(amount))
        pool.audit()
    assert pool.num_free == 7 - len({page for pages in owned for page in pages})


def test_rings_run_out_with_a_clear_message():
    pool = RingPool(1, 8)
    ring = pool.take()
    with pytest.raises(CapacityError, match="all 1 sequences of this engine are running"):
        pool.take()
    pool.release(ring)
    assert pool.num_free == 1


def new_sequence(window: int | None = 4, slots: int = 4) -> Sequence:
    return Sequence(PagePool(100, 2), RingPool(1, slots), window=window)


def store(sequence: Sequence, ids) -> None:
    sequence.reserve(sequence.stored + len(ids))
    sequence.append(list(ids))


@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 30), st.integers(0, 30))
def test_rewind_is_allowed_exactly_while_the_ring_holds_what_is_needed(window, spare, stored, length):
    """Against a simulated ring: the next token at `length` reads positions length - window + 1 ... length - 1."""
    length = min(length, stored)
    slots = window + spare
    ring = {}
    for position in range(stored):
        ring[position % slots] = position
    needed = range(max(0, length - window + 1), length)
    sequence = new_sequence(window, slots)
    store(sequence, range(stored))
    assert sequence.can_rewind(length) == all(ring[p % slots] == p for p in needed)


def test_rewinding_keeps_the_tokens_before_and_gives_pages_back():
    sequence = new_sequence(window=None)
    store(sequence, [1, 2, 3, 4, 5])
    sequence.rewind(3)
    assert sequence.tokens == [1, 2, 3] and len(sequence.table) == 2


def test_wrapped_ring_can_only_start_again():
    sequence = new_sequence(window=4, slots=4)
    store(sequence, range(20))
    assert not sequence.can_rewind(10)
    sequence.rewind(0)
    assert sequence.table == [] and sequence.stored == 0
