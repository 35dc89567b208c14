"""GEMWORKS_ISA: the same bits from every instruction set this CPU has, and one clear sentence for any other."""

import hashlib
import platform
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import env, ops
from gemworks.errors import BackendError
from gemworks.ops import layout, native, select
from gemworks.ops.weight import Format, PackedWeight, QuantWeight

if "cpu" not in select.available():
    pytest.skip("no CPU kernels here: see gemworks doctor", allow_module_level=True)

from gemworks.ops.cpu import library

IS_ARM = platform.machine().lower() in {"aarch64", "arm64"}
OWN = ("neon",) if IS_ARM else ("avx512_bf16", "avx512_vnni", "avx2")


def has(isa: str) -> bool:
    found = native.native_library()
    assert found is not None
    needs = {
        "avx512_bf16": {"avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"},
        "avx512_vnni": {"avx512bw", "avx512vl", "avx512_vnni"},
        "avx2": {"avx2", "fma"},
        "neon": {"neon", "dotprod"},
    }
    return needs[isa] <= found.features


def product() -> str:
    """Hash of products in the integer formats, 5 tokens, no size a multiple of a tile."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(0, 1, (5, 160)), jnp.float32)
    digest = hashlib.sha256()
    formats: tuple[tuple[Format, int], ...] = (("int4-b32", 80), ("int8-b32", 160))
    for format, width in formats:
        codes = random.integers(0, 256, (37, width)).astype(np.uint8).view(np.uint8 if width == 80 else np.int8)
        scales = random.uniform(0.01, 0.02, (37, 5)).astype(np.float16)
        weight = QuantWeight(codes, scales, format, (37, 160))
        packed = PackedWeight(jnp.asarray(layout.pack(weight)), weight.format, weight.shape)
        digest.update(np.asarray(ops.linear(x, packed)).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("isa", OWN)
def test_every_instruction_set_gives_the_same_bits(isa, repo_root):
    """Forced from outside in a process of its own; the kernels fix the order of every sum (csrc/linear.inl)."""
    if not has(isa):
        pytest.skip(f"this CPU has no {isa}")
    code = "from gemworks.ops.cpu import library; import test_isa; print(test_isa.product(), library.isa())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repo_root / "tests" / "unit" / "native",
        env=env.for_child({"GEMWORKS_ISA": isa}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == [product(), isa], done.stderr


def refusal(monkeypatch: pytest.MonkeyPatch, isa: str) -> str:
    found = native.native_library()
    assert found is not None
    monkeypatch.setenv("GEMWORKS_ISA", isa)
    with pytest.raises(BackendError) as raised:
        library._configure(found)
    return str(raised.value)


@pytest.mark.parametrize("isa", ["avx512", "AVX2", "sse9", "avx2 "])
def test_an_unknown_name_is_told_the_known_ones(monkeypatch, isa):
    before = library.isa()
    assert (
        refusal(monkeypatch, isa) == f'GEMWORKS_ISA must be one of avx512_bf16, avx512_vnni, avx2, neon, got "{isa}".'
    )
    assert library.isa() == before


def test_a_set_this_cpu_lacks_is_told_what_it_has(monkeypatch):
    isa = "avx2" if IS_ARM else "neon"
    first, second = refusal(monkeypatch, isa).split("\n")
    assert first == f'GEMWORKS_ISA asks for "{isa}", which this CPU lacks.'
    assert second.startswith("It has: ") and ("dotprod" if IS_ARM else "avx2") in second


def test_a_wrong_name_ends_the_command_with_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "gemworks", "run", "tiny", "Hello"],
        env=env.for_child({"GEMWORKS_ISA": "sse9"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    assert 'GEMWORKS_ISA must be one of avx512_bf16, avx512_vnni, avx2, neon, got "sse9".' in done.stderr
    assert "Traceback" not in done.stderr
