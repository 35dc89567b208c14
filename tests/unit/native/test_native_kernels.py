"""The tests of csrc/tests, built here with AddressSanitizer and UBSan and run; and that they can fail.

They need neither Python nor XLA: `make test-native` builds them plain and with ThreadSanitizer too, `make test-neon`
for arm64.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # 45 s to build and 30 s to run on two cores

# A build with the sanitizers and its run take a minute; the kernels' results are tested in tests/backend too.
pytestmark = pytest.mark.exhaustive


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def build(repo_root, tmp_path_factory) -> Path:
    """Folder of the built tests; skips where this machine cannot build them."""
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on PATH (an install brings its own for its own time)")
    folder = tmp_path_factory.mktemp("native")
    probe = folder / "probe.cc"
    probe.write_text("int main() { return 0; }\n", encoding="utf-8")
    if run("c++", "-fsanitize=address,undefined", probe, "-o", folder / "probe").returncode:
        pytest.skip("this compiler has no sanitizers (Debian: libasan and libubsan come with g++)")
    source = repo_root / "csrc" / "tests"
    configured = run("cmake", "-S", source, "-B", folder, "-DGEMWORKS_SANITIZE=address,undefined")
    if "There are no kernels for" in configured.stderr:
        pytest.skip("no kernels for this processor")
    assert configured.returncode == 0, configured.stdout + configured.stderr
    built = run("cmake", "--build", folder, "--parallel", "2")
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_kernels_are_right_and_clean(build):
    """Vocabularies, products, blocks, attention and the pool, on every instruction set this CPU runs."""
    done = run(build / "kernel_tests")
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(r"^(\d+) cases, 0 failures, results [0-9a-f]{16}$", done.stdout, re.MULTILINE)
    assert counted and int(counted[1]) > 1000, done.stdout


def test_a_failure_names_its_case_and_is_an_exit_status(build):
    done = run(build / "kernel_tests", "simd", "--require", "a_set_nobody_has")
    assert done.returncode == 1
    assert "FAILED  --require a_set_nobody_has: this CPU does not run it" in done.stderr
    assert run(build / "kernel_tests", "simds").returncode == 2


def test_the_sanitizers_are_in(build):
    """A build that lost its flags would be clean, too."""
    symbols = run("nm", build / "kernel_tests").stdout
    assert "__asan_report_load4" in symbols
    assert "__ubsan_handle_add_overflow_abort" in symbols


def shared_code(archive: Path, own: str) -> list[str]:
    """Functions in an archive of kernels which the linker may take for another file's of the same name."""
    lines = run("nm", "-C", "--defined-only", archive).stdout.splitlines()
    weak = {line.split(" ", 2)[2] for line in lines if re.match(r"[0-9a-f]+ [WVu] ", line)}
    return sorted(name for name in weak if own not in name and not name.startswith("DW.ref."))


def test_no_kernel_file_offers_its_code_to_others(build):
    """Of an inline function outside the kernels' namespace the linker keeps one copy for all: if it keeps the one that
    was compiled for AVX-512, a CPU without dies of it."""
    if shutil.which("nm") is None:
        pytest.skip("no nm on PATH")
    archives = sorted(build.glob("libkernels_*.a"))
    assert archives
    assert {a.name: shared_code(a, a.stem.removeprefix("libkernels_") + "::") for a in archives} == {
        a.name: [] for a in archives
    }
