"""Exact and near duplicates: digests of the words, and MinHash of 5-word shingles in 14 bands of 8.

Two documents whose shingle sets have Jaccard similarity s share a band with probability 1 - (1 - s^8)^14: 0.92 at
s = 0.8, 0.05 at 0.5. A shared band makes a candidate; it is a duplicate if the estimate of s from all 112 hashes is
at least 0.7 as well, which takes away most of that 5 %. Of a cluster the first document in reading order is kept.

Memory: 48 bytes a document while a band is sorted. The hashes (448 bytes a document) stay on the disk.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gemworks.data.words import Words, scrambled

SHINGLE, BANDS, ROWS = 5, 14, 8
NUM_HASHES = BANDS * ROWS
MIN_SIMILARITY = 0.7
_EMPTY = np.uint32(0xFFFFFFFF)

_rng = np.random.Generator(np.random.PCG64(20260101))
_MULTIPLY = _rng.integers(0, 2**64, NUM_HASHES, np.uint64) | np.uint64(1)
_ADD = _rng.integers(0, 2**64, NUM_HASHES, np.uint64)
_BLOCK = 4096  # shingles hashed at a time: 3.7 MB


def exact_digest(words: Words) -> bytes:
    """Return 16 bytes that are equal for texts of the same words, whatever case, marks and spaces."""
    return hashlib.blake2b(words.hashes.tobytes(), digest_size=16).digest()


def min_hashes(words: Words) -> np.ndarray:
    """Return the least of each of 112 hashes over the shingles, uint32 [112]; all ones for a text of under 5 words."""
    shingles = np.unique(words.ngrams(SHINGLE))
    least = np.full(NUM_HASHES, _EMPTY, np.uint32)
    for at in range(0, shingles.size, _BLOCK):
        # Multiply-shift: the upper half of a * x + b modulo 2^64.
        block = shingles[at : at + _BLOCK, None] * _MULTIPLY + _ADD
        np.minimum(least, (block >> np.uint64(32)).min(axis=0).astype(np.uint32), out=least)
    return least


@dataclass(frozen=True)
class Duplicates:
    """For each document: the one it repeats, or itself; how alike they are; and whether word for word."""

    original: np.ndarray  # int64
    similarity: np.ndarray  # float32
    is_exact: np.ndarray  # bool

    @property
    def drops(self) -> np.ndarray:
        """True where a document repeats an earlier one."""
        return self.original != np.arange(self.original.size)


def find_duplicates(
    exact: np.ndarray, hashes: np.ndarray, progress: Callable[[int, int], None] | None = None
) -> Duplicates:
    """Cluster documents by `exact` (uint64 [documents, 2]) and `hashes` (uint32 [documents, 112], may be mapped)."""
    count = exact.shape[0]
    parent, similarity = _first_of_equal(exact), np.ones(count, np.float32)
    is_exact = parent != np.arange(count)
    unique = np.flatnonzero(~is_exact)
    unique = unique[np.asarray(hashes[:, 0])[unique] != _EMPTY]
    for band in range(BANDS):
        _join_band(band, unique, hashes, parent, similarity)
        if progress is not None:
            progress(band + 1, BANDS)
    original = np.array([_root(parent, i) for i in range(count)], np.int64)
    return Duplicates(original, similarity, is_exact)


def _first_of_equal(exact: np.ndarray) -> np.ndarray:
    """For each row the first row that equals it."""
    order = np.lexsort((exact[:, 1], exact[:, 0]))  # stable: equal rows stay in reading order
    starts = np.ones(order.size, bool)
    starts[1:] = (exact[order[1:]] != exact[order[:-1]]).any(axis=1)
    first = np.empty(order.size, np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _join_band(
    band: int, documents: np.ndarray, hashes: np.ndarray, parent: np.ndarray, similarity: np.ndarray
) -> None:
    keys = _band_keys(hashes, documents, band)
    order = np.argsort(keys, kind="stable")  # stable: documents of one key stay in reading order
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if ordered.size else np.empty(0, int)
    ends = np.append(starts[1:], ordered.size)
    for start, end in zip(starts[ends - starts > 1].tolist(), ends[ends - starts > 1].tolist(), strict=True):
        members = documents[order[start:end]]
        own = hashes[members[0]]
        for member in members[1:].tolist():
            alike = float((hashes[member] == own).mean())
            if alike >= MIN_SIMILARITY:
                a, b = _root(parent, int(members[0])), _root(parent, member)
                if a != b:
                    parent[max(a, b)] = min(a, b)
                    similarity[max(a, b)] = alike


def _band_keys(hashes: np.ndarray, documents: np.ndarray, band: int, block: int = 2**16) -> np.ndarray:
    """Return the key of one band of some documents, reading the hashes in blocks."""
    keys = np.empty(documents.size, np.uint64)
    for at in range(0, documents.size, block):
        part = np.asarray(hashes[documents[at : at + block], band * ROWS : (band + 1) * ROWS], np.uint64)
        key = part[:, 0].copy()
        for i in range(1, ROWS):
            key = scrambled(key * np.uint64(0x9E3779B97F4A7C15) + part[:, i])
        keys[at : at + block] = key
    return keys


def _root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i
