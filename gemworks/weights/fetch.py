"""Fetching files of one repository into a folder with a few threads, each to the byte where the last pull stopped.

A file grows as .<name>.<id>.part, is hashed while it grows, and gets its name when it is whole and the hash is right.

Not here: which files, and where they go in the end (download.py).
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemworks import env
from gemworks.errors import DownloadError
from gemworks.weights.hub_errors import explained, hub_error_types

_CHUNK_BYTES = 1 << 18
_WORKERS = 4  # one connection to the hub's file servers gives about 100 MB/s; shards are at most 5 GB
_ATTEMPTS = 5  # without a byte between them
TIMEOUT_S = 30.0

Progress = Callable[[str, int, int], None]  # file, bytes there, bytes in all


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository. `id` is its sha256 where the hub knows it (large files), else its git blob id."""

    name: str
    size: int  # -1 where the hub does not say
    id: str

    @property
    def is_hashed(self) -> bool:
        """True where `id` is a sha256 to check the content against."""
        return len(self.id) == 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where the files are: a repository at a commit. `name` is how the user called it, for messages."""

    repository: str
    commit: str
    endpoint: str
    name: str


def part_path(folder: Path, file: RemoteFile) -> Path:
    """Where a file grows. The name holds the content's id, so a new version never continues an old one."""
    return folder / f".{file.name}.{file.id[:16] or 'unknown'}.part"


def matches(path: Path, file: RemoteFile) -> bool:
    """True where `path` is this very file, by size and hash."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256() if file.is_hashed else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    _hash(path, digest)
    return digest.hexdigest() == file.id


def fetch(source: Source, files: Sequence[RemoteFile], folder: Path, progress: Progress) -> int:
    """Fetch `files` into `folder`; return the bytes that came. The first error stops all; parts stay for the next pull.

    Raises DownloadError, or OSError where `folder` cannot be written.
    """
    return _Fetch(source, folder, progress).run(files)


class _Stopped(Exception):
    """Another thread of this fetch met an error, or the user stopped it."""


class _Part:
    """A file that grows, and the hash of what it holds."""

    def __init__(self, path: Path):
        self.path, self.size, self.digest = path, 0, hashlib.sha256()
        if path.is_file():
            self.size = path.stat().st_size
            _hash(path, self.digest)

    def restart(self) -> None:
        self.path.unlink(missing_ok=True)
        self.size, self.digest = 0, hashlib.sha256()


class _Fetch:
    """One run of worker threads over a queue of files."""

    def __init__(self, source: Source, folder: Path, progress: Progress):
        self.source, self.folder, self.progress = source, folder, progress
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.errors: list[BaseException] = []
        self.fetched = 0

    def run(self, files: Sequence[RemoteFile]) -> int:
        queue = sorted(files, key=lambda file: file.size)  # taken from the end: the largest decide when it is over
        # Daemons: Ctrl-C must not wait for a stalled connection.
        threads = [threading.Thread(target=self._work, args=(queue,), daemon=True) for _ in files[:_WORKERS]]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
        finally:
            self.stop.set()
        if self.errors:
            raise self.errors[0]
        return self.fetched

    def _work(self, queue: list[RemoteFile]) -> None:
        try:
            while not self.stop.is_set():
                with self.lock:
                    if not queue:
                        return
                    file = queue.pop()
                self._fetch(file)
        except _Stopped:
            pass
        except BaseException as error:
            self.errors.append(error)
            self.stop.set()

    def _fetch(self, file: RemoteFile) -> None:
        part = _Part(part_path(self.folder, file))
        if 0 <= file.size < part.size:
            part.restart()
        with explained(self.source.repository, self.source.name, self.source.endpoint):
            self._grow_patiently(file, part)
        if file.is_hashed and part.digest.hexdigest() != file.id:
            found = part.digest.hexdigest()
            part.restart()
            raise DownloadError(
                f"{self.source.repository}: {file.name} must have sha256 {file.id[:16]}..., and what came has "
                f"{found[:16]}...\nIt was thrown away; pull again to fetch it anew."
            )
        part.path.touch()  # a file of no bytes has no part yet
        self.progress(file.name, part.size, part.size)
        os.replace(part.path, self.folder / file.name)

    def _grow_patiently(self, file: RemoteFile, part: _Part) -> None:
        """Fetch what `part` lacks, trying again after broken connections and answers of a hub in trouble."""
        transport_error, http_error = hub_error_types()
        failures = 0
        while True:
            before = part.size
            try:
                self._grow(file, part)
                if file.size < 0 or part.size == file.size:
                    return
                reason: Exception = DownloadError(
                    f"{self.source.repository}: {file.name} must have {file.size:,} bytes, and {part.size:,} came.\n"
                    "Pull again to go on."
                )
            except http_error as error:
                if error.response.status_code == 416:  # the part is longer than the file
                    part.restart()
                elif error.response.status_code < 500 and error.response.status_code != 429:
                    raise
                reason = error
            except transport_error as error:
                reason = error
            failures = failures + 1 if part.size <= before else 1
            if failures >= _ATTEMPTS:
                raise reason
            if self.stop.wait(0.25 * 2**failures):
                raise _Stopped

    def _grow(self, file: RemoteFile, part: _Part) -> None:
        """One request for the rest of a file."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        if part.size == file.size:
            return
        source = self.source
        url = hf_hub_url(source.repository, file.name, revision=source.commit, endpoint=source.endpoint)
        headers = build_hf_headers(token=env.hub_token(), library_name="gemworks") | {"Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            if answer.status_code >= 400:
                answer.read()
                hf_raise_for_status(answer)
            if answer.status_code != 206:  # the server does not know ranges: from the beginning
                part.restart()
            self._receive(file, part, answer)

    def _receive(self, file: RemoteFile, part: _Part, answer: Any) -> None:
        with part.path.open("ab") as stream:
            for block in answer.iter_bytes(_CHUNK_BYTES):
                if self.stop.is_set():
                    raise _Stopped
                stream.write(block)
                part.digest.update(block)
                part.size += len(block)
                with self.lock:
                    self.fetched += len(block)
                self.progress(file.name, part.size, file.size)
            stream.flush()
            os.fsync(stream.fileno())


def _hash(path: Path, digest: Any) -> None:
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK_BYTES):
            digest.update(block)
