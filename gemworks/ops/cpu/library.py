"""Makes the kernels of the native library callable from compiled steps: checks, chooses, registers. Once a process."""

import functools
from importlib.metadata import version

import jax

from gemworks import env, machine
from gemworks.errors import BackendError
from gemworks.ops import native

# Symbols of csrc/ffi_*.cc.
TARGETS = (
    "gemworks_linear",
    "gemworks_linear_bf16",
    "gemworks_rms_norm",
    "gemworks_qkv",
    "gemworks_block_tail",
    "gemworks_head_top",
    "gemworks_embed",
    "gemworks_attend_ring",
    "gemworks_attend_pages",
    "gemworks_attend_all",
    "gemworks_tower_layer",
)
ISAS = ("avx512_bf16", "avx512_vnni", "avx2", "neon")


@functools.cache
def why_unavailable() -> str | None:
    """Why the kernels cannot be used here, or None after registering them.

    Raises BackendError where GEMWORKS_ISA is not one that can be had.
    """
    library = native.native_library()
    if library is None:
        return native.why_missing()
    if not hasattr(library.handle, "gemworks_configure"):
        return (
            f"{library.path} was built without them: its build found no XLA headers (package jaxlib), or a compiler or "
            f"processor they are not written for ({library.compiler})"
        )
    if _release(version("jaxlib")) < _release(library.jaxlib):
        return f"they were built for jaxlib {library.jaxlib} or newer and this is {version('jaxlib')}; install again"
    if jax.default_backend() != "cpu":
        return f"jax computes on {jax.default_backend()} here"
    if why := _configure(library):
        return why
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(library.handle[name]), platform="cpu")
    return None


def isa() -> str:
    """The instruction set the kernels use here."""
    library = native.native_library()
    assert library is not None and why_unavailable() is None
    return library.handle.gemworks_isa().decode("ascii")


def set_threads(count: int) -> None:
    """Use `count` threads from the next kernel on. For tests and benchmarks; GEMWORKS_THREADS is for users."""
    use(isa(), count)


def use(isa: str, threads: int) -> None:
    """Use this instruction set and number of threads from the next kernel on. For tests and benchmarks."""
    library = native.native_library()
    assert library is not None and threads >= 1
    if library.handle.gemworks_configure(isa.encode("ascii"), threads) != 0:
        raise BackendError(f'the CPU kernels have no "{isa}" here; the library or this CPU lacks it.')


def _configure(library: native.NativeLibrary) -> str | None:
    forced = env.forced_isa()
    code = library.handle.gemworks_configure((forced or "").encode(), env.threads() or machine.threads())
    if code == 0:
        return None
    if forced is None:
        return f"this CPU has none of the instruction sets they are written for ({', '.join(ISAS)})"
    if forced not in ISAS:
        raise BackendError(f'GEMWORKS_ISA must be one of {", ".join(ISAS)}, got "{forced}".')
    raise BackendError(
        f'GEMWORKS_ISA asks for "{forced}", which this CPU lacks.\nIt has: {", ".join(sorted(library.features))}.'
    )


def _release(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.10.2.dev3" is (0, 10, 2)."""
    numbers = []
    for part in text.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
