"""Documents to a packed store: tokenized in several processes, written in order, resumable after any kill.

Every batch of documents is appended to the store's files and then noted in a journal with their lengths. A run that
was stopped cuts the files back to the last note and goes on from there; the header, written last, makes the store.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gemworks.data.readers import Broken, RawBatch, documents, raw_batches
from gemworks.data.store import FORMAT, VERSION, add_rows, file_digest, tokenizer_digest
from gemworks.data.work import run_in_order
from gemworks.data.writing import replace_json, storing, sync
from gemworks.errors import ConfigError, StorageError
from gemworks.tokenizer.tokenizer import Tokenizer

_FILES = ("ids.bin", "documents.bin", "groups.bin", "weights.bin", "origins.bin", "origins.jsonl")
_JOURNAL = "journal.jsonl"
_MAX_GROUPS = 2**16


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """What is asked of a packing. `by` names the field that groups documents; "" puts all into one group."""

    tokenizer: str
    length: int
    by: str = "lang"
    seed: int = 0
    reweigh: bool = False  # use the weights that the filter gave
    stop_on_broken: bool = False

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ConfigError(f"the length of a row must be at least 2 tokens, got {self.length}.")


@dataclass(frozen=True)
class Packed:
    """What a packing did."""

    documents: int
    tokens: int
    rows: int
    fill: float
    groups: dict[str, int]  # tokens
    broken: list[str]  # the first hundred
    num_broken: int


@dataclass(frozen=True)
class _Tokenized:
    """A batch of documents as ids, one after the other, and what the tables hold of each."""

    ids: bytes
    sizes: list[int]
    groups: list[str]
    weights: list[float]
    origins: list[bytes]
    broken: list[Broken]
    num_bytes: int


def pack(
    files: Sequence[Path],
    out: Path,
    options: PackOptions,
    *,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Tokenize `files` into a packed store at `out`, laid out in rows of options.length. progress(bytes, total).

    A directory that holds a stopped run of the same options and files is continued. Raises ConfigError for one that
    holds anything else, for sources without a document, and for what is asked wrongly; StorageError for files.
    """
    tokenizer = Tokenizer.load(options.tokenizer)
    key = _key(files, options, tokenizer)
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    writer = _Writer(out, np.dtype("<u2" if tokenizer.size <= 2**16 else "<u4"), key)
    total = sum(path.stat().st_size for path in files)
    left = (batch for batch in raw_batches(files) if batch.index >= writer.batches)
    run = partial(_tokenize, dtype=writer.dtype.str, by=options.by, reweigh=options.reweigh)
    results = run_in_order(run, left, processes=processes, prepare=_load, arguments=(options.tokenizer,))
    with writer, closing(results):
        for tokenized in results:
            if tokenized.broken and options.stop_on_broken:
                raise StorageError(f"{tokenized.broken[0]}.\nLeave --stop-on-broken out to skip and count such lines.")
            writer.append(tokenized)
            if progress is not None:
                progress(min(writer.num_bytes, total), total)
    if not writer.documents:
        raise ConfigError(
            f"{', '.join(map(str, files[:3]))}: the sources must hold a document, got none"
            + (f" but {writer.num_broken} broken lines, the first: {writer.broken[0]}." if writer.broken else ".")
        )
    return _finish(out, writer, tokenizer, options)


def _finish(out: Path, writer: "_Writer", tokenizer: Tokenizer, options: PackOptions) -> Packed:
    """Write the header and the rows, and take the journal away."""
    digests = {name: file_digest(out / name) for name in _FILES}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "vocab_size": tokenizer.size,
        "dtype": writer.dtype.str,
        "documents": writer.documents,
        "tokens": writer.tokens,
        "groups": list(writer.groups),
        "by": options.by,
        "reweighed": options.reweigh,
        "content": hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest(),
        "sha256": digests,
        "broken": writer.num_broken,
        "rows": {},
    }
    replace_json(out / "header.json", header)
    add_rows(out, options.length, options.seed)
    (out / _JOURNAL).unlink(missing_ok=True)
    from gemworks.data.store import PackedStore

    store = PackedStore(out)
    table = store.header["rows"][str(options.length)]
    return Packed(
        documents=writer.documents,
        tokens=writer.tokens,
        rows=table["count"],
        fill=table["fill"],
        groups=store.group_tokens,
        broken=writer.broken,
        num_broken=writer.num_broken,
    )


class _Writer:
    """The files of a store under construction and their journal. Continues what lies there if it has the same key."""

    def __init__(self, out: Path, dtype: np.dtype, key: str):
        self.out, self.dtype = out, dtype
        self.batches = self.documents = self.tokens = self.num_broken = self.num_bytes = 0
        self.groups: dict[str, int] = {}
        self.broken: list[str] = []
        self._sizes: dict[str, int] = dict.fromkeys(_FILES, 0)
        self._journal = out / _JOURNAL
        if (out / "header.json").exists():
            raise ConfigError(f"{out}: holds a packed store already. Choose another directory, or remove it.")
        with storing(out):
            if self._journal.exists():
                self._resume(key)
            elif any(out.iterdir()):
                raise ConfigError(f"{out}: must be a new or empty directory, or one of a stopped run.")
            else:
                self._journal.write_text(json.dumps({"key": key}) + "\n")

    def _resume(self, key: str) -> None:
        first, *lines = self._journal.read_bytes().split(b"\n")
        if not first or json.loads(first).get("key") != key:
            raise ConfigError(
                f"{self.out}: holds a stopped run of other options or sources, which cannot be continued.\n"
                "Give the same ones as then, choose another directory, or remove it."
            )
        for line in lines[:-1]:  # what follows the last newline was cut off by a kill
            note = json.loads(line)
            self.batches, self.documents, self.tokens = note["batches"], note["documents"], note["tokens"]
            self.num_broken, self.num_bytes, self._sizes = note["num_broken"], note["num_bytes"], note["sizes"]
            self.broken = (self.broken + note["broken"])[:100]
            for name in note["groups"]:
                self.groups[name] = len(self.groups)
        if lines and lines[-1]:
            os.truncate(self._journal, self._journal.stat().st_size - len(lines[-1]))

    def __enter__(self) -> "_Writer":
        with storing(self.out):
            for name, size in self._sizes.items():
                (self.out / name).touch()
                os.truncate(self.out / name, size)
            self._open: dict[str, BinaryIO] = {name: (self.out / name).open("ab") for name in _FILES}
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        with storing(self.out):
            if kind is None:  # both tables of starts end with the end
                self._write("documents.bin", np.array([self.tokens], "<i8").tobytes())
                self._write("origins.bin", np.array([self._sizes["origins.jsonl"]], "<i8").tobytes())
            for name, file in self._open.items():
                file.close()
                sync(self.out / name)

    def append(self, made: _Tokenized) -> None:
        """Write a batch to all files, then the journal's note that it is there."""
        new = [name for name in dict.fromkeys(made.groups) if name not in self.groups]
        self.groups |= {name: len(self.groups) + i for i, name in enumerate(new)}
        if len(self.groups) > _MAX_GROUPS:
            raise ConfigError(
                f"documents can be in at most {_MAX_GROUPS} groups; --by must name a field of few values."
            )
        sizes = np.array(made.sizes, np.int64)
        lines = np.array([len(line) for line in made.origins], np.int64)
        with storing(self.out):
            self._write("documents.bin", (self.tokens + np.cumsum(sizes) - sizes).astype("<i8").tobytes())
            self._write(
                "origins.bin", (self._sizes["origins.jsonl"] + np.cumsum(lines) - lines).astype("<i8").tobytes()
            )
            self._write("ids.bin", made.ids)
            self._write("groups.bin", np.array([self.groups[name] for name in made.groups], "<u2").tobytes())
            self._write("weights.bin", np.array(made.weights, "<f4").tobytes())
            self._write("origins.jsonl", b"".join(made.origins))
            self.batches += 1
            self.documents += len(made.sizes)
            self.tokens += int(sizes.sum())
            self.num_bytes += made.num_bytes
            self.num_broken += len(made.broken)
            shown = [str(line) for line in made.broken[: 100 - len(self.broken)]]
            self.broken += shown
            for file in self._open.values():
                file.flush()
            note = {name: getattr(self, name) for name in ("batches", "documents", "tokens", "num_broken", "num_bytes")}
            with open(self._journal, "ab") as journal:
                journal.write(
                    json.dumps(note | {"sizes": self._sizes, "groups": new, "broken": shown}).encode() + b"\n"
                )

    def _write(self, name: str, data: bytes) -> None:
        self._open[name].write(data)
        self._sizes[name] += len(data)


_loaded: Tokenizer | None = None  # of a worker process


def _load(path: str) -> None:
    global _loaded
    _loaded = Tokenizer.load(path)


def _tokenize(batch: RawBatch, *, dtype: str, by: str, reweigh: bool) -> _Tokenized:
    """Ids of a batch's documents, each <bos> ... <eos>. Control tokens in a text are the characters they are."""
    assert _loaded is not None
    parts, sizes, groups, weights, origins, broken = [], [], [], [], [], []
    for item in documents(batch):
        if isinstance(item, Broken):
            broken.append(item)
            continue
        ids = [_loaded.bos_id, *_loaded.encode(item.text), _loaded.eos_id]
        audit = item.fields.pop("audit", None) or {}
        parts.append(np.array(ids, dtype).tobytes())
        sizes.append(len(ids))
        groups.append(str(audit.get(by) or item.fields.get(by) or "unknown") if by else "all")
        weights.append(float(audit.get("weight", 1.0)) if reweigh else 1.0)
        origin = {"file": item.file, "line": item.line} | item.fields
        origin |= {name: audit[name] for name in ("file", "line", "lang") if name in audit}
        origins.append(json.dumps(origin, ensure_ascii=False).encode() + b"\n")
    return _Tokenized(b"".join(parts), sizes, groups, weights, origins, broken, batch.num_bytes)


def _key(files: Sequence[Path], options: PackOptions, tokenizer: Tokenizer) -> str:
    """What must be the same for a stopped run to be continued."""
    asked = asdict(options) | {"tokenizer": tokenizer_digest(tokenizer), "stop_on_broken": None}
    found = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return hashlib.sha256(json.dumps([VERSION, asked, found]).encode()).hexdigest()
