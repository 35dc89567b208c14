"""Documents from JSONL (.gz, .xz, .zst), plain text and parquet, streamed: memory is that of one batch, not of a file.

The main process only decompresses and cuts into lines (`raw_batches`); workers parse (`documents`). A batch ends by
its bytes, so the same files give the same batches in every run: what resuming relies on.

Formats, by the end of the name:

    .jsonl    one JSON object a line, its text in the field "text"; other fields go along
    .txt      one document a file; past 1 MB it is cut at the next blank line
    .parquet  one document a row, a column "text" (needs pyarrow: the extra `data`)

A line that is no document is counted and named with its file, then skipped, or it stops the run: the caller decides.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gemworks.errors import BackendError, ConfigError, StorageError

SUFFIXES = (".jsonl", ".ndjson", ".txt", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".zst")
_BATCH_BYTES = 2**21
_LINE_BYTES = 2**26  # a longer line is not a document but a file without newlines
_TEXT_BYTES = 2**20


@dataclass(frozen=True)
class Document:
    """One text with its other fields and where it came from. `line` counts from 1 (rows, in parquet)."""

    text: str
    fields: dict[str, Any]
    file: str
    line: int


@dataclass(frozen=True)
class Broken:
    """A line that is no document, and why."""

    file: str
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.why}"


@dataclass(frozen=True)
class RawBatch:
    """Some megabytes of unparsed records of one file: (line number, bytes); bytes None for a line that is too long."""

    index: int
    file: str
    kind: str
    records: list[tuple[int, bytes | None]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Bytes of the records."""
        return sum(len(data) for _, data in self.records if data is not None)


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files that `paths` stand for, those of directories in the order of their names. ConfigError."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and _kind(p) and not p.name.startswith("."))
            if not inside:
                raise ConfigError(f"{path}: a directory of sources must hold {_known()} files, got none.")
            found += inside
        elif not path.exists():
            raise ConfigError(f"{path}: no such file or directory.")
        elif not _kind(path):
            raise ConfigError(f"{path}: a source must be {_known()}, plain or as {', '.join(COMPRESSIONS)}.")
        else:
            found.append(path)
    if not found:
        raise ConfigError("at least one source must be given, got none.")
    return found


def raw_batches(files: Sequence[Path], batch_bytes: int | None = None) -> Iterator[RawBatch]:
    """Yield the records of all files in batches of about `batch_bytes`. StorageError for a file that cannot be read."""
    batch_bytes = batch_bytes or _BATCH_BYTES
    index = 0
    for path in files:
        kind = _kind(path)
        batch, size = RawBatch(index, str(path), kind), 0
        for line, data in _records(path, kind):
            batch.records.append((line, data))
            size += len(data or b"")
            if size >= batch_bytes:
                yield batch
                index += 1
                batch, size = RawBatch(index, str(path), kind), 0
        if batch.records:
            yield batch
            index += 1


def documents(batch: RawBatch) -> Iterator[Document | Broken]:
    """Parse a batch. Blank lines are passed over."""
    for line, data in batch.records:
        if data is None:
            yield Broken(batch.file, line, f"longer than {_LINE_BYTES // 2**20} MB; a line must hold one document")
        elif batch.kind == ".txt":
            yield _from_text(batch.file, line, data)
        elif data.strip():
            yield _from_json(batch.file, line, data)


def _from_text(file: str, line: int, data: bytes) -> Document | Broken:
    try:
        return Document(data.decode("utf-8"), {"source": Path(file).name}, file, line)
    except UnicodeDecodeError as error:
        return Broken(file, line, f"byte {error.start} is not UTF-8")


def _from_json(file: str, line: int, data: bytes) -> Document | Broken:
    try:
        value = json.loads(data)
    except UnicodeDecodeError as error:
        return Broken(file, line, f"byte {error.start} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Broken(file, line, f"not JSON: {error}")
    if not isinstance(value, dict):
        return Broken(file, line, f"a JSON object is needed, got {type(value).__name__}")
    text = value.pop("text", None)
    if not isinstance(text, str):
        found = "no such field" if text is None else type(text).__name__
        return Broken(file, line, f'the field "text" must be a string, got {found}')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return Broken(file, line, "the text holds half a surrogate pair")
    return Document(text, value, file, line)


def _records(path: Path, kind: str) -> Iterator[tuple[int, bytes | None]]:
    line = 0
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
            return
        with _opened(path) as file:
            for line, data in _text_records(file) if kind == ".txt" else _lines(file):
                yield line, data
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise StorageError(
            f"{path}: must be a whole {path.suffix} file, got damage after line {line}: {error}.\nFetch it again."
        ) from error
    except OSError as error:
        raise StorageError(f"{path}: must be readable, got {error.strerror or error}.") from error


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    number = 0
    while data := file.readline(_LINE_BYTES):
        number += 1
        if len(data) == _LINE_BYTES and not data.endswith(b"\n"):
            while (rest := file.readline(_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, data


def _text_records(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """A text file in one piece, or in pieces of 1 MB and up to the next blank line. 8 MB without one are cut."""
    number, first, parts, size = 0, 1, [], 0
    while data := file.readline(_TEXT_BYTES):
        number += 1
        parts.append(data)
        size += len(data)
        if (size >= _TEXT_BYTES and not data.strip()) or size >= 8 * _TEXT_BYTES:
            yield first, b"".join(parts)
            first, parts, size = number + 1, [], 0
    if b"".join(parts).strip():
        yield first, b"".join(parts)


def _parquet_rows(path: Path) -> Iterator[tuple[int, bytes | None]]:
    try:
        import pyarrow  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise BackendError(f"{path}: parquet needs pyarrow. Install it with: pip install 'gemworks[data]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names[:10])
                raise StorageError(f'{path}: a parquet source must have a column "text", got {names}.')
            number = 0
            for group in file.iter_batches(batch_size=256):
                for row in group.to_pylist():
                    number += 1
                    yield number, json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    except pyarrow.ArrowInvalid as error:
        raise StorageError(f"{path}: must be a parquet file, got: {error}.") from error


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return lzma.open(path, "rb")
    if path.suffix == ".zst":
        return io.BufferedReader(zstandard(path).open(path, "rb"), 2**17)
    return open(path, "rb")


def zstandard(path: Path) -> Any:
    """Return the module that reads and writes .zst; BackendError where it is not installed."""
    try:
        import zstandard as module
    except ImportError:
        raise BackendError(f"{path}: .zst needs zstandard. Install it with: pip install 'gemworks[data]'") from None
    return module


def _kind(path: Path) -> str:
    """The suffix that says what a file holds, '' for an unknown one."""
    name = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    if name.suffix == ".parquet":
        return ".parquet" if name == path else ""
    return name.suffix if name.suffix in SUFFIXES else ""


def _known() -> str:
    return ", ".join(SUFFIXES)
