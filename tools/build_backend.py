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
OFF = {"OFF", "0", "NO", "FALSE", "N"}


def get_requires_for_build_wheel(config_settings=None):
    return _build.get_requires_for_build_wheel(config_settings) + _compiler(config_settings)


def get_requires_for_build_editable(config_settings=None):
    return _build.get_requires_for_build_editable(config_settings) + _compiler(config_settings)


def _compiler(config_settings) -> list[str]:
    """The extra build requirements of this machine: none, or ziglang."""
    wanted = str((config_settings or {}).get("cmake.define.GEMWORKS_NATIVE", "ON")).upper() not in OFF
    if not wanted or has_compiler() or not can_be_had(ZIG):
        return []
    return [ZIG]


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
