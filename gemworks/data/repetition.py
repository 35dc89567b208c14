"""Scores of how much a document repeats itself: lines, paragraphs, and runs of words (Gopher, appendix A.1).

Only what was seen before counts as repeated, not its first occurrence, and a character that lies in several repeated
runs counts once. Libraries that add up overlapping runs approximately give other values on text that repeats in long
stretches; tests/unit/data/test_repetition.py holds a slow count by the definition.
"""

import numpy as np

from gemworks.data.words import Words


def repetition_scores(words: Words) -> dict[str, float]:
    """Return the scores of the set repetition, and the line rule of fineweb."""
    lines = [line.strip() for line in words.text.split("\n") if line and not line.isspace()]
    paragraphs = [part.strip() for part in words.text.split("\n\n") if part and not part.isspace()]
    share_lines, share_line_chars = _repeated(lines)
    share_paragraphs, share_paragraph_chars = _repeated(paragraphs)
    scores = {
        "repetition.lines": share_lines,
        "repetition.line_chars": share_line_chars,
        "repetition.paragraphs": share_paragraphs,
        "repetition.paragraph_chars": share_paragraph_chars,
        "fineweb.line_chars": share_line_chars,
    }
    sizes = np.fromiter(map(len, words.folded), np.int64, len(words.folded))
    total = int(sizes.sum())
    if not total:
        return scores
    ends = np.concatenate([[0], np.cumsum(sizes)])
    for n in (2, 3, 4):
        scores[f"repetition.top_{n}"] = _top_share(words.ngrams(n), ends, n, total)
    share = 1.0
    for n in range(5, 11):  # without a repeated run of n words there is none of n + 1
        share = _duplicate_share(words.ngrams(n), sizes, n, total) if share else 0.0
        scores[f"repetition.duplicate_{n}"] = share
    return scores


def _repeated(parts: list[str]) -> tuple[float, float]:
    """Shares of parts, and of their characters, that are repeats of an earlier part."""
    if len(parts) < 2:
        return 0.0, 0.0
    different = set(parts)
    if len(different) == len(parts):
        return 0.0, 0.0
    total = sum(map(len, parts))
    return 1 - len(different) / len(parts), 1 - sum(map(len, different)) / total


def _top_share(grams: np.ndarray, ends: np.ndarray, n: int, total: int) -> float:
    """Characters in all occurrences of the commonest n-gram, the longest of several; 0 if none occurs twice."""
    if grams.size < 2:
        return 0.0
    _, first, counts = np.unique(grams, return_index=True, return_counts=True)
    most = counts.max()
    if most < 2:
        return 0.0
    at = first[counts == most]
    return float(min(1.0, most * (ends[at + n] - ends[at]).max() / total))


def _duplicate_share(grams: np.ndarray, sizes: np.ndarray, n: int, total: int) -> float:
    """Characters that lie in an n-gram which occurred before."""
    if grams.size < 2:
        return 0.0
    _, first = np.unique(grams, return_index=True)
    if first.size == grams.size:
        return 0.0
    again = np.ones(grams.size, bool)
    again[first] = False
    change = np.zeros(sizes.size + 1, np.int64)
    change[:-n][again] += 1  # an n-gram at i covers words i ... i + n - 1
    np.add.at(change, np.flatnonzero(again) + n, -1)
    covered = np.cumsum(change[:-1]) > 0
    return float(sizes[covered].sum() / total)
