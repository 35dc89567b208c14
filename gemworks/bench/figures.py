"""From measured rates to figures: medians, bytes and multiply-adds a second, and shares of the peaks."""

import statistics
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from gemworks.bench import rows as rows_of
from gemworks.bench import work
from gemworks.bench.peaks import Peaks
from gemworks.bench.system import COMPARED, SystemSpec
from gemworks.model.config import TextConfig

# Row -> texts a step, and tokens of context each has on average.
_READS = {
    "decode": (1, rows_of.DECODE_TOKENS / 2),
    "decode-8k": (1, rows_of.LONG_PROMPT + rows_of.LONG_TOKENS / 2),
    "batch": (rows_of.BATCH_TEXTS, rows_of.BATCH_PROMPT + rows_of.BATCH_TOKENS / 2),
}
_COMPUTES = {"prefill": rows_of.PREFILL_TOKENS, "prefill-8k": rows_of.LONG_PROMPT}


def weight_bytes(config: TextConfig, spec: SystemSpec) -> int:
    """Return the bytes of the system's weights as it reads them, by arithmetic."""
    if spec.engine == "llama.cpp":
        return work.gguf_bytes(config, spec.kind)
    if spec.engine == "openvino":
        return work.openvino_bytes(config)
    return work.ours_bytes(config, *spec.formats)  # type: ignore[arg-type]


def figures(row: str, values: Sequence[float], config: TextConfig, spec: SystemSpec, peaks: Peaks) -> dict[str, Any]:
    """Return what is reported of one system in one row: the median, all values, and how near the peak it is.

    decode and batch are bound by bytes: gb_s over the read bandwidth. prefill and matmul by arithmetic: gmac_s over the
    int8 peak. peak_share is None where the peak was not measured.
    """
    median = statistics.median(values)
    found: dict[str, Any] = {"median": median, "values": list(values)}
    if row in _READS:
        texts, context = _READS[row]
        step_bytes = weight_bytes(config, spec) + texts * (work.decode_bytes(config, 0, context))
        return found | _share("gb_s", median / texts * step_bytes / 1e9, peaks.read_gb_s)
    if row in _COMPUTES or row == "matmul":
        tokens = _COMPUTES.get(row, 1)
        macs = work.prefill_macs(config, tokens) / tokens if row in _COMPUTES else work.matmul_macs(config)
        # XLA multiplies bf16 in fp32 or, where the CPU has them, in bf16 instructions, whose peak is not measured.
        peak = None if spec.kind == "bf16" else peaks.int8_gmac_s
        return found | _share("gmac_s", median * macs / 1e9, peak)
    return found


def add_ratios(by_system: dict[str, dict[str, Any]]) -> None:
    """Give every rival in a row `ours_over_it`: our median over its own, ours as COMPARED says."""
    for name, found in by_system.items():
        ours = by_system.get(COMPARED.get(name, ""))
        if ours is not None:
            found["ours_over_it"] = ours["median"] / found["median"]


def median_peaks(seen: Sequence[Peaks]) -> Peaks:
    """Return the medians of peaks that were measured at several times."""
    merged: dict[str, Any] = {}
    for field in fields(Peaks):
        values = [getattr(peaks, field.name) for peaks in seen]
        numbers = [value for value in values if isinstance(value, float)]
        merged[field.name] = statistics.median(numbers) if numbers else values[0]
    return Peaks(**merged)


def _share(name: str, rate: float, peak: float | None) -> dict[str, Any]:
    return {name: rate, "peak_share": rate / peak if peak else None}
