"""Opens a file that a caller named, a regular one and without waiting for a pipe; one RequestError for all others."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gemworks.errors import RequestError


@contextmanager
def regular_file(path: str | os.PathLike[str], name: str, thing: str) -> Iterator[tuple[BinaryIO, int]]:
    """Give the open file and its size in bytes. `thing` is what it must be: "an image". OSError inside is told, too."""
    try:
        with open(Path(path).expanduser(), "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RequestError(f"{name}: {thing} must be a regular file, got {_file_kind(status.st_mode)}.")
            yield file, status.st_size
    except RequestError:
        raise
    except IsADirectoryError as error:
        raise RequestError(f"{name}: {thing} must be a regular file, got a directory.") from error
    except FileNotFoundError as error:
        raise RequestError(
            f"{name}: {thing} must be a file that exists, got none of that name.\nCheck the path."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a zero byte in the name; RuntimeError: ~nobody
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{name}: {thing} must be readable, got: {reason}.") from error


def shown_path(source: str | bytes | os.PathLike) -> str:
    """A path as errors show it: printable, and not a page long when a caller mistook base64 for one."""
    text = os.fspath(source)
    text = text if isinstance(text, str) else os.fsdecode(text)
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= 200 else f"{text[:60]}... ({len(text):,} characters)"


def _open_without_waiting(path: str, flags: int) -> int:
    """`open` that does not wait for the other end of a pipe, which is refused anyway."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _file_kind(mode: int) -> str:
    for test, words in ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a directory")):
        if test(mode):
            return words
    return "a device"
