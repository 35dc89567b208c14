"""The build on machines with and without a C++ compiler."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEADERS = "jaxlib==0.10.0"  # the oldest jax that pyproject.toml allows


def configure(build: Path, **environment: str) -> dict[str, str]:
    """Run CMake's configuring step and return the build report it writes."""
    cmake = shutil.which("cmake")
    ninja = shutil.which("ninja")
    if cmake is None or ninja is None:
        pytest.skip("cmake and ninja are not on PATH (an install brings its own for its own time)")
    done = subprocess.run(
        # No Python for CMake: a ziglang package beside this one would be a compiler.
        [
            cmake,
            "-S",
            ROOT,
            "-B",
            build,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DPython_EXECUTABLE=/bin/false",
        ],
        env={"HOME": str(build), "PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((build / "native_build.json").read_text(encoding="utf-8"))


def test_no_compiler_is_not_an_error(tmp_path):
    """CMake finishes and the report says what is lost."""
    empty = tmp_path / "bin"
    empty.mkdir()
    report = configure(tmp_path / "build", PATH=str(empty))
    assert report == {
        "compiler": "",
        "jaxlib": "",
        "why_missing": "no working C++ compiler was found when Gemworks was installed",
    }


def test_a_broken_compiler_is_none(tmp_path):
    report = configure(tmp_path / "build", CXX="/bin/false")
    assert report["why_missing"] == "no working C++ compiler was found when Gemworks was installed"


def test_a_compiler_is_used_and_named(tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler on this machine")
    report = configure(tmp_path / "build")
    assert report["why_missing"] == ""
    assert report["compiler"].split()[0] in {"GNU", "Clang", "AppleClang"}


def test_without_xlas_headers_the_library_is_built_without_kernels(tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler on this machine")
    assert configure(tmp_path / "build")["jaxlib"] == ""


def test_the_headers_are_those_of_the_oldest_jax_we_support():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [jax] = [text for text in project["project"]["dependencies"] if text.startswith("jax>")]
    assert f"jaxlib=={jax.removeprefix('jax>=')}.0" == HEADERS


@pytest.fixture
def backend(monkeypatch) -> types.SimpleNamespace:
    """tools/build_backend.py with scikit-build-core, which lives in isolated builds only, replaced by a stub."""
    stub = types.ModuleType("scikit_build_core.build")
    for name in ("build_editable", "build_sdist", "build_wheel", "get_requires_for_build_sdist"):
        setattr(stub, name, None)
    for kind in ("wheel", "editable"):
        setattr(stub, f"get_requires_for_build_{kind}", lambda config_settings=None: ["ninja"])
        setattr(stub, f"prepare_metadata_for_build_{kind}", None)
    package = types.ModuleType("scikit_build_core")
    package.build = stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scikit_build_core", package)
    monkeypatch.setitem(sys.modules, "scikit_build_core.build", stub)
    monkeypatch.delenv("CXX", raising=False)
    return types.SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "build_backend.py")))


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
@pytest.mark.parametrize(
    ("compilers", "zig_can_be_had", "settings", "required"),
    [
        ({"g++"}, True, None, ["ninja", HEADERS]),
        (set(), True, None, ["ninja", HEADERS, "ziglang"]),
        (set(), False, None, ["ninja"]),
        (set(), True, {"cmake.define.GEMWORKS_NATIVE": "off"}, ["ninja"]),
        (set(), True, {"cmake.define.GEMWORKS_NATIVE": "ON"}, ["ninja", HEADERS, "ziglang"]),
    ],
)
def test_zig_is_required_only_where_it_is_needed(
    backend, monkeypatch, hook, compilers, zig_can_be_had, settings, required
):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in compilers else None)
    answer = types.SimpleNamespace(returncode=0 if zig_can_be_had else 1)
    version = types.SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: version if "--version" in command else answer)
    assert getattr(backend, hook)(settings) == required


def test_cxx_counts_as_a_compiler(backend, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not backend.has_compiler()
    monkeypatch.setenv("CXX", "/opt/bin/c++")
    assert backend.has_compiler()


def test_where_no_pip_answers_the_installer_looks(backend, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: types.SimpleNamespace(returncode=1))
    assert backend.can_be_had("ziglang")
