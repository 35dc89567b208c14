"""Files that appear whole: written beside their final name, synced, renamed; and one error for what storage refuses."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemworks.errors import StorageError


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno == errno.ENOSPC:
            raise StorageError(
                f"{where}: the disk is full. What is finished is kept; make room and run the same command again."
            ) from error
        raise StorageError(f"{where}: must be readable and writable, got {error.strerror or error}.") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file so that `path` holds all of it or what it held before. Raises StorageError."""
    with storing(path), appearing(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`; what was written there becomes `path` when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Bring a file's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, all or nothing."""
    replace_file(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())


def read_json(path: Path, what: str) -> Any:
    """Return the JSON of a file that we wrote; `what` names it in the StorageError."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file; it should be {what}.") from None
    except OSError as error:
        raise StorageError(f"{path}: {what} must be readable, got {error.strerror}.") from error
    except ValueError as error:
        raise StorageError(f"{path}: {what} must be JSON, got {error}.") from error
