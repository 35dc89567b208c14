"""The native library, built when Gemworks was installed on a machine with a C++ compiler (csrc/, CMakeLists.txt).

It holds what Python cannot know, which instruction sets this CPU has and the operating system allows, and the kernels
that ops/cpu calls. Without it every op runs on ops/xla.

Not here: which backend an op uses (select.py).
"""

import ctypes
import functools
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import gemworks.ops

# csrc/cpu_features.cc, gemworks_interface(). A library left over from another version has another number.
INTERFACE = 2
_FILE_NAMES = ("gemworks_native.so", "gemworks_native.dll")
_HOW_TO_GET_IT = "Install g++ or clang++ and install Gemworks again; every op runs on ops/xla until then."


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeLibrary:
    """A loaded library. `features` are the names /proc/cpuinfo uses on x86, and neon, dotprod, i8mm on arm64."""

    path: Path
    compiler: str
    jaxlib: str  # whose headers it was built against; an older jaxlib must not be given its operations
    features: frozenset[str]
    handle: ctypes.CDLL = field(repr=False, compare=False)


def native_library() -> NativeLibrary | None:
    """The native library, loaded once, or None; `why_missing` says why."""
    return _load(tuple(_folders()))[0]


def why_missing() -> str | None:
    """Why there is no native library and how to get it, or None where there is one."""
    return _load(tuple(_folders()))[1]


def _folders() -> list[Path]:
    """Where the build may have put the library: beside this file, and in the installed half of an editable install."""
    return [Path(folder) for folder in gemworks.ops.__path__]


@functools.cache
def _load(folders: tuple[Path, ...]) -> tuple[NativeLibrary | None, str | None]:
    report = _first(folders, ("native_build.json",))
    if report is None:
        return None, f"Gemworks runs from a source tree in which nothing was built. {_HOW_TO_GET_IT}"
    build = json.loads(report.read_text(encoding="utf-8"))
    if build["why_missing"]:
        return None, f"{build['why_missing']}. {_HOW_TO_GET_IT}"
    path = _first(folders, _FILE_NAMES)
    if path is None:
        return None, f"{report.parent} has a build report but no library. {_HOW_TO_GET_IT}"
    try:
        return _open(path, build["compiler"], build.get("jaxlib", "")), None
    except OSError as error:
        return None, f"{path} cannot be loaded here: {error}. {_HOW_TO_GET_IT}"


def _first(folders: tuple[Path, ...], names: tuple[str, ...]) -> Path | None:
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _open(path: Path, compiler: str, jaxlib: str) -> NativeLibrary:
    """Load `path`. Raises OSError where the system refuses it or it is of another version."""
    handle = ctypes.CDLL(str(path))
    try:
        interface = handle.gemworks_interface()
    except AttributeError as error:
        raise OSError("it is not Gemworks' library") from error
    if interface != INTERFACE:
        raise OSError(f"it has interface {interface} and this version of Gemworks needs {INTERFACE}")
    handle.gemworks_cpu_features.restype = ctypes.c_uint64
    handle.gemworks_cpu_feature_name.restype = ctypes.c_char_p
    handle.gemworks_cpu_feature_name.argtypes = [ctypes.c_uint32]
    if hasattr(handle, "gemworks_isa"):
        handle.gemworks_isa.restype = ctypes.c_char_p
        handle.gemworks_configure.argtypes = [ctypes.c_char_p, ctypes.c_int32]
    mask = handle.gemworks_cpu_features()
    names = itertools.takewhile(bool, map(handle.gemworks_cpu_feature_name, itertools.count()))
    features = frozenset(name.decode("ascii") for bit, name in enumerate(names) if mask >> bit & 1)
    return NativeLibrary(path=path, compiler=compiler, jaxlib=jaxlib, features=features, handle=handle)
