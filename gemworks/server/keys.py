"""API keys: kept hashed in a file, compared in constant time, read again when the file changes.

A key is gw_IDENTITY_SECRET. The identity (8 hex digits) finds the row and is no secret; of the secret, 192 random bits,
only a salted SHA-256 is kept. One round is enough: there is no dictionary of such secrets. A slow hash would only make
wrong keys costly to refuse.
"""

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemworks.errors import AccessError, ConfigError, StorageError

try:
    import fcntl
except ImportError:  # not on Windows: two `gemworks key add` at the same moment may lose one
    fcntl = None

_VERSION = 1
_DIGEST_BYTES = hashlib.sha256().digest_size
_KEY = re.compile(r"gw_([0-9a-f]{8})_([0-9a-f]{48})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")

# How long a changed file may go unseen.
RECHECK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. An empty name is anybody, where no keys are used. None in a limit: the server's own."""

    name: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    priority: int = 0
    is_admin: bool = False  # may pull, create and delete models


@dataclass(frozen=True, kw_only=True)
class StoredKey:
    """A row of the file. `hash` is SHA-256 of salt and secret, both in hex."""

    name: str
    identity: str
    salt: str
    hash: str
    created: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    priority: int = 0
    is_admin: bool = False

    def __post_init__(self):
        if len(bytes.fromhex(self.hash)) != _DIGEST_BYTES or not re.fullmatch(r"[0-9a-f]{8}", self.identity):
            raise ValueError("hash or identity has a wrong length")
        for limit in (self.requests_per_minute, self.tokens_per_minute, self.concurrency):
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"limits must be whole numbers of at least 1, got {limit!r}")
        if type(self.priority) is not int:
            raise ValueError(f"priority must be a whole number, got {self.priority!r}")
        if type(self.is_admin) is not bool:
            raise ValueError(f"is_admin must be true or false, got {self.is_admin!r}")

    @property
    def caller(self) -> Caller:
        """Whom this key stands for."""
        return Caller(**{one.name: getattr(self, one.name) for one in dataclasses.fields(Caller)})


@dataclass(frozen=True)
class _Table:
    rows: dict[str, tuple[bytes, bytes, Caller]] = field(default_factory=dict)  # identity -> salt, digest, caller


class Keys:
    """The keys of a running server. `caller` may be called by any thread; it costs a few microseconds.

    A file that became unreadable leaves the keys as they were last read; `problem` says so until it is mended.
    """

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.monotonic):
        self._file, self._clock = file, clock
        self.problem: str | None = None
        self._stamp = _stamp(file)
        self._table = _table(read_keys(file))
        self._checked = clock()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._table.rows)

    def caller(self, key: str | None) -> Caller:
        """Return whose key this is. Raises AccessError; how long that takes says nothing about any key."""
        self._refresh()
        match = _KEY.fullmatch(key or "")
        identity, secret = match.groups() if match else ("", "")
        salt, digest, caller = self._table.rows.get(identity, _NOBODY)
        if hmac.compare_digest(_digest(salt, secret), digest) and caller is not None:
            return caller
        raise AccessError(
            "the API key is not known here. Make one with: gemworks key add NAME"
            if key
            else "an API key is needed: send it as Authorization: Bearer KEY."
        )

    def _refresh(self) -> None:
        now = self._clock()
        if now - self._checked < RECHECK_S or not self._lock.acquire(blocking=False):
            return
        try:
            self._checked = now
            stamp = _stamp(self._file)
            if stamp == self._stamp and self.problem is None:
                return
            self._table, self.problem, self._stamp = _table(read_keys(self._file)), None, stamp
        except (ConfigError, StorageError) as error:
            self.problem = str(error)
        finally:
            self._lock.release()


def read_keys(file: Path) -> list[StoredKey]:
    """Return the rows of a keys file. Raises ConfigError or StorageError."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["version"] != _VERSION:
            raise ConfigError(f"{file} is a keys file of version {said['version']}; this Gemworks reads {_VERSION}.")
        return [StoredKey(**row) for row in said["keys"]]
    except FileNotFoundError:
        raise StorageError(f"{file} does not exist. Make a key with: gemworks key add NAME --keys {file}") from None
    except OSError as error:
        raise StorageError(f"{file} (API keys) cannot be read: {error.strerror or error}.") from error
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} is no keys file of Gemworks: {error}. Change it with gemworks key.") from error


def add_key(file: Path, name: str, *, now: float | None = None, **limits: int | None) -> str:
    """Add a key and return it; it is shown nowhere else. Raises ConfigError where the name is taken."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f'a key\'s name must be 1 to 64 letters, digits, ".", "_", "-" or "@", got "{name}".')
    identity, secret, salt = secrets.token_hex(4), secrets.token_hex(24), secrets.token_bytes(16)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    row = {"identity": identity, "salt": salt.hex(), "hash": _digest(salt, secret).hex(), "created": created}
    try:
        made = StoredKey(name=name, **row, **limits)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    with _changing(file) as rows:
        if any(row.name == name for row in rows):
            raise ConfigError(f'there is a key named "{name}" already. Revoke it first: gemworks key revoke {name}')
        rows.append(made)
    return f"gw_{identity}_{secret}"


def revoke_key(file: Path, name: str) -> None:
    """Remove a key; a running server refuses it within RECHECK_S seconds. Raises ConfigError where there is none."""
    with _changing(file) as rows:
        kept = [row for row in rows if row.name != name]
        if len(kept) == len(rows):
            names = ", ".join(row.name for row in rows) or "none"
            raise ConfigError(f'there is no key named "{name}" in {file}. Its keys: {names}.')
        rows[:] = kept


@contextlib.contextmanager
def _changing(file: Path) -> Iterator[list[StoredKey]]:
    """Yield the rows of a file to be changed, and replace it, readable by its owner only, when the block ends well."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file.with_name(f".{file.name}.lock"), "w") as lock:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            rows = read_keys(file) if file.exists() else []
            yield rows
            _write(file, rows)
    except OSError as error:
        raise StorageError(f"{file} (API keys) cannot be written: {error.strerror or error}.") from error


def _write(file: Path, rows: list[StoredKey]) -> None:
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    text = json.dumps({"version": _VERSION, "keys": [asdict(row) for row in rows]}, indent=1) + "\n"
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _digest(salt: bytes, secret: str) -> bytes:
    return hashlib.sha256(salt + secret.encode()).digest()


# A key that is not known is compared with this, as long and as slowly as with one that is.
_NOBODY: tuple[bytes, bytes, Caller | None] = (bytes(16), bytes(_DIGEST_BYTES), None)


def _table(rows: list[StoredKey]) -> _Table:
    return _Table({row.identity: (bytes.fromhex(row.salt), bytes.fromhex(row.hash), row.caller) for row in rows})


def _stamp(file: Path) -> Any:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
