"""The cache of image embeddings: what is computed again, what is dropped, and what is refused."""

import numpy as np
import pytest

from gemworks.engine.encoder_cache import EncoderCache
from gemworks.engine.types import SoftSpan
from gemworks.errors import RequestError

DIM = 8


def span(key, length: int = 4, *, calls: list | None = None, rows=None, start: int = 3) -> SoftSpan:
    def embed():
        if calls is not None:
            calls.append(key)
        return np.full((length, DIM), len(str(key)), np.float64) if rows is None else rows

    return SoftSpan(start=start, length=length, key=key, embed=embed)


def test_an_image_is_encoded_once():
    cache, calls = EncoderCache(10_000, DIM), []
    first = cache.get(span("a", calls=calls))
    again = cache.get(span("a", calls=calls, start=90))  # the same image elsewhere
    assert first is again and calls == ["a"]
    assert first.dtype == np.float32 and first.shape == (4, DIM) and (first == 1).all()
    assert (cache.hits, cache.misses, len(cache), cache.nbytes) == (1, 1, 1, 4 * DIM * 4)


def test_the_one_used_longest_ago_goes_first():
    size = 4 * DIM * 4
    cache, calls = EncoderCache(2 * size, DIM), []
    for key in ("a", "b", "a", "c", "a", "b"):  # b goes for c, then c for b
        cache.get(span(key, calls=calls))
        assert cache.nbytes <= cache.max_bytes and cache.nbytes == len(cache) * size
    assert calls == ["a", "b", "c", "b"]
    assert (cache.hits, cache.misses) == (2, 4)


def test_an_image_larger_than_the_cache_is_not_kept():
    size = 4 * DIM * 4
    cache, calls = EncoderCache(2 * size, DIM), []
    cache.get(span("small", calls=calls))
    for _ in range(2):
        assert cache.get(span("large", 9, calls=calls)).shape == (9, DIM)
    cache.get(span("small", calls=calls))
    assert calls == ["small", "large", "large"] and cache.nbytes == size


def test_a_kept_image_cannot_be_changed():
    cache, rows = EncoderCache(10_000, DIM), np.zeros((4, DIM), np.float32)
    kept = cache.get(span("a", rows=rows))
    rows[:] = 7
    assert not kept.any()
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1


def test_the_same_key_with_another_length_is_encoded_again():
    """Pan and Scan cannot do that, but a wrong key must not put rows in places that are not there."""
    cache, calls = EncoderCache(10_000, DIM), []
    cache.get(span("a", 4, calls=calls))
    assert cache.get(span("a", 6, calls=calls)).shape == (6, DIM)
    assert calls == ["a", "a"] and cache.nbytes == 6 * DIM * 4


@pytest.mark.parametrize("shape", [(4, DIM + 1), (5, DIM), (4 * DIM,), (1, 4, DIM)])
def test_another_shape_is_refused_with_both(shape):
    cache = EncoderCache(10_000, DIM)
    with pytest.raises(RequestError) as refused:
        cache.get(span("a", rows=np.zeros(shape)))
    text = str(refused.value)
    assert f"the image at tokens 3 to 6 must have embeddings [4, {DIM}], and its encoder gave {[*shape]}." in text
    assert len(cache) == 0 and cache.nbytes == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_refused(value):
    cache, rows = EncoderCache(10_000, DIM), np.zeros((4, DIM))
    rows[2, 3] = value
    with pytest.raises(RequestError, match=r"must have finite embeddings, and 1 of 32 numbers are not"):
        cache.get(span("a", rows=rows))
    assert len(cache) == 0


def test_an_error_of_the_encoder_passes_and_nothing_is_kept():
    cache = EncoderCache(10_000, DIM)

    def broken():
        raise OSError("the photograph is gone")

    with pytest.raises(OSError, match="the photograph is gone"):
        cache.get(SoftSpan(start=0, length=4, key="a", embed=broken))
    assert cache.get(span("a")).shape == (4, DIM)


def test_clear_forgets():
    cache, calls = EncoderCache(10_000, DIM), []
    cache.get(span("a", calls=calls))
    cache.clear()
    assert cache.nbytes == 0
    cache.get(span("a", calls=calls))
    assert calls == ["a", "a"]
