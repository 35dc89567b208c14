"""How right are the filters, and how fast? Prints precision and recall of each rule, then the speed on a large file.

    python bench/data/run.py [--corpus DIR] [--megabytes 200] [--processes 2] [--only rules|speed|load]

Rules: a sample of the corpus with planted defects (planted.py) is filtered for English and Spanish. A rule's recall is
the share of its planted documents that went (or were masked) for the right reason; its precision counts the clean
documents that went for that reason against it. Speed: a file of that size made from the corpus (paragraphs of
different documents put together, every defect planted in 1 % of them) through the whole of `gemworks data filter`.
Load: what a batch of rows costs, against Grain where it is installed. The last line is one JSON object.
"""

import argparse
import itertools
import json
import lzma
import os
import platform
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.data import scoring
from bench.data.planted import make
from gemworks.data.filtering import FilterOptions, run_filter


def clean_documents(corpus: Path, each: int) -> tuple[list[dict], list[str]]:
    """(`each` documents of every group in English or Spanish, texts in other languages)."""
    clean, foreign = [], []
    for path in sorted(corpus.glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        own = [document for document in found if document["lang"] in ("en", "es")]
        random.Random(0).shuffle(own)
        clean += own[:each]
        for document in found:
            if document["lang"] not in ("en", "es"):
                parts = document["text"].split("\n\n")
                foreign += ["\n\n".join(parts[i : i + 12]) for i in range(0, len(parts) - 12, 6)]
    return clean, [text for text in foreign if len(text) > 400]


def rules(corpus: Path, each: int, processes: int) -> list[dict[str, Any]]:
    """Filter a planted sample and score it."""
    clean, foreign = clean_documents(corpus, each)
    documents, evaluation = make(clean, foreign, seed=1, share=0.03)
    with tempfile.TemporaryDirectory() as folder:
        rows = scoring.filtered(documents, evaluation, Path(folder), processes)
    return scoring.scores(documents, rows)


def speed(corpus: Path, megabytes: int, processes: int) -> dict[str, Any]:
    """Filter a large planted file; seconds, megabytes a second and the peak memory of a process."""
    clean, foreign = clean_documents(corpus, 10**6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = _large_file(folder / "planted.jsonl", clean, foreign, megabytes * 10**6)
        options = FilterOptions(languages=("en", "es"))
        started = time.perf_counter()
        report = run_filter([folder / "planted.jsonl"], folder / "out", options, processes=processes)
        seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = max(one.ru_maxrss for one in used)
    return {
        "file_bytes": size,
        "documents": report["documents"],
        "kept": report["kept"],
        "seconds": round(seconds, 1),
        "processor_seconds": round(sum(one.ru_utime + one.ru_stime for one in used), 1),
        "megabytes_s": round(size / 1e6 / seconds, 2),
        "peak_process_bytes": peak * 1024,
        "processes": processes,
    }


def _large_file(path: Path, clean: list[dict], foreign: list[str], size: int) -> int:
    rng = random.Random(2)
    paragraphs = [part for document in clean for part in document["text"].split("\n\n") if len(part) > 60]
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < size:
            some = [
                {"source": "mixed", "text": "\n\n".join(rng.sample(paragraphs, rng.randint(4, 16)))}
                for _ in range(1000)
            ]
            for document in make(some, foreign, seed=rng.randrange(2**30), share=0.01)[0]:
                written += file.write(json.dumps(document, ensure_ascii=False) + "\n")
    return path.stat().st_size


def load(corpus: Path) -> dict[str, Any]:
    """Milliseconds for a batch of 8 rows of 2,048 tokens, ours alone and behind Grain's loader."""
    from gemworks.data.batches import PackedSource
    from gemworks.data.readers import find_files
    from gemworks.data.tokenizing import PackOptions, pack

    tokenizer = Path(__file__).resolve().parents[2] / "gemworks" / "assets" / "tiny"
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "packed"
        pack(find_files([corpus / "facts-00.jsonl.xz"]), out, PackOptions(tokenizer=str(tokenizer), length=2048))
        source = PackedSource.open(out)
        found = {"ours_ms": _each(source.batch(i) for i in range(300))}
        try:
            import grain
        except ImportError:
            return found
        loader = grain.MapDataset.source(source).to_iter_dataset()  # type: ignore[arg-type]
        found["grain_ms"] = _each(itertools.islice(iter(loader), min(300, len(source))))
    return found


def _each(batches: Any) -> float:
    times = []
    started = time.perf_counter()
    for _ in batches:
        now = time.perf_counter()
        times.append(now - started)
        started = now
    return round(1000 * sorted(times)[len(times) // 2], 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path(__file__).resolve().parents[3] / "shared/data/corpus")
    parser.add_argument("--each", type=int, default=400)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", choices=("rules", "speed", "load"))
    asked = parser.parse_args()
    report: dict[str, Any] = {"bench": "data", "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    if asked.only in (None, "rules"):
        report["rules"] = rules(asked.corpus, asked.each, asked.processes)
        print(scoring.table(report["rules"]))
    if asked.only in (None, "speed"):
        report["speed"] = speed(asked.corpus, asked.megabytes, asked.processes)
        found = report["speed"]
        print(
            f"\n{found['file_bytes'] / 1e6:.0f} MB, {found['documents']:,} documents: {found['seconds']} s with "
            f"{found['processes']} processes ({found['processor_seconds']} s of processors in all), "
            f"{found['megabytes_s']} MB/s, "
            f"largest process {found['peak_process_bytes'] / 1e6:.0f} MB"
        )
    if asked.only in (None, "load"):
        report["load"] = load(asked.corpus)
        print(f"\nbatch of 8 rows of 2,048 tokens: {report['load']} ms")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
