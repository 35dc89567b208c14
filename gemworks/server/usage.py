"""What every key has used, in SQLite: one row a day, key, model and route, added to in batches by a thread.

A batch is written every second, in one transaction of a write-ahead log. A process that is killed (kill -9) loses at
most the calls that ended in its last second, and never half of a batch; a power cut may lose the last few batches too.

On a full disk, or where the file cannot be written for another reason, answers go on: what is not written is kept in
memory, by the same rows and so of bounded size, and is written when there is room again.
"""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemworks.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from gemworks.server.logs import Logs
    from gemworks.server.record import Record

FLUSH_S = 1.0
_RETRY = 5  # times as long, after a batch that could not be written

_KEYS = ("day", "key", "model", "route")
_SUMS = ("requests", "failed", "cancelled", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds")
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS usage (
  day TEXT NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, route TEXT NOT NULL,
  {", ".join(f"{name} {'REAL' if name == 'seconds' else 'INTEGER'} NOT NULL" for name in _SUMS)},
  PRIMARY KEY (day, key, model, route)
) WITHOUT ROWID
"""
_ADD = (
    f"INSERT INTO usage VALUES ({', '.join('?' * (len(_KEYS) + len(_SUMS)))}) "
    f"ON CONFLICT (day, key, model, route) DO UPDATE SET {', '.join(f'{n} = {n} + excluded.{n}' for n in _SUMS)}"
)
_VERSION = 1


class Usage:
    """Adds ended calls to a file. `problem` says why the file is not written, None while it is."""

    def __init__(
        self,
        file: Path,
        *,
        logs: "Logs | None" = None,
        failed: Callable[[], Any] = lambda: None,
        flush_s: float = FLUSH_S,
    ):
        self._file, self._logs, self._failed, self._flush_s = file, logs, failed, flush_s
        self.problem: str | None = None
        self._fresh: deque[tuple[tuple, tuple]] = deque()
        self._sums: dict[tuple, list] = {}
        self._connection: sqlite3.Connection | None = None
        self._wake, self._is_closed = threading.Event(), False
        self._check()
        self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Calls that are not on the disk yet."""
        return len(self._fresh) + sum(row[0] for row in list(self._sums.values()))

    def add(self, record: "Record") -> None:
        """Count a call that has ended. Any thread; a microsecond."""
        day = time.strftime("%Y-%m-%d", time.gmtime(record.started_at))
        counts = (
            *(1, int(record.outcome == "failed"), int(record.outcome == "cancelled")),
            *(record.prompt_tokens, record.cached_tokens, record.completion_tokens, record.seconds),
        )
        self._fresh.append(((day, record.key, record.model, record.call), counts))

    def close(self) -> None:
        """Write what is pending."""
        self._is_closed = True
        self._wake.set()
        self._thread.join(timeout=10.0)

    def _check(self) -> None:
        """Raise StorageError for a file that will never do; a disk that is full now may have room later."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._connect()
        except OSError as error:
            raise StorageError(f"{self._file} (usage_file) cannot be used: {error.strerror or error}.") from error
        except sqlite3.Error as error:
            if _may_pass(error):
                self._note(error)
                return
            raise StorageError(
                f"{self._file} (usage_file) cannot be used: {error}.\nName another file, or move this one away."
            ) from error

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            made = sqlite3.connect(self._file, timeout=5.0, isolation_level=None, check_same_thread=False)
            try:
                made.execute("PRAGMA journal_mode = WAL")
                made.execute("PRAGMA synchronous = NORMAL")
                _check_version(made, self._file)
                made.execute(_SCHEMA)
                made.execute(f"PRAGMA user_version = {_VERSION}")
            except BaseException:
                made.close()
                raise
            self._connection = made
        return self._connection

    def _run(self) -> None:
        while True:
            closing_now = self._is_closed
            self._collect()
            if self._sums:
                self._flush()
            if closing_now:
                break
            self._wake.wait(self._flush_s if self.problem is None else _RETRY * self._flush_s)
            self._wake.clear()
        if self._connection is not None:
            self._connection.close()

    def _collect(self) -> None:
        for _ in range(len(self._fresh)):
            row, counts = self._fresh[0]
            sums = self._sums.setdefault(row, [0] * len(_SUMS))
            for i, count in enumerate(counts):
                sums[i] += count
            self._fresh.popleft()

    def _flush(self) -> None:
        try:
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                connection.executemany(_ADD, [(*row, *sums) for row, sums in self._sums.items()])
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError, StorageError) as error:
            self._drop_connection()
            self._note(error)
            return
        self._sums = {}
        if self.problem is not None:
            self.problem = None
            if self._logs is not None:
                self._logs.tell("usage is written again", file=str(self._file))

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _note(self, error: Exception) -> None:
        self._failed()
        is_news = self.problem is None
        self.problem = f"usage cannot be written to {self._file}: {error}. It is kept in memory until it can."
        if is_news and self._logs is not None:
            self._logs.tell("usage is not written", level="error", file=str(self._file), message=str(error))


def read_usage(file: Path, by: Sequence[str], *, since: str | None = None, key: str | None = None) -> Iterator[dict]:
    """Yield sums by some of day, key, model and route, as dicts, the first of `by` first. May run beside a server.

    since: first day, as 2026-01-31. Raises StorageError or ConfigError.
    """
    if unknown := sorted(set(by) - set(_KEYS)):
        raise ConfigError(f'usage can be summed by {", ".join(_KEYS)}, not by "{unknown[0]}".')
    if not file.exists():
        raise StorageError(f"{file} does not exist: no server has counted anything there yet.")
    where, values = [], []
    for column, test, value in (("day", ">=", since), ("key", "=", key)):
        if value is not None:
            where.append(f"{column} {test} ?")
            values.append(value)
    columns = [*by, *(f"SUM({name}) AS {name}" for name in _SUMS)]
    query = f"SELECT {', '.join(columns)} FROM usage"
    query += f" WHERE {' AND '.join(where)}" if where else ""
    query += f" GROUP BY {', '.join(by)} ORDER BY {', '.join(by)}" if by else ""
    try:
        with closing(sqlite3.connect(file, timeout=5.0)) as connection:
            _check_version(connection, file)
            connection.row_factory = sqlite3.Row
            for row in connection.execute(query, values):
                if row["requests"] is not None:
                    yield dict(row)
    except sqlite3.Error as error:
        raise StorageError(f"{file} (usage) cannot be read: {error}.") from error


def _check_version(connection: sqlite3.Connection, file: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise StorageError(f"{file} holds usage in version {version}; this Gemworks knows version {_VERSION}.")


def _may_pass(error: sqlite3.Error) -> bool:
    """Whether an error is of the moment: SQLITE_FULL (13), IOERR (10), or another process writes: BUSY 5, LOCKED 6."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (5, 6, 10, 13)
