"""Files that clients sent to make models of, by the hash of what they hold.

    <home>/blobs/sha256-<digest>          a file that was sent whole
    <home>/uploads/<digest of the set>/   the files of one model, under their names; links to blobs

A created model's FROM names its folder below uploads. What no created model names goes with the next deletion; a blob
that became part of none, after a day.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from gemworks import env
from gemworks.errors import StorageError
from gemworks.server.errors import FieldError
from gemworks.weights import store

_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_FILE = re.compile(r"[A-Za-z0-9_][\w.,+ -]*\.(gguf|safetensors|json|model|jinja|txt)")
_UNUSED_S = 86_400.0


def blob_path(digest: str) -> Path:
    """Return where the blob of a digest ("sha256:" and 64 hex digits) is, or would be. Raises FieldError."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise FieldError(
            f'a digest must be "sha256:" and 64 hex digits in lower case, got {digest!r:.90}.', param="digest"
        )
    return _blobs() / f"sha256-{match[1]}"


def blob_size(digest: str) -> int | None:
    """Return the bytes of a blob, None where it is not here."""
    try:
        return blob_path(digest).stat().st_size
    except FileNotFoundError:
        return None


class BlobWriter:
    """A blob as it comes, hashed on its way to the disk. Call `finish`, or `drop`. Raises StorageError."""

    def __init__(self, digest: str, num_bytes: int | None):
        self._final = blob_path(digest)
        self._partial = self._final.with_name(f".{self._final.name}.{secrets.token_hex(4)}.partial")
        self._hash = hashlib.sha256()
        try:
            self._final.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._final.parent).free
            if num_bytes is not None and num_bytes > free:
                raise StorageError(f"the blob has {num_bytes:,} bytes, and the disk of {env.home()} has {free:,} free.")
            self._stream: IO[bytes] = self._partial.open("xb")
        except OSError as error:
            raise _storage_error(error) from error

    def write(self, data: bytes) -> None:
        """Add some bytes."""
        try:
            self._stream.write(data)
        except OSError as error:
            raise _storage_error(error) from error
        self._hash.update(data)

    def finish(self) -> None:
        """Give the blob its name. Raises FieldError where its digest is another."""
        found = self._hash.hexdigest()
        wanted = self._final.name.removeprefix("sha256-")
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            if found != wanted:
                raise FieldError(
                    f"digest mismatch: the path says sha256:{wanted}, and what came has sha256:{found}. Send it again.",
                    param="digest",
                )
            os.replace(self._partial, self._final)
        except OSError as error:
            raise _storage_error(error) from error

    def drop(self) -> None:
        """Leave nothing of a blob that did not come whole; harmless after `finish`."""
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)


def adopt(files: Mapping[str, str]) -> Path:
    """Return the model that blobs make under these names (name -> digest): a .gguf file, or the folder of several.

    Raises FieldError for a name that is no plain one of a model's files, and for a blob that was not sent.
    """
    for name, digest in files.items():
        if not _FILE.fullmatch(name):
            raise FieldError(
                f"files: {name!r:.80} must be a plain name of a model's file, as model.gguf.", param="files"
            )
        if blob_size(digest) is None:
            raise FieldError(
                f"files: {name} is {digest}, which was not sent. POST it to /api/blobs/{digest}.", param="files"
            )
    told = "\n".join(f"{name} {blob_path(digest).name}" for name, digest in sorted(files.items()))
    folder = _uploads() / hashlib.sha256(told.encode()).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest in files.items():
            if not (folder / name).exists():
                _link(blob_path(digest), folder / name)
    except OSError as error:
        raise _storage_error(error) from error
    [only, *more] = files
    return folder if more or not only.endswith(".gguf") else folder / only


def prune() -> None:
    """Remove the files of models that are created no longer, and blobs that became part of none within a day."""
    used = {Path(model.source) for model in store.list_created()}
    with contextlib.suppress(OSError):
        for folder in _uploads().iterdir():
            if not any(folder == path or folder in path.parents for path in used):
                shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        for blob in _blobs().iterdir():
            status = blob.stat()
            if status.st_nlink == 1 and time.time() - status.st_mtime > _UNUSED_S:
                blob.unlink(missing_ok=True)


def _link(blob: Path, file: Path) -> None:
    try:
        os.link(blob, file)
    except OSError:  # a file system without links
        partial = file.with_name(f".{file.name}.partial")
        shutil.copyfile(blob, partial)
        os.replace(partial, file)


def _blobs() -> Path:
    return env.home() / "blobs"


def _uploads() -> Path:
    return env.home() / "uploads"


def _storage_error(error: OSError) -> StorageError:
    return StorageError(f"{error.filename or env.home()} cannot be written: {error.strerror or error}.")
