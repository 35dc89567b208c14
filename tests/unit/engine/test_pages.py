"""Pages that the prefix cache keeps: counted apart, so that it is known at once how many could be had."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.engine.pages import PagePool
from gemworks.engine.rings import RingPool


@given(
    st.lists(st.tuples(st.sampled_from(["take", "share", "release", "keep", "unkeep"]), st.integers(0, 6)), max_size=60)
)
def test_idle_pages_are_those_nobody_but_the_cache_owns(steps):
    """Against owners counted by hand."""
    pool, owned, kept = PagePool(8, 4), [], set()
    for action, which in steps:
        if action == "take" and pool.num_free:
            owned += pool.take(1)
        elif action == "keep" and which < len(owned) and owned[which] not in kept:
            pool.keep(owned[which])
            kept.add(owned[which])
        elif action == "unkeep" and which + 1 in kept:
            pool.unkeep(which + 1)
            kept.remove(which + 1)
        elif action == "share" and which < len(owned):
            pool.share([owned[which]])
            owned.append(owned[which])
        elif action == "release" and which < len(owned):
            pool.release([owned.pop(which)])
        pool.audit()
        assert pool.num_idle == len(kept - set(owned))
        assert pool.num_free == 7 - len(kept | set(owned))
        assert all(pool.owners(page) == owned.count(page) + (page in kept) for page in range(8))


def test_kept_page_cannot_be_released_by_another():
    pool = PagePool(3, 4)
    [page] = pool.take(1)
    pool.keep(page)
    pool.release([page])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([page])
    with pytest.raises(AssertionError, match="kept twice"):
        pool.keep(page)
    pool.unkeep(page)
    assert pool.num_free == 2


def test_audit_of_rings_sees_one_that_is_free_twice():
    pool = RingPool(3, 8)
    pool.audit()
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(1)
    pool._free.append(1)
    with pytest.raises(AssertionError):
        pool.audit()
