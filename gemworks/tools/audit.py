"""A log that tells when it was changed: every record holds the hash of the one before.

    {"seq": 7, "time": "...", ..., "previous": HASH of record 6, "hash": HASH of this record without "hash"}

One line of JSON a record, on disk (fsync) before a call runs. FILE.head holds the number, hash and size of the last
record, so that lines cut off at the end are missed too. With a `key` the hashes are HMACs, and whoever lacks the key
can neither change nor add a record unseen; without one, whoever may write to both files can make a new, consistent log.

Not detected by itself: both files put back together to an earlier state. Keep `head()` elsewhere now and then, and
give it to `verify`.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from gemworks.errors import StorageError

_START = "0" * 64


class Head(NamedTuple):
    """The last record of a log: its number (0 is none), its hash, and the size of the file up to its end in bytes."""

    seq: int = 0
    hash: str = _START
    size: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What `verify` found: how many records are sound, and what is wrong (empty where nothing is)."""

    num_records: int
    problems: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in one fixed form: keys sorted, no spaces."""
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


class AuditLog:
    """A log of calls. Threads and processes may write to the same file: a lock on FILE.lock orders them."""

    def __init__(self, path: str | os.PathLike[str], *, key: bytes | None = None):
        self.path = Path(path)
        self._key = key
        self._head_path, self._lock_path = (self.path.with_name(self.path.name + end) for end in (".head", ".lock"))

    def record(self, **fields: Any) -> Head:
        """Add one record; it is on the disk when this returns. StorageError where it cannot be."""
        try:
            with self._locked(), open(self.path, "ab") as file:
                os.fchmod(file.fileno(), 0o600)
                head = self._mended(file)
                body = {**fields, "seq": head.seq + 1, "time": datetime.now(UTC).isoformat(), "previous": head.hash}
                line = _canonical(body | {"hash": self._hash(body)}) + b"\n"
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
                new = Head(head.seq + 1, self._hash(body), head.size + len(line))
                self._write_head(new)
                return new
        except OSError as error:
            raise StorageError(f"{self.path}: the audit log cannot be written: {error.strerror or error}.") from error

    def head(self) -> Head:
        """The last record that was written; keep it elsewhere to detect that both files were put back."""
        try:
            return Head(**json.loads(self._head_path.read_bytes()))
        except FileNotFoundError:
            return Head()
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(f"{self._head_path}: the head of the audit log cannot be read: {error}.") from error

    def verify(self, known: Head | None = None) -> Report:
        """Read the whole log. `known` is a head that was kept elsewhere: its record must still be there."""
        problems: list[str] = []
        last = Head()
        seen = known is None or known.seq == 0
        with self._locked():
            try:
                head = self.head()
            except StorageError as error:
                return Report(0, (str(error),))
            if self.path.exists():
                for last, problem in self._walk(Head()):
                    problems += [problem] if problem else []
                    seen = seen or (known is not None and last == known)
            if head.seq != last.seq or head.hash != last.hash:
                problems.append(f"the head file tells of {head.seq} records, the log ends with {last.seq}")
        if not seen and known is not None:
            problems.append(f"record {known.seq} is not the one that was known, or is missing")
        return Report(last.seq, tuple(problems[:10]))

    def _walk(self, start: Head) -> Iterator[tuple[Head, str]]:
        """Each record after `start` as (its head, what is wrong with it); stops where lines are no records any more."""
        last = start
        with open(self.path, "rb") as file:
            file.seek(start.size)
            for line in file:
                number = last.seq + 1
                try:
                    body = json.loads(line)
                    told = body.pop("hash")
                    whole = line.endswith(b"\n") and isinstance(told, str)
                except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                    whole = False
                if not whole:
                    yield last, f"record {number} is not whole"
                    return
                wrong = ""
                if body.get("seq") != number or body.get("previous") != last.hash:
                    wrong = f"record {number} does not follow the one before: one was removed, added or moved"
                elif not hmac.compare_digest(told.encode(), self._hash(body).encode()):
                    wrong = f"record {number} was changed" + (", or the key is another" if self._key else "")
                elif _canonical(body | {"hash": told}) + b"\n" != line:
                    wrong = f"record {number} was written by something else"
                last = Head(number, told, last.size + len(line))
                yield last, wrong

    def _mended(self, file: Any) -> Head:
        """The head to go on from. After a crash between the two writes the log is ahead by a record, or by a part of
        one, which no call has relied on: a whole one is kept, a part is cut off."""
        head = self.head()
        size = os.fstat(file.fileno()).st_size
        if size < head.size:
            raise StorageError(
                f"{self.path}: {head.size - size} bytes are missing at the end; the log was cut.\n"
                "Look at it with verify, then move both files away to begin a new one."
            )
        if size > head.size:
            tail = self._tail(head)
            after = [last for last, problem in self._walk(head) if not problem]
            if tail.count(b"\n") > 1 or (tail.endswith(b"\n") and len(after) != 1):
                raise StorageError(
                    f"{self.path}: the head file tells of {head.seq} records, the log has others behind them.\n"
                    "Look at it with verify, then move both files away to begin a new one."
                )
            head = after[0] if after else head
            os.ftruncate(file.fileno(), head.size)
        return head

    def _tail(self, head: Head) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(head.size)
            return file.read()

    def _hash(self, body: dict[str, Any]) -> str:
        if self._key is None:
            return digest(body)
        return hmac.new(self._key, _canonical(body), hashlib.sha256).hexdigest()

    def _write_head(self, head: Head) -> None:
        new = self._head_path.with_name(self._head_path.name + ".new")
        with open(new, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(_canonical(head._asdict()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._head_path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A descriptor of its own each time: the lock is between threads, too.
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)
