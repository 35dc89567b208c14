"""What one worker does to one batch of documents: language, scores, verdict, masks, signatures, counts.

Nothing here needs another document: duplicates and weights are decided later over the signatures (filtering.py).
"""

import json
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gemworks.data import rules
from gemworks.data.contamination import MAX_MASKED, EvaluationIndex, find_contamination, mask_contamination
from gemworks.data.content import content_scores
from gemworks.data.duplicates import NUM_HASHES, exact_digest, min_hashes
from gemworks.data.languages import UNKNOWN, identify
from gemworks.data.personal import find_personal, mask_personal
from gemworks.data.quality import quality_scores
from gemworks.data.readers import Broken, Document, RawBatch, documents
from gemworks.data.repetition import repetition_scores
from gemworks.data.rules import Verdict
from gemworks.data.words import Words

BINS = 30
SAMPLE_CHARACTERS = 600


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a worker has to check. `languages` empty: any. `personal`: mask, drop or keep."""

    sets: tuple[str, ...]
    languages: tuple[str, ...]
    language_field: bool
    personal: str
    unsafe_terms: tuple[str, ...]
    index: EvaluationIndex | None


@dataclass
class Counts:
    """Sums over documents; those of batches are added up. Keys of JSON: only strings inside."""

    documents: int = 0
    text_bytes: int = 0
    by_reason: Counter = field(default_factory=Counter)  # documents
    bytes_by_reason: Counter = field(default_factory=Counter)
    by_group: dict[str, Counter] = field(default_factory=dict)  # "lang en" -> documents, bytes, and those that go on
    histograms: dict[str, list[int]] = field(default_factory=dict)  # rule -> BINS + 2 counts over `bin_edges`
    masked: Counter = field(default_factory=Counter)  # personal kinds, and contamination by set
    masked_documents: Counter = field(default_factory=Counter)
    broken: int = 0
    broken_lines: list[str] = field(default_factory=list)  # the first hundred

    def add(self, other: "Counts") -> None:
        """Add the counts of another batch."""
        self.documents += other.documents
        self.text_bytes += other.text_bytes
        for name in ("by_reason", "bytes_by_reason", "masked", "masked_documents"):
            getattr(self, name).update(getattr(other, name))
        for name, counter in other.by_group.items():
            self.by_group.setdefault(name, Counter()).update(counter)
        for name, bins in other.histograms.items():
            own = self.histograms.setdefault(name, [0] * len(bins))
            self.histograms[name] = [a + b for a, b in zip(own, bins, strict=True)]
        self.broken += other.broken
        self.broken_lines = (self.broken_lines + other.broken_lines)[:100]

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Counts":
        """Return the counts that `to_json` wrote."""
        made = cls(**value)
        for name in ("by_reason", "bytes_by_reason", "masked", "masked_documents"):
            setattr(made, name, Counter(value[name]))
        made.by_group = {name: Counter(counts) for name, counts in value["by_group"].items()}
        return made


@dataclass(frozen=True)
class Examined:
    """A batch done: records (compressed lines of JSON, kept and rejected in order), signatures of the kept, counts."""

    index: int
    records: bytes
    exact: bytes  # 16 bytes a kept document
    hashes: bytes  # uint32 [112] a kept document
    counts: Counts
    num_bytes: int
    first_broken: str | None


_checks: Checks | None = None  # of a worker process


def prepare(checks: Checks) -> None:
    """Set what this process checks."""
    global _checks
    _checks = checks


def examine(batch: RawBatch) -> Examined:
    """Examine a batch with the checks of this process."""
    assert _checks is not None
    counts, lines, exact, hashes = Counts(), [], [], []
    first_broken = None
    for item in documents(batch):
        if isinstance(item, Broken):
            first_broken = first_broken or str(item)
            counts.broken += 1
            counts.broken_lines = [*counts.broken_lines, str(item)][:100]
            continue
        record, words = _examine_one(item, _checks, counts)
        if words is not None:
            exact.append(exact_digest(words))
            hashes.append(min_hashes(words).tobytes())
        lines.append(json.dumps(record, ensure_ascii=False))
    records = zlib.compress("\n".join(lines).encode("utf-8", "replace"), 1)
    return Examined(batch.index, records, b"".join(exact), b"".join(hashes), counts, batch.num_bytes, first_broken)


def read_records(data: bytes) -> list[dict[str, Any]]:
    """Return the records of a batch, as `examine` made them."""
    text = zlib.decompress(data).decode()
    return [json.loads(line) for line in text.split("\n")] if text else []


def _examine_one(document: Document, checks: Checks, counts: Counts) -> tuple[dict[str, Any], Words | None]:
    """(record, words of the text that goes on, None where it goes)."""
    words = Words(document.text)
    language, confidence = _language(document, checks)
    scores = _scores(words, language, confidence, checks)
    _count_scores(scores, counts)
    verdict = rules.judge(scores, checks.sets)
    audit: dict[str, Any] = {"file": document.file, "line": document.line, "lang": language}
    audit["lang_confidence"] = round(confidence, 3)
    text = document.text
    if verdict is None and checks.index is not None:
        text, verdict = _decontaminate(text, words, checks.index, audit, counts)
    if verdict is None and checks.personal != "keep":
        text, verdict = _remove_personal(text, checks, audit, counts)
    size = len(document.text.encode())
    counts.documents += 1
    counts.text_bytes += size
    groups = group_names(document.fields, language)
    for name in groups:
        counts.by_group.setdefault(name, Counter()).update(documents=1, bytes=size)
    if verdict is not None:
        count_reject(counts, verdict.reason, size)
        sample: dict[str, Any] = {"text": document.text[:SAMPLE_CHARACTERS], "fields": document.fields, "bytes": size}
        sample["rules"] = rules.broken(scores, checks.sets)
        return {"reject": vars(verdict), "audit": audit, **sample}, None
    for name in groups:
        counts.by_group[name].update(kept=1, kept_bytes=size)
    kept = words if text == document.text else Words(text)
    return {**document.fields, "text": text, "audit": audit, "bytes": size}, kept


def group_names(fields: dict[str, Any], language: str) -> list[str]:
    """Names under which a document is counted: its language, source and licence."""
    licence = fields.get("licence", fields.get("license"))
    names = [f"language {language}", f"source {str(fields.get('source', 'unknown'))[:80]}"]
    return [*names, f"licence {str(licence)[:80]}"] if licence else names


def count_reject(counts: Counts, reason: str, size: int) -> None:
    """Count a document that goes."""
    counts.by_reason[reason] += 1
    counts.bytes_by_reason[reason] += size


def bin_edges(name: str) -> tuple[float, float]:
    """Return the range of a rule's histogram, with its limit inside; what lies outside has two more bins."""
    rule = rules.RULES[name]
    if rule.high is None or rule.high == 100_000:
        return 0.0, 20 * (rule.low or 1.0) if name == "gopher.words" else max(1.0, 4 * (rule.low or 0.25))
    return 0.0, 2 * rule.high if rule.high else 10.0


def _language(document: Document, checks: Checks) -> tuple[str, float]:
    if checks.language_field:
        language = str(document.fields.get("lang") or UNKNOWN)
        return language, float(language != UNKNOWN)
    return identify(document.text)


def _scores(words: Words, language: str, confidence: float, checks: Checks) -> dict[str, float]:
    sets = checks.sets
    scores = {"language.confidence": confidence}
    if checks.languages:
        scores["language.wanted"] = confidence if language in checks.languages else 0.0
    if {"gopher", "fineweb", "c4"} & set(sets):
        scores |= quality_scores(words, language)
    if {"repetition", "fineweb"} & set(sets):
        scores |= repetition_scores(words)
    if {"spam", "unsafe"} & set(sets):
        scores |= content_scores(words, checks.unsafe_terms)
    return scores


def _count_scores(scores: dict[str, float], counts: Counts) -> None:
    for name, score in scores.items():
        low, high = bin_edges(name)
        place = 0 if score < low else min(BINS, int((score - low) / (high - low) * BINS)) + 1
        counts.histograms.setdefault(name, [0] * (BINS + 2))[place] += 1


def _decontaminate(
    text: str, words: Words, index: EvaluationIndex, audit: dict[str, Any], counts: Counts
) -> tuple[str, Verdict | None]:
    found = find_contamination(words, index)
    if found is None:
        return text, None
    if found.share > MAX_MASKED:
        return text, Verdict(rules.CONTAMINATED, round(found.share, 4), MAX_MASKED)
    audit["contamination"] = {"share": round(found.share, 4), "sets": found.names, "spans": len(found.spans)}
    for name in found.names:
        counts.masked[f"contamination {name}"] += len(found.spans)
        counts.masked_documents[f"contamination {name}"] += 1
    return mask_contamination(text, words, found), None


def _remove_personal(text: str, checks: Checks, audit: dict[str, Any], counts: Counts) -> tuple[str, Verdict | None]:
    found = find_personal(text)
    if not found:
        return text, None
    kinds = Counter(one.kind for one in found)
    if checks.personal == "drop":
        return text, Verdict(f"{rules.PERSONAL}.{found[0].kind}", float(len(found)), 0.0)
    audit["masked"] = dict(kinds)
    counts.masked.update(kinds)
    counts.masked_documents.update(kinds.keys())
    return mask_personal(text, found), None


def empty_hashes() -> np.ndarray:
    """Return hashes of no document."""
    return np.empty((0, NUM_HASHES), np.uint32)
