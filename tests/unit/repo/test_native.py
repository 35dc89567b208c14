"""The native library: what it says of this CPU, and what is said when it is not there."""

import ctypes
import json
import platform
from pathlib import Path

import pytest

from gemworks.ops import native

X86 = {
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16"),
}
# Our name -> Linux's on arm64; on x86 they are the same.
ARM = {"neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm"}


@pytest.fixture
def library() -> native.NativeLibrary:
    found = native.native_library()
    if found is None:
        pytest.skip(f"no native library: {native.why_missing()}")
    return found


def test_features_agree_with_the_kernel(library):
    """The names Linux prints in /proc/cpuinfo are the features the library finds, no more and no less."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo: not Linux")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    flags = next((set(line.split(":")[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())
    expected = {ours for ours, linux in ARM.items() if linux in flags} if "asimd" in flags else X86 & flags
    assert library.features == expected


def test_a_64_bit_arm_machine_has_neon(library):
    is_arm = platform.machine().lower() in {"aarch64", "arm64"}
    assert ("neon" in library.features) == is_arm


def test_a_library_is_never_also_missing(library):
    assert native.why_missing() is None
    assert library.compiler
    assert native.native_library() is library


def build(folder: Path, *, why_missing: str = "", library: bytes | None = None) -> tuple[Path, ...]:
    """A folder as an install leaves it."""
    report = {"compiler": "GNU 12.2.0", "why_missing": why_missing}
    (folder / "native_build.json").write_text(json.dumps(report), encoding="utf-8")
    if library is not None:
        (folder / "gemworks_native.so").write_bytes(library)
    return (folder,)


def test_without_a_compiler_the_reason_and_the_remedy_are_told(tmp_path):
    reason = "no working C++ compiler was found when Gemworks was installed"
    assert native._load(build(tmp_path, why_missing=reason)) == (
        None,
        "no working C++ compiler was found when Gemworks was installed. "
        "Install g++ or clang++ and install Gemworks again; every op runs on ops/xla until then.",
    )


def test_a_source_tree_without_a_build_is_told_apart(tmp_path):
    library, why = native._load((tmp_path,))
    assert library is None
    assert why is not None
    assert why.startswith("Gemworks runs from a source tree in which nothing was built. Install g++")


def test_a_lost_library_is_told_apart(tmp_path):
    library, why = native._load(build(tmp_path))
    assert library is None
    assert why is not None
    assert why.startswith(f"{tmp_path} has a build report but no library. Install g++")


def test_a_library_the_system_refuses_is_named_with_the_reason(tmp_path):
    library, why = native._load(build(tmp_path, library=b"not a library"))
    assert library is None
    assert why is not None
    assert why.startswith(f"{tmp_path / 'gemworks_native.so'} cannot be loaded here: ")


class Stub:
    """A loaded library with some interface number, or with none."""

    def __init__(self, interface: int | None):
        if interface is not None:
            self.gemworks_interface = lambda: interface


@pytest.mark.parametrize(
    ("interface", "reason"),
    [(0, "it has interface 0 and this version of Gemworks needs 2"), (None, "it is not Gemworks' library")],
)
def test_a_library_of_another_version_is_refused(tmp_path, monkeypatch, interface, reason):
    monkeypatch.setattr(ctypes, "CDLL", lambda path: Stub(interface))
    library, why = native._load(build(tmp_path, library=b""))
    assert library is None
    assert why is not None
    assert f"cannot be loaded here: {reason}. Install g++" in why
