"""Compiled programs on disk, loaded without tracing: what a warm start does instead of compiling.

    <cache>/programs/<32 hex digits>.program    the digits: a hash of everything the program depends on
    <cache>/programs/<32 hex digits>.used       which programs a start like this one used last, a name a line

jax's own cache spares only the compiler: to find a program there a start must know the weights, and trace and lower a
model of hundreds of matrices. Here a start loads in a thread what the last one used (`preload`) and takes it if the
same hash comes up. A list of names that is wrong costs time and nothing else.

Where somebody has set jax's own cache (JAX_COMPILATION_CACHE_DIR), that one is used and this one is not: a program that
XLA:CPU has read from a cache and writes again lacks its functions, and fails when it is called (jaxlib 0.10.2).

A program depends on: our own source files and native library, jax and jaxlib, jax's settings and the environment's,
the processor, the backend of every op, and the call: its key, the structure with all static fields and the shapes and
types of its arguments.

Programs are unpickled: whoever may write to the cache may run code here, as with Python's own __pycache__.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from gemworks import env, machine
from gemworks.errors import GemworksError
from gemworks.ops import native, select
from gemworks.weights.atomic import replacing

_SUFFIX, _USED_SUFFIX = ".program", ".used"
_DIGEST_BYTES = 16

# Packages whose source decides what a program computes.
_SOURCES = ("engine", "model", "ops")

# Settings of jax that say where things are kept and printed, not what is computed.
_HARMLESS = ("jax_compilation_cache", "jax_persistent_cache", "jax_log", "jax_debug", "jax_dump", "jax_explain")


class ProgramStore:
    """The programs of one process.

    `start` is any text that says what this start loads: starts that say the same likely need the same programs.
    """

    def __init__(self, start: str = ""):
        self._start = start
        self._used: list[str] = []
        self._listed: Future[dict[str, Future]] | None = None

    def preload(self) -> None:
        """Begin to load what the last start of this kind used, in a thread: it runs without the interpreter's lock."""
        if _is_off():
            return
        pool = ThreadPoolExecutor(1, thread_name_prefix="programs")

        def listed() -> dict[str, Future]:
            try:
                names = self._used_path().read_text(encoding="ascii").split()
            except (OSError, ValueError):
                names = []
            coming = {name: pool.submit(_load, name) for name in names[:_REMEMBERED]}
            pool.shutdown(wait=False)
            return coming

        self._listed = pool.submit(listed)

    def get(self, key: tuple, arguments: Sequence[Any], lower: Callable[[], Any]) -> Callable:
        """Return the program for `key` and arguments like these: preloaded, from disk, or compiled and kept.

        `lower()` must return what jax.jit(...).lower gives for these arguments, which are lists of arrays. `key` holds
        all else the program depends on, as text says it: two keys of one repr are one program.
        """
        if _is_off():
            return lower().compile()
        name = _hash(_surroundings(), repr(key), _signature(arguments))
        coming = self._listed.result().pop(name, None) if self._listed else None
        program = coming.result() if coming else _load(name)
        if program is None:
            program = lower().compile()
            _save(name, program)
        self._note(name)
        return program

    def _note(self, name: str) -> None:
        """Remember the first few programs of this start for the next one."""
        if len(self._used) >= _REMEMBERED:
            return
        self._used.append(name)
        text, path = "\n".join(self._used), self._used_path()
        with contextlib.suppress(OSError, GemworksError, UnicodeDecodeError):
            if path.is_file() and path.read_text(encoding="ascii").startswith(text):
                return  # as last time so far
            _write(path, text.encode())

    def _used_path(self) -> Path:
        return _folder() / (_hash(_surroundings(), "start", self._start) + _USED_SUFFIX)


# A prompt's program, the first choice of a token, and decoding: what every start needs. More would be loaded in vain.
_REMEMBERED = 3

# Programs kept on disk, those used last; 0.1 to 2 MB each.
_KEPT = 100


def _is_off() -> bool:
    return jax.config.values["jax_compilation_cache_dir"] is not None


def _load(name: str) -> Callable | None:
    """The program of that name, or None where it is not there or not whole."""
    from jax.experimental import serialize_executable

    path = _folder() / (name + _SUFFIX)
    try:
        data = path.read_bytes()
    except OSError:
        return None
    with contextlib.suppress(OSError):  # when it was last used; another user's cache can be read all the same
        os.utime(path)
    content = data[_DIGEST_BYTES:]
    if _digest(content) != data[:_DIGEST_BYTES]:
        return None
    try:
        return serialize_executable.deserialize_and_load(*pickle.loads(content))
    except Exception:  # whatever jax and XLA raise for what they do not take: compile it then
        return None


def _save(name: str, program: Any) -> None:
    """Keep a program, if it can be kept."""
    from jax.experimental import serialize_executable

    try:
        content = pickle.dumps(serialize_executable.serialize(program))
    except Exception:  # a backend without serialization, a structure that cannot be pickled
        return
    with contextlib.suppress(OSError, GemworksError):  # a full disk: compiled again at the next start
        _write(_folder() / (name + _SUFFIX), _digest(content) + content)
        for suffix in (_SUFFIX, _USED_SUFFIX):
            kept = sorted(_folder().glob("*" + suffix), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in kept[_KEPT:]:
                path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with replacing(path, needed=len(data), force=True, durable=False) as partial:
        partial.write_bytes(data)


def _signature(arguments: Sequence[Any]) -> str:
    """Structure, shapes and types of the arguments, static fields included."""
    leaves, structure = jax.tree.flatten(arguments)
    return f"{structure} {[(jax.typeof(leaf), str(getattr(leaf, 'sharding', None))) for leaf in leaves]}"


def _surroundings() -> str:
    """What every program of this process depends on now, as text."""
    settings = {name: value for name, value in jax.config.values.items() if not name.startswith(_HARMLESS)}
    return _hash(_machine(), repr(sorted(settings.items(), key=lambda item: item[0])), repr(select.explain()))


@functools.cache
def _machine() -> str:
    """What cannot change while a process runs, as a hash."""
    sources = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    package = Path(__file__).parents[1]
    for path in sorted(path for folder in _SOURCES for path in (package / folder).rglob("*.py")):
        sources.update(f"{path.relative_to(package)} {path.stat().st_size} ".encode() + path.read_bytes())
    library = native.native_library()
    status = library.path.stat() if library else None
    device = jax.devices()[0]
    return _hash(
        sources.hexdigest(),
        str(status and (status.st_size, status.st_mtime_ns)),
        version("jax"),
        version("jaxlib"),
        repr(sorted(env.compiler_settings().items())),
        repr((device.platform, device.device_kind, jax.device_count(), device.client.platform_version)),
        repr((_processor(), machine.threads())),
    )


def _processor() -> str:
    """Name and abilities of the processor: XLA compiles for exactly this one."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.version()}"
    wanted = ("model name", "flags", "Features", "CPU part", "CPU implementer")
    return "\n".join(line for line in first.splitlines() if line.startswith(wanted))


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _folder() -> Path:
    return env.cache() / "programs"
