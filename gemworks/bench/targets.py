"""What the CPU kernels are to reach, by model, and whether a report's figures do."""

from dataclasses import dataclass
from typing import Any, Literal

_MAIN, _PURE, _INT8 = "ours int4-b32+int8", "ours int4-b32", "ours int8-b32"
_LLAMA, _LLAMA_PURE, _LLAMA_Q8 = "llama.cpp q4_0", "llama.cpp q4_0-pure", "llama.cpp q8_0"

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """The figure `row` of `system`, divided by `over` of `rival` if given, must be `at_least` or `at_most` `bounds`.

    `figure` is what of the row is looked at: its median, or its share of a peak.
    """

    row: str
    system: str
    bounds: dict[str, float]  # released size -> bound
    rival: str | None = None
    over: str | None = None  # the rival's row, `row` where it is None
    figure: Literal["median", "peak_share"] = "median"
    is_upper: bool = False  # the bound is the most there may be


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what came of it; `value` is None where something was not measured."""

    text: str
    bound: float
    value: float | None
    is_upper: bool

    @property
    def is_met(self) -> bool | None:
        """Whether the figure is on the right side of the bound; None if not measured."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.is_upper else self.value >= self.bound


TARGETS = (
    Target("decode", _MAIN, {"270m": 2.0, "1b": 1.9, "4b": 1.25}, _LLAMA),
    Target("decode", _PURE, {"270m": 1.8, "1b": 2.2}, _LLAMA_PURE),
    Target("decode", _PURE, {"4b": 1.45}, "llama.cpp q4_0-q6_k"),
    Target("decode", _MAIN, {"270m": 0.75, "1b": 0.88, "4b": 0.90}, figure="peak_share"),
    Target("prefill", _MAIN, {"270m": 3.0, "1b": 4.0, "4b": 4.0}, _LLAMA),
    Target("matmul", _MAIN, {"1b": 0.50, "4b": 0.55}, figure="peak_share"),
    Target("decode", _INT8, {"270m": 1.8, "1b": 1.8}, _LLAMA_Q8),
    Target("prefill", _INT8, {"270m": 3.0, "1b": 3.0}, _LLAMA_Q8),
    Target("decode-8k", _MAIN, {"1b": 0.90, "4b": 0.90}, _MAIN, "decode"),
    Target("prefill-8k", _MAIN, {"1b": 0.80}, _MAIN, "prefill"),
    Target("start", _MAIN, {"270m": 1.5, "1b": 2.0, "4b": 3.0}, is_upper=True),
    Target("memory", _MAIN, dict.fromkeys(("270m", "1b", "4b"), 350 * MB), is_upper=True),
    Target("batch", _MAIN, {"270m": 2.0, "1b": 2.0}, _LLAMA),
    Target("decode", _MAIN, dict.fromkeys(("270m", "1b", "4b"), 1.0), "openvino int4"),
    Target("prefill", _MAIN, dict.fromkeys(("270m", "1b", "4b"), 1.0), "openvino int4"),
)


def verdicts(model: str, rows: dict[str, dict[str, dict[str, Any]]]) -> list[Verdict]:
    """Return what became of each target that `model` has. `rows`: row -> system -> figures, as in the report."""
    return [_verdict(target, target.bounds[model], rows) for target in TARGETS if model in target.bounds]


def _verdict(target: Target, bound: float, rows: dict[str, dict[str, dict[str, Any]]]) -> Verdict:
    def figure(row: str, system: str, name: str) -> float | None:
        return rows.get(row, {}).get(system, {}).get(name)

    value = figure(target.row, target.system, target.figure)
    text = f"{target.row}, {target.system}"
    if target.figure == "peak_share":
        text += ", share of the peak"
    if target.rival is not None:
        other = figure(target.over or target.row, target.rival, "median")
        value = value / other if value is not None and other else None
        text += f", over {target.over}" if target.rival == target.system else f", over {target.rival}"
    return Verdict(text, bound, value, target.is_upper)
