"""Filtering a planted corpus and scoring every rule by what was planted."""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.data.planted import KINDS, PERSONAL
from gemworks.data.filtering import FilterOptions, run_filter

# What a planted kind must go for: beginnings of reasons. Personal data and contamination are masked instead.
_REASONS = {
    "gopher.symbols": ("gopher.",),
    "gopher.short": ("gopher.words",),
    "gopher.no_words": ("gopher.",),
    "repetition.lines": ("repetition.",),
    "repetition.phrases": ("repetition.",),
    "language": ("language.",),
}


def filtered(
    documents: Sequence[dict], evaluation: Sequence[str], folder: Path, processes: int, **options: Any
) -> list[dict[str, Any]]:
    """Run the filter; return for every document, in order, its decision and, where it was kept, its text."""
    source, questions, out = folder / "planted.jsonl", folder / "questions.jsonl", folder / "out"
    source.write_text("".join(json.dumps({"text": d["text"], "source": "s"}) + "\n" for d in documents), "utf-8")
    questions.write_text("".join(json.dumps({"question": text}) + "\n" for text in evaluation), "utf-8")
    asked = FilterOptions(languages=("en", "es"), evaluation=(str(questions),), **options)
    run_filter([source], out, asked, processes=processes)
    rows: list[dict[str, Any]] = [{} for _ in documents]
    with gzip.open(out / "audit" / "decisions.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            decision = json.loads(line)
            rows[decision["line"] - 1] = decision
    for path in sorted(out.glob("kept-*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                rows[record["audit"]["line"] - 1]["text"] = record["text"]
    return rows


def scores(documents: Sequence[dict], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a planted kind: planted, caught, wrong (clean documents that went or were masked for it).

    A document that went for another reason before the rule's turn (a near copy of a text that repeats itself) is
    `other`, and no part of the recall.
    """
    planted = Counter(document["plant"] for document in documents)
    caught: Counter = Counter()
    wrong: Counter = Counter()
    other: Counter = Counter()
    for document, row in zip(documents, rows, strict=True):
        kind = document["plant"]
        for name in KINDS:
            if _is_hit(name, document, row):
                if kind == name:
                    caught[name] += 1
                elif kind == "clean":
                    wrong[name] += 1
            elif kind == name and not row["keep"]:
                other[name] += 1
    found = []
    for name in KINDS:
        hits = caught[name] + wrong[name]
        found.append(
            {
                "kind": name,
                "planted": planted[name],
                "caught": caught[name],
                "wrong": wrong[name],
                "clean": planted["clean"],
                "other": other[name],
                "recall": round(caught[name] / max(1, planted[name] - other[name]), 4),
                "precision": round(caught[name] / hits, 4) if hits else 0.0,
            }
        )
    return found


def _is_hit(name: str, document: dict, row: dict[str, Any]) -> bool:
    """Whether a document went, or was masked, for a kind of defect. A planted secret must be gone from the text."""
    if name in PERSONAL or name == "contamination":
        key = "contamination" in row if name == "contamination" else name in row.get("masked", {})
        if not key and name == "contamination":
            return row.get("reason") == "contamination"
        return key and (document["plant"] != name or document["secret"] not in row.get("text", ""))
    wanted = _REASONS.get(name, (name,))
    return not row["keep"] and any(reason.startswith(wanted) for reason in (row["reason"], *row["rules"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the scores as lines of text."""
    lines = [f"{'defect':<20}{'planted':>8}{'caught':>8}{'other':>7}{'recall':>9}{'clean hit':>11}{'precision':>11}"]
    lines += [
        f"{row['kind']:<20}{row['planted']:>8}{row['caught']:>8}{row['other']:>7}{row['recall']:>9.3f}"
        f"{row['wrong']:>6} / {row['clean']:<4}{row['precision']:>9.3f}"
        for row in rows
    ]
    return "\n".join(lines)
