"""What this machine can do at best, measured in the same run as what is divided by it (csrc/peaks.cc)."""

import ctypes
from dataclasses import dataclass

from gemworks.ops import native

# Far larger than a last-level cache; each thread reads its part front to back.
BUFFER_BYTES = 1 << 30
_SECONDS = 0.4

NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True, slots=True)
class Peaks:
    """Billions a second with `threads` threads; None where it was not measured. The names say with which instructions.

    `why_missing` says why nothing was measured, or is None.
    """

    threads: int
    read_gb_s: float | None = None
    int8_gmac_s: float | None = None
    int8_name: str = NOT_MEASURED
    fma_gmac_s: float | None = None
    fma_name: str = NOT_MEASURED
    why_missing: str | None = None


def measure(threads: int, *, seconds: float = _SECONDS, buffer_bytes: int = BUFFER_BYTES) -> Peaks:
    """Return the peaks of this machine now; about three times `seconds`. Nothing else should run meanwhile."""
    library = native.native_library()
    if library is None:
        return Peaks(threads=threads, why_missing=native.why_missing())
    calls = _bind(library.handle)
    if calls is None:
        return Peaks(threads=threads, why_missing=f"{library.path} was built without them; install Gemworks again")
    read, int8, fma = calls
    return Peaks(
        threads=threads,
        read_gb_s=read(threads, buffer_bytes, seconds) or None,
        int8_gmac_s=int8(threads, seconds) or None,
        int8_name=library.handle.gemworks_peak_vnni_name().decode("ascii"),
        fma_gmac_s=fma(threads, seconds) or None,
        fma_name=library.handle.gemworks_peak_fma_name().decode("ascii"),
    )


def _bind(handle: ctypes.CDLL):
    """The three functions with their types, or None in a library from before them."""
    try:
        read, int8, fma = (
            getattr(handle, f"gemworks_peak_{name}") for name in ("read_gbps", "vnni_gmacs", "fma_gmacs")
        )
        names = handle.gemworks_peak_vnni_name, handle.gemworks_peak_fma_name
    except AttributeError:
        return None
    for call in (read, int8, fma):
        call.restype = ctypes.c_double
    read.argtypes = [ctypes.c_int32, ctypes.c_uint64, ctypes.c_double]
    int8.argtypes = fma.argtypes = [ctypes.c_int32, ctypes.c_double]
    for name in names:
        name.restype = ctypes.c_char_p
    return read, int8, fma
