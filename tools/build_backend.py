"""The build backend: scikit-build-core, plus a C++ compiler from the package registry where the machine has none.

    compiler on PATH or in CXX    build with it; nothing is added
    none, ziglang can be had      ziglang becomes a build requirement and CMakeLists.txt uses its `zig c++`
    none, ziglang cannot be had   the package installs without the native library and says so

A build requirement that cannot be had stops an installer, so ziglang is asked for only after a dry run of pip has
found it. `pip install . -C cmake.define.GEMWORKS_NATIVE=OFF` skips all of this and builds no native library.
"""

import os
import shutil
import subprocess
import sys

from scikit_build_core import build as _build
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# The names CMake itself tries, in its order, with the one MSVC adds.
COMPILERS = ("c++", "g++", "clang++", "cl")
ZIG = "ziglang"
# Whose headers declare XLA's FFI. The oldest jaxlib we support: a library built against it runs on newer ones, one
# built against newer headers than it runs on stops jax's CPU backend.
HEADERS = "jaxlib==0.10.0"
OFF = {"OFF", "0", "NO", "FALSE", "N"}


def get_requires_for_build_wheel(config_settings=None):
    return _build.get_requires_for_build_wheel(config_settings) + _native(config_settings)


def get_requires_for_build_editable(config_settings=None):
    return _build.get_requires_for_build_editable(config_settings) + _native(config_settings)


def _native(config_settings) -> list[str]:
    """The build requirements of the native library on this machine: XLA's headers, and perhaps a compiler."""
    if str((config_settings or {}).get("cmake.define.GEMWORKS_NATIVE", "ON")).upper() in OFF:
        return []
    if has_compiler():
        return [HEADERS]
    return [HEADERS, ZIG] if can_be_had(ZIG) else []


def has_compiler() -> bool:
    """Whether CXX is set or a C++ compiler is on PATH. CMake decides later whether it works."""
    return bool(os.environ.get("CXX")) or any(shutil.which(name) for name in COMPILERS)


def can_be_had(name: str) -> bool:
    """Whether pip finds the package `name` for this machine. True where no pip answers: the installer will look."""
    # -I: past the path changes of pip's build isolation, which hide pip itself.
    pip = [sys.executable, "-I", "-m", "pip"]
    try:
        if subprocess.run([*pip, "--version"], capture_output=True, timeout=60).returncode:
            return True
        # "index versions" reads one page of the registry; a dry run of "install" would fetch 100 MB.
        found = subprocess.run([*pip, "index", "versions", name], capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0
