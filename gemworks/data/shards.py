"""Numbered JSONL files of about one size, compressed, each appearing under its name when it is whole."""

import gzip
import hashlib
import json
import lzma
import os
from pathlib import Path
from typing import Any

from gemworks.data.readers import zstandard
from gemworks.data.writing import sync

_ENDS = {"gz": ".jsonl.gz", "xz": ".jsonl.xz", "zst": ".jsonl.zst", "none": ".jsonl"}


class ShardWriter:
    """Writes records one after the other; a new file begins past `shard_bytes` of JSON. Use as a context."""

    def __init__(self, folder: Path, compress: str, shard_bytes: int, name: str = "kept"):
        self.manifest: list[dict[str, Any]] = []
        self._folder, self._compress, self._shard_bytes, self._name = folder, compress, shard_bytes, name
        self._file: Any = None
        self._raw: Any = None
        self._documents = self._bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._file is not None:
            self._finish(keep=kind is None)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        if self._file is None:
            self._open()
        assert self._file is not None
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self._file.write(line)
        self._documents += 1
        self._bytes += len(line)
        if self._bytes >= self._shard_bytes:
            self._finish(keep=True)

    @property
    def _path(self) -> Path:
        number = "" if self._name == "decisions" else f"-{len(self.manifest):05}"
        return self._folder / f"{self._name}{number}{_ENDS[self._compress]}"

    @property
    def _partial(self) -> Path:
        return self._path.with_name(f".{self._path.name}.partial")

    def _open(self) -> None:
        self._documents = self._bytes = 0
        self._raw = self._partial.open("wb")
        if self._compress == "gz":  # no time in the header: the same documents give the same file
            self._file = gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._raw, mtime=0)
        elif self._compress == "xz":
            self._file = lzma.open(self._raw, "wb")  # noqa: SIM115 - closed by _finish
        elif self._compress == "zst":
            self._file = zstandard(self._path).ZstdCompressor(level=6).stream_writer(self._raw, closefd=False)
        else:
            self._file = self._raw

    def _finish(self, *, keep: bool) -> None:
        path, partial = self._path, self._partial
        self._file.close()
        self._raw.close()
        self._file = self._raw = None
        if not keep:
            partial.unlink(missing_ok=True)
            return
        sync(partial)
        os.replace(partial, path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.manifest.append(
            {"file": path.name, "documents": self._documents, "bytes": path.stat().st_size, "sha256": digest}
        )
