"""Sources to kept shards, a decision for every document, a sample of the rejects, and a report.

    1  examine    in several processes, batch by batch: rules, masks, signatures       -> OUT/.work, journaled
    2  compare    signatures: exact and near duplicates, weights
    3  write      kept-NNNNN.jsonl.gz, report.json, report.html, audit/{decisions.jsonl.gz, rejects-sample.jsonl}

A run that was stopped, by Ctrl-C or a kill or a full disk, is continued by the same command: examined batches are
not examined again. report.json is written last; with it the directory is complete and .work goes away.

Memory: a few batches of 2 MB for each process, and 48 bytes a document in step 2. OUT/.work takes about a third of the
text's size on the disk until the end.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.data import rules
from gemworks.data.contamination import build_index
from gemworks.data.duplicates import NUM_HASHES, Duplicates, find_duplicates
from gemworks.data.examining import (
    Checks,
    Counts,
    Examined,
    count_reject,
    examine,
    group_names,
    prepare,
    read_records,
)
from gemworks.data.languages import identify
from gemworks.data.readers import find_files, raw_batches
from gemworks.data.reweighing import ReferenceClassifier, density_weights, reference_weights
from gemworks.data.shards import ShardWriter
from gemworks.data.work import run_in_order
from gemworks.data.writing import replace_json, storing
from gemworks.errors import ConfigError, StorageError

REPORT = "report.json"
_VERSION = 1
_PERSONAL = ("mask", "drop", "keep")
_REWEIGH = ("none", "density", "reference")
COMPRESS = ("gz", "xz", "zst", "none")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What is asked of a filter run; the defaults are the command's. ConfigError for what cannot be."""

    sets: tuple[str, ...] = rules.DEFAULT_SETS
    languages: tuple[str, ...] = ()
    language_field: bool = False
    personal: str = "mask"
    evaluation: tuple[str, ...] = ()
    unsafe_terms: str = ""
    duplicates: bool = True
    reweigh: str = "none"
    reference: tuple[str, ...] = ()
    compress: str = "gz"
    shard_bytes: int = 256_000_000
    sample: int = 20  # rejects of each reason
    stop_on_broken: bool = False

    def __post_init__(self) -> None:
        rules.check_sets(self.sets)
        for name, value, known in (
            ("personal", self.personal, _PERSONAL),
            ("reweigh", self.reweigh, _REWEIGH),
            ("compress", self.compress, COMPRESS),
        ):
            if value not in known:
                raise ConfigError(f'--{name} must be one of {", ".join(known)}, got "{value}".')
        if (self.reweigh == "reference") != bool(self.reference):
            raise ConfigError("--reweigh reference and --reference FILE go together: give both or neither.")
        if self.reweigh == "density" and not self.duplicates:
            raise ConfigError(
                "--reweigh density needs the signatures of the duplicate search; leave --no-duplicates out."
            )


@dataclass
class _Work:
    """OUT/.work: what is examined so far."""

    folder: Path
    key: str
    batches: int = 0
    kept: int = 0
    num_bytes: int = 0
    sizes: list[int] = field(default_factory=list)  # compressed bytes of records, by batch
    counts: Counts = field(default_factory=Counts)

    @property
    def journal(self) -> Path:
        """One line for the key, then one for each batch."""
        return self.folder / "journal.jsonl"

    def open(self) -> None:
        """Start, or go on from what lies there. ConfigError if that was another run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = self.journal.read_bytes().split(b"\n") if self.journal.exists() else []
        if not lines or not lines[1:]:
            self.journal.write_text(json.dumps({"key": self.key}) + "\n")
        elif json.loads(lines[0])["key"] != self.key:
            raise ConfigError(
                f"{self.folder.parent}: holds a stopped run of other options or sources, which cannot be continued.\n"
                "Give the same ones as then, choose another directory, or remove it."
            )
        for line in lines[1:-1]:
            note = json.loads(line)
            self._note(note["records"], note["kept"], note["bytes"], Counts.from_json(note["counts"]))
        if lines[1:] and lines[-1]:  # a kill cut the last note off
            os.truncate(self.journal, self.journal.stat().st_size - len(lines[-1]))
        for name, size in (
            ("records", sum(self.sizes)),
            ("exact", 16 * self.kept),
            ("hashes", 4 * NUM_HASHES * self.kept),
        ):
            (self.folder / name).touch()
            os.truncate(self.folder / name, size)

    def append(self, done: Examined) -> None:
        """Write a batch's results, then the note that they are there."""
        for name, data in (("records", done.records), ("exact", done.exact), ("hashes", done.hashes)):
            with open(self.folder / name, "ab") as file:
                file.write(data)
        kept = len(done.exact) // 16
        note = {"records": len(done.records), "kept": kept, "bytes": done.num_bytes, "counts": done.counts.to_json()}
        with open(self.journal, "ab") as file:
            file.write(json.dumps(note).encode() + b"\n")
        self._note(len(done.records), kept, done.num_bytes, done.counts)

    def _note(self, size: int, kept: int, num_bytes: int, counts: Counts) -> None:
        self.batches += 1
        self.sizes.append(size)
        self.kept += kept
        self.num_bytes += num_bytes
        self.counts.add(counts)

    def records(self) -> Iterator[list[dict[str, Any]]]:
        """The records of each batch."""
        with open(self.folder / "records", "rb") as file:
            for size in self.sizes:
                yield read_records(file.read(size))

    def signatures(self) -> tuple[np.ndarray, np.ndarray]:
        """(exact digests uint64 [kept, 2], hashes uint32 [kept, 112], mapped)."""
        if not self.kept:
            return np.empty((0, 2), np.uint64), np.empty((0, NUM_HASHES), np.uint32)
        exact = np.fromfile(self.folder / "exact", np.uint64).reshape(-1, 2)
        return exact, np.memmap(self.folder / "hashes", np.uint32, "r", shape=(self.kept, NUM_HASHES))


def run_filter(
    sources: Sequence[str | Path],
    out: Path,
    options: FilterOptions,
    *,
    processes: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Filter `sources` into the directory `out` and return the report. progress(stage, done, total).

    Raises ConfigError for empty sources and for an `out` that holds something else, StorageError for files, and for
    the first broken line with options.stop_on_broken.
    """
    files = find_files(sources)
    checks = _checks(options)
    if (out / REPORT).exists():
        raise ConfigError(f"{out}: holds a finished run already. Choose another directory, or remove it.")
    with storing(out):
        if out.exists() and not (out / ".work").exists() and any(out.iterdir()):
            raise ConfigError(f"{out}: must be a new or empty directory, or one of a stopped run.")
        work = _Work(out / ".work", _key(files, options))
        work.open()
        _examine_all(files, work, checks, options, processes, progress or (lambda *_: None))
        if not work.counts.documents:
            raise ConfigError(_nothing(files, work.counts))
        report = _write_all(out, work, files, options, progress or (lambda *_: None))
        shutil.rmtree(out / ".work")
    return report


def _checks(options: FilterOptions) -> Checks:
    if not options.language_field:
        identify("a text, to find now what is not installed")
    terms: tuple[str, ...] = ()
    if options.unsafe_terms:
        path = Path(options.unsafe_terms)
        with storing(path):
            terms = tuple(
                line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
            )
    index = build_index(find_files(options.evaluation)) if options.evaluation else None
    return Checks(
        sets=options.sets,
        languages=options.languages,
        language_field=options.language_field,
        personal=options.personal,
        unsafe_terms=terms,
        index=index,
    )


def _examine_all(
    files: list[Path], work: _Work, checks: Checks, options: FilterOptions, processes: int, progress: Progress
) -> None:
    total = sum(path.stat().st_size for path in files)
    sizes = {str(path): path.stat().st_size for path in files}
    done_files: dict[str, int] = {}
    left = (batch for batch in _noting(raw_batches(files), done_files) if batch.index >= work.batches)
    told = {"processes": processes, "prepare": prepare, "arguments": (checks,)}
    with closing(run_in_order(examine, left, **told)) as results:
        for done in results:
            if options.stop_on_broken and done.first_broken:
                raise StorageError(f"{done.first_broken}.\nLeave --stop-on-broken out to skip and count such lines.")
            work.append(done)
            # Compressed sources are larger than their files: progress is by files finished and a share of this one.
            last = list(done_files)[-1]
            before = sum(sizes[name] for name in done_files if name != last)
            progress("examining", before + min(done_files[last], max(0, total - before)), total)


def _noting(batches: Iterator[Any], done: dict[str, int]) -> Iterator[Any]:
    for batch in batches:
        done[batch.file] = done.get(batch.file, 0) + batch.num_bytes
        yield batch


def _write_all(out: Path, work: _Work, files: list[Path], options: FilterOptions, progress: Progress) -> dict[str, Any]:
    """Steps 2 and 3."""
    exact, hashes = work.signatures()
    found = find_duplicates(exact, hashes, lambda i, n: progress("comparing", i, n)) if options.duplicates else None
    weights = _weights(work, found, hashes, options)
    counts, kept = work.counts, 0
    shards = ShardWriter(out, options.compress, options.shard_bytes)
    samples: dict[str, list[dict[str, Any]]] = {}
    (out / "audit").mkdir(exist_ok=True)
    with shards, ShardWriter(out / "audit", "gz", 2**62, name="decisions") as decisions:
        originals = _origins_of(found)
        for number, records in enumerate(work.records()):
            for record in records:
                verdict = record.pop("reject", None)
                if verdict is None:
                    if kept in originals:
                        originals[kept] = f"{record['audit']['file']}, line {record['audit']['line']}"
                    verdict = _duplicate_verdict(found, kept, originals)
                    if verdict is not None:
                        _count_duplicate(counts, record, verdict["reason"])
                    elif weights is not None:
                        record["audit"]["weight"] = round(float(weights[kept]), 4)
                    kept += 1
                _decide(record, verdict, shards, decisions, samples, options.sample)
            progress("writing", number + 1, work.batches)
    _write_samples(out / "audit" / "rejects-sample.jsonl", samples)
    report = _report(files, options, counts, shards)
    from gemworks.data.report import write_html

    write_html(out / "report.html", report, samples)
    replace_json(out / REPORT, report)
    return report


def _origins_of(found: Duplicates | None) -> dict[int, str]:
    """A place for each document that has a later copy; filled while writing."""
    return {} if found is None else dict.fromkeys(found.original[found.drops].tolist(), "")


def _duplicate_verdict(found: Duplicates | None, number: int, originals: dict[int, str]) -> dict[str, Any] | None:
    if found is None or not found.drops[number]:
        return None
    is_exact = bool(found.is_exact[number])
    return {
        "reason": rules.EXACT if is_exact else rules.NEAR,
        "score": 1.0 if is_exact else round(float(found.similarity[number]), 3),
        "limit": 1.0 if is_exact else 0.7,
        "of": originals[int(found.original[number])],
    }


def _decide(
    record: dict[str, Any],
    verdict: dict[str, Any] | None,
    shards: ShardWriter,
    decisions: ShardWriter,
    samples: dict[str, list[dict[str, Any]]],
    number: int,
) -> None:
    """Write a document to where it goes, and its decision."""
    audit = record["audit"]
    where = {"file": audit["file"], "line": audit["line"]}
    if verdict is None:
        decisions.write({**where, "keep": True, **{k: v for k, v in audit.items() if k not in where}})
        record.pop("bytes")
        shards.write(record)
        return
    rules_broken = record.get("rules", [])
    decisions.write({**where, "keep": False, "lang": audit["lang"], **verdict, "rules": rules_broken})
    own = samples.setdefault(verdict["reason"], [])
    if len(own) < number:
        fields = record.get("fields") or {k: v for k, v in record.items() if k not in ("text", "audit", "bytes")}
        own.append({**verdict, **where, "fields": fields, "text": record["text"][:600]})


def _count_duplicate(counts: Counts, record: dict[str, Any], reason: str) -> None:
    count_reject(counts, reason, record["bytes"])
    for name in group_names(record, record["audit"]["lang"]):
        counts.by_group[name].update(kept=-1, kept_bytes=-record["bytes"])


def _weights(work: _Work, found: Duplicates | None, hashes: np.ndarray, options: FilterOptions) -> np.ndarray | None:
    """Weights of the documents that passed the rules, those of duplicates 0; None where nothing is reweighed."""
    if options.reweigh == "none":
        return None
    keep = np.ones(work.kept, bool) if found is None else ~found.drops
    weights = np.zeros(work.kept, np.float32)
    if options.reweigh == "density":
        weights[keep] = density_weights(hashes[np.flatnonzero(keep)])
        return weights
    classifier = ReferenceClassifier()
    classifier.add_reference(find_files(options.reference))
    for text, keeps in zip(_passed(work), keep.tolist(), strict=True):
        if keeps:
            classifier.add(text)
    odds = (classifier.log_odds(text) for text, keeps in zip(_passed(work), keep.tolist(), strict=True) if keeps)
    weights[keep] = reference_weights(odds)
    return weights


def _passed(work: _Work) -> Iterator[str]:
    for records in work.records():
        yield from (record["text"] for record in records if "reject" not in record)


def _write_samples(path: Path, samples: dict[str, list[dict[str, Any]]]) -> None:
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for reason in sorted(samples) for one in samples[reason]]
    path.write_text("".join(lines), encoding="utf-8")


def _report(files: list[Path], options: FilterOptions, counts: Counts, shards: ShardWriter) -> dict[str, Any]:
    rejected, rejected_bytes = sum(counts.by_reason.values()), sum(counts.bytes_by_reason.values())
    order = sorted(counts.by_reason, key=lambda name: (-counts.by_reason[name], name))
    groups: dict[str, dict[str, dict[str, int]]] = {}
    for name, counter in sorted(counts.by_group.items()):
        kind, _, value = name.partition(" ")
        groups.setdefault(kind, {})[value] = {n: counter[n] for n in ("documents", "kept", "bytes", "kept_bytes")}
    return {
        "format": "gemworks-filter-report",
        "version": _VERSION,
        "sources": [{"path": str(path), "bytes": path.stat().st_size} for path in files],
        "options": asdict(options),
        "documents": counts.documents,
        "text_bytes": counts.text_bytes,
        "kept": counts.documents - rejected,
        "kept_bytes": counts.text_bytes - rejected_bytes,
        "broken": counts.broken,
        "broken_lines": counts.broken_lines,
        "rejected": {
            name: {"documents": counts.by_reason[name], "bytes": counts.bytes_by_reason[name]} for name in order
        },
        "masked": {
            n: {"times": counts.masked[n], "documents": counts.masked_documents[n]} for n in sorted(counts.masked)
        },
        "groups": groups,
        "histograms": counts.histograms,
        "shards": shards.manifest,
    }


def _nothing(files: list[Path], counts: Counts) -> str:
    names = ", ".join(map(str, files[:3]))
    if not counts.broken:
        return f"{names}: the sources must hold a document, got none."
    first = counts.broken_lines[0]
    return f"{names}: the sources must hold a document, got none but {counts.broken} broken lines, the first: {first}."


def _key(files: list[Path], options: FilterOptions) -> str:
    """What must be the same for a stopped run to be continued."""
    found = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    asked = asdict(options) | {"stop_on_broken": None}
    return hashlib.sha256(json.dumps([_VERSION, asked, found]).encode()).hexdigest()
