"""A packed store: token ids of all documents in one mapped file, and tables that lay them into rows.

    DIR/header.json        what it is: tokenizer, counts, groups, row tables, hashes (see `Header`)
        ids.bin            uint16, or uint32 from 65,537 pieces on: <bos> ... <eos> of every document, in reading order
        documents.bin      int64 [documents + 1], first token of each, then the end
        groups.bin         uint16 [documents], index into header["groups"]
        weights.bin        float32 [documents], how often a document is to be seen, 1 being once an epoch
        origins.bin        int64 [documents + 1], where each starts in origins.jsonl: fields, file, line
        rows-T/pieces.bin, ends.bin     the rows of length T, those of a group together; several T may lie side by side

Everything is little-endian and mapped: opening costs nothing, a batch reads only its own tokens.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gemworks.data.packing import PIECE, Rows, pack_rows
from gemworks.data.permutation import key_of
from gemworks.data.writing import read_json, replace_json, storing, sync
from gemworks.errors import ConfigError, StorageError
from gemworks.tokenizer.tokenizer import Tokenizer

FORMAT, VERSION = "gemworks-packed", 1
_BLOCK = 2**22


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a vocabulary: all pieces in the order of their ids. 0.1 s for the official one."""
    digest = hashlib.sha256()
    for i in range(tokenizer.size):
        digest.update(tokenizer.piece(i).encode() + b"\0")
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with storing(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class PackedStore:
    """An opened store. Read-only; safe to share between threads."""

    def __init__(self, path: str | Path):
        """Map the store at `path`. StorageError where it is damaged or something else."""
        self.path = Path(path)
        self.header: dict[str, Any] = read_json(self.path / "header.json", "the header of a packed store")
        if not isinstance(self.header, dict) or self.header.get("format") != FORMAT:
            raise StorageError(f"{self.path}: must be a packed store, made by: gemworks data pack.")
        if self.header["version"] != VERSION:
            raise StorageError(
                f"{self.path}: the store must have version {VERSION}, got {self.header['version']}. Pack it again."
            )
        count = self.header["documents"]
        self.ids = self._mapped("ids.bin", np.dtype(self.header["dtype"]), self.header["tokens"])
        self.starts = self._mapped("documents.bin", np.dtype("<i8"), count + 1)
        self.group_of = self._mapped("groups.bin", np.dtype("<u2"), count)
        self.weights = self._mapped("weights.bin", np.dtype("<f4"), count)
        self._origins = self._mapped("origins.bin", np.dtype("<i8"), count + 1)

    @property
    def groups(self) -> list[str]:
        """Names of the groups."""
        return list(self.header["groups"])

    @property
    def lengths(self) -> list[int]:
        """Row lengths that are laid out."""
        return sorted(map(int, self.header["rows"]))

    @cached_property
    def group_tokens(self) -> dict[str, int]:
        """Tokens of each group."""
        sizes = np.diff(self.starts)
        found = np.bincount(self.group_of, weights=sizes, minlength=len(self.groups))
        return {name: int(tokens) for name, tokens in zip(self.groups, found, strict=True)}

    def rows(self, length: int) -> "StoredRows":
        """Return the rows of one length. ConfigError where they are not laid out."""
        table = self.header["rows"].get(str(length))
        if table is None:
            raise ConfigError(
                f"{self.path}: rows of {length} tokens are not laid out, only of {', '.join(map(str, self.lengths))}.\n"
                f"Add them, without packing again: gemworks data pack {self.path} --length {length}"
            )
        return StoredRows(self, length, table)

    def origin(self, document: int) -> dict[str, Any]:
        """Return where a document came from: its fields but the text, its file and line."""
        start, end = int(self._origins[document]), int(self._origins[document + 1])
        with storing(self.path), open(self.path / "origins.jsonl", "rb") as file:
            file.seek(start)
            return json.loads(file.read(end - start))

    def check(self) -> None:
        """Read everything once and compare with the hashes in the header. StorageError names the file that differs."""
        for name, wanted in self.header["sha256"].items():
            if (found := file_digest(self.path / name)) != wanted:
                raise StorageError(f"{self.path / name}: must have sha256 {wanted}, got {found}. Pack it again.")

    def _mapped(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        return mapped(self.path / name, dtype, count)


class StoredRows:
    """The rows of one length of a store; group g has rows first[g] ... first[g + 1] - 1."""

    def __init__(self, store: PackedStore, length: int, table: dict[str, Any]):
        folder = store.path / f"rows-{length}"
        self.store, self.length, self.digest = store, length, str(table["digest"])
        self.pieces = mapped(folder / "pieces.bin", PIECE, table["pieces"])
        self.ends = mapped(folder / "ends.bin", np.dtype("<i8"), table["count"])
        self.first: list[int] = table["first"]

    def row(self, number: int) -> np.ndarray:
        """Return the pieces (PIECE) of a row."""
        return self.pieces[int(self.ends[number - 1]) if number else 0 : int(self.ends[number])]


def mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """Map an array of `count` elements; StorageError unless the file has exactly those."""
    with storing(path):
        found = path.stat().st_size
        if found != count * dtype.itemsize:
            raise StorageError(f"{path}: must have {count * dtype.itemsize:,} bytes, got {found:,}. Pack it again.")
        return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def add_rows(path: Path, length: int, seed: int) -> None:
    """Lay the documents of the store at `path` into rows of `length`; the header changes when they are on the disk.

    A document of weight w is laid in floor(w) times, and once more with probability w - floor(w), drawn by its number
    and the seed. Raises ConfigError for a length below 2.
    """
    if length < 2:
        raise ConfigError(f"the length of a row must be at least 2 tokens, got {length}.")
    store = PackedStore(path)
    starts, sizes = np.asarray(store.starts[:-1]), np.diff(store.starts)
    rng = np.random.Generator(np.random.PCG64(key_of(seed, 1)))
    times = np.floor(store.weights + rng.random(store.weights.size)).astype(np.int64)
    parts, first = [], [0]
    for group in range(len(store.groups)):
        own = np.flatnonzero(store.group_of == group)
        parts.append(pack_rows(np.repeat(own, times[own]), starts, sizes, length, key_of(seed, 2, group)))
        first.append(first[-1] + parts[-1].num_rows)
    rows = _joined(parts)
    folder = path / f"rows-{length}"
    with storing(folder):
        folder.mkdir(exist_ok=True)
        for name, array in (("pieces.bin", rows.pieces), ("ends.bin", rows.ends)):
            array.tofile(folder / name)
            sync(folder / name)
    digest = hashlib.sha256(json.dumps([store.header["content"], length, seed]).encode())
    for array in (rows.pieces, rows.ends):
        for at in range(0, array.nbytes, _BLOCK):
            digest.update(array.view(np.uint8)[at : at + _BLOCK].tobytes())
    table = {"count": rows.num_rows, "pieces": int(rows.pieces.size), "first": first, "seed": seed}
    table |= {"fill": round(rows.fill(length), 6), "digest": digest.hexdigest()}
    replace_json(path / "header.json", store.header | {"rows": store.header["rows"] | {str(length): table}})


def _joined(parts: Sequence[Rows]) -> Rows:
    offsets = np.cumsum([0, *(part.pieces.size for part in parts)])
    ends = [part.ends + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Rows(np.concatenate([part.pieces for part in parts]), np.concatenate(ends).astype(np.int64))
