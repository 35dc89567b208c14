"""The server's log: a JSON object a line, written by a thread of its own so that a slow disk or pipe delays no answer.

Lines hold counts, times, names and ids. Of an exception only its class and places in the code are written: its text may
quote what somebody asked.
"""

import json
import logging
import sys
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

from gemworks.errors import StorageError
from gemworks.server.settings import LOG_LEVELS, LogSettings

if TYPE_CHECKING:
    from gemworks.server.record import Record

# Lines that wait to be written; more are dropped and counted.
_MOST_WAITING = 10_000
_FLUSH_S = 0.2

# Routes that are asked every few seconds by machines: told at debug.
_QUIET = {"/health", "/health/live", "/health/ready", "/metrics"}


class Logs:
    """Takes lines from any thread. `lost()` counts those that were dropped or could not be written."""

    def __init__(self, settings: LogSettings, *, stream: TextIO | None = None):
        self._least = LOG_LEVELS.index(settings.level)
        self._stream, self._opened = _open(settings, stream)
        self.is_text = settings.format == "text" or (settings.format == "auto" and self._stream.isatty())
        self._shape = _as_text if self.is_text else _as_json
        self._lines: deque[dict[str, Any]] = deque()
        self._lost = 0
        self._handler = _Handler(self)
        self._wake, self._is_closed = threading.Event(), False
        self._thread = threading.Thread(target=self._write, name="logs", daemon=True)
        self._thread.start()

    def lost(self) -> int:
        """Lines that are in no log."""
        return self._lost

    def tell(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Write a line. `event` says what happened; fields that are None are left out."""
        rank = LOG_LEVELS.index(level)
        if rank < self._least:
            return
        if len(self._lines) >= _MOST_WAITING:
            self._lost += 1
            return
        told = {"time": _now(), "level": level, "event": event}
        self._lines.append(told | {name: value for name, value in fields.items() if value is not None})
        if rank >= LOG_LEVELS.index("warning"):
            self._wake.set()

    def request(self, record: "Record") -> None:
        """Write the line of a request that has ended."""
        fields: dict[str, Any] = {
            "id": record.id,
            "method": record.method,
            "route": record.route or None,
            "path": None if record.route else record.path[:100],
            "status": record.status or None,
            "key": record.key or None,
            "seconds": round(record.seconds, 4),
            "error": record.error or None,
        }
        if record.outcome:
            first = record.first_token_s
            fields |= {
                "call": record.call,
                "model": record.model,
                "outcome": record.outcome,
                "prompt_tokens": record.prompt_tokens,
                "cached_tokens": record.cached_tokens,
                "completion_tokens": record.completion_tokens,
                "image_tokens": record.image_tokens or None,
                "finish_reasons": record.finish_reasons or None,
                "queue_seconds": round(record.queue_s, 4),
                "first_token_seconds": None if first is None else round(first, 4),
            }
        level = "error" if record.status >= 500 and record.outcome != "refused" else "info"
        if record.route in _QUIET and record.status < 500:
            level = "debug"
        self.tell("request", level=level, **fields)

    def defect(self, error: BaseException, *, id: str) -> None:
        """Write where in the code an unforeseen exception came from."""
        places = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        self.tell("defect", level="error", id=id, error=type(error).__name__, places=places[-12:])

    def capture(self) -> None:
        """Bring what libraries log (Python's logging, warnings and above) here instead of to stderr, until `close`."""
        logging.getLogger().addHandler(self._handler)

    def close(self) -> None:
        """Write what waits and end the thread."""
        logging.getLogger().removeHandler(self._handler)
        self._is_closed = True
        self._wake.set()
        self._thread.join(timeout=5.0)
        if self._opened:
            self._stream.close()

    def _write(self) -> None:
        while True:
            closing = self._is_closed
            count = len(self._lines)
            text = "".join(self._shape(self._lines.popleft()) + "\n" for _ in range(count))
            try:
                if text:
                    self._stream.write(text)
                    self._stream.flush()
            except (OSError, ValueError):  # a full disk, a closed pipe: answers go on
                self._lost += count
            if closing:
                return
            self._wake.wait(_FLUSH_S)
            self._wake.clear()


class _Handler(logging.Handler):
    def __init__(self, logs: Logs):
        super().__init__(logging.WARNING)
        self._logs = logs

    def emit(self, record: logging.LogRecord) -> None:
        """Write a library's line. Where it tells of an exception, only what `defect` writes of one."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            if record.name != "uvicorn.error":  # else the middleware has told it, with the request's id
                self._logs.defect(error, id="-")
            return
        level = record.levelname.lower()
        told = {"logger": record.name, "message": record.getMessage()}
        self._logs.tell("library", level=level if level in LOG_LEVELS else "error", **told)


def _open(settings: LogSettings, stream: TextIO | None) -> tuple[TextIO, bool]:
    if stream is not None or settings.file is None:
        return stream or sys.stderr, False
    try:
        return open(settings.file, "a", encoding="utf-8"), True
    except OSError as error:
        raise StorageError(f"{settings.file} (logs.file) cannot be written: {error.strerror or error}.") from error


def _now() -> str:
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"


def _as_json(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=True, separators=(", ", ": "), default=str)


def _as_text(line: dict[str, Any]) -> str:
    rest = " ".join(f"{name}={value}" for name, value in line.items() if name not in ("time", "level", "event"))
    text = f"{line['time'][11:19]} {line['level']:7} {line['event']} {rest}"
    return text.encode("unicode_escape").decode()
