"""How fast is a training step, next to transformers on torch? Tokens a second and MFU, in interleaved rounds.

    python bench/train/run.py [--shapes small,270m,1b] [--dtypes bfloat16,float32] [--rounds 3] [--steps 2] [--ours]

A step is forward, backward, clipping and AdamW on one batch of random tokens; both sides have the same weights, rows
and precision (fp32 masters; bfloat16: products in bf16, as autocast does), and must give the same first loss. Each
round times every system, every second round in the other order; a figure is the median of all steps. The larger shapes
do not fit beside each other: there each round starts its systems anew. MFU is of the largest matmul peak that either
library reached in this run. Ctrl-C prints what was measured. The last line is one JSON object.

On an accelerator the same command measures ours there (target: MFU >= 45 % at the 1B shape), and torch where it has
one.
"""

import argparse
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.train.shapes import SHAPES, Shape
from gemworks import machine
from gemworks.bench.child import Child
from gemworks.errors import BackendError

ROOT = Path(__file__).resolve().parents[2]
TARGET = 1.5
MODULES = {"ours": "ours", "torch": "rival"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a system in a round")
    parser.add_argument("--ours", action="store_true", help="without torch")
    parser.add_argument("--rows", type=int, help="rows of a batch, instead of each shape's")
    parser.add_argument("--tokens", type=int, help="tokens of a row, instead of each shape's")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bench = Bench(told.rounds, told.steps, ["ours"] if told.ours else ["ours", "torch"], told.dtypes.split(","))
    try:
        bench.measure_peaks()
        for name in told.shapes.split(","):
            bench.measure(SHAPES[name].changed(told.rows, told.tokens))
    except KeyboardInterrupt:
        say("interrupted: what follows was measured until then")
    bench.report()


class Bench:
    """The systems and what they took; `seconds` is of (shape, system, dtype), one a step."""

    def __init__(self, rounds: int, steps: int, systems: list[str], dtypes: list[str]):
        self.rounds, self.steps = rounds, steps
        self.kinds = [(system, dtype) for dtype in dtypes for system in systems]
        self.seconds: dict[tuple[str, str, str], list[float]] = {}
        self.told: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.shapes: dict[str, Shape] = {}
        self.peaks: dict[str, float] = {}
        self.log = Path(tempfile.mkdtemp(prefix="gemworks-bench-train-")) / "systems.log"

    def measure_peaks(self) -> None:
        """Square products of both libraries, in turns."""
        systems = sorted({system for system, _ in self.kinds})
        children = {system: self._child(system) for system in systems}
        for _ in range(2):
            for system, dtype in self.kinds:
                found = children[system].ask({"do": "peak", "dtype": dtype})["flops"]
                name = f"{system} {dtype}"
                self.peaks[name] = max(self.peaks.get(name, 0.0), found)
        for child in children.values():
            child.close()
        say("matmul peaks, GFLOP/s: " + ", ".join(f"{k} {v / 1e9:.0f}" for k, v in self.peaks.items()))

    def measure(self, shape: Shape) -> None:
        """Time every system on a shape."""
        self.shapes[shape.name] = shape
        say(f"{shape.name}: {shape.rows} x {shape.tokens} tokens a step, {shape.num_parameters / 1e6:,.0f}M parameters")
        kept: dict[tuple[str, str], Child] = {}
        left = list(self.kinds)
        try:
            for turn in range(self.rounds):
                for kind in list(left) if turn % 2 == 0 else list(reversed(left)):
                    try:
                        self._turn(shape, kind, turn, kept)
                    except BackendError as error:
                        say(f"  {kind[0]} {kind[1]} takes no further part: {error}")
                        left.remove(kind)
        finally:
            for child in kept.values():
                child.close()

    def _turn(self, shape: Shape, kind: tuple[str, str], turn: int, kept: dict[tuple[str, str], Child]) -> None:
        key = shape.name, *kind
        child = kept.pop(kind, None)
        begun = time.perf_counter()
        if child is None:
            child = self._child(kind[0])
            told = child.ask({"do": "load", "shape": shape.to_json(), "dtype": kind[1]})
            self.told[key] = told | {"load_s": time.perf_counter() - begun}
        try:
            for _ in range(self.steps):
                self.seconds.setdefault(key, []).append(child.ask({"do": "step"})["seconds"])
        except BaseException:
            child.close()
            raise
        if shape.is_alone:
            child.close()
        else:
            kept[kind] = child
        took = statistics.median(self.seconds[key])
        say(f"  round {turn + 1} of {self.rounds}: {' '.join(kind)}: {shape.num_tokens / took:,.1f} tokens/s")

    def _child(self, system: str) -> Child:
        # Programs are kept between rounds: a system that is started anew need not compile again.
        programs = {"JAX_COMPILATION_CACHE_DIR": str(self.log.parent / "programs")}
        changes = {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"} | programs
        return Child(
            [sys.executable, "-m", f"bench.train.{MODULES[system]}"], name=system, log=self.log, changes=changes
        )

    def report(self) -> None:
        """Print the table, the ratios and the JSON object."""
        peak = max(self.peaks.values(), default=0.0)
        rows = []
        for (name, system, dtype), seconds in self.seconds.items():
            shape, told = self.shapes[name], self.told[name, system, dtype]
            speed = shape.num_tokens / statistics.median(seconds)
            rows.append(
                {
                    "shape": name,
                    "system": system,
                    "dtype": dtype,
                    "tokens_per_second": round(speed, 2),
                    "mfu": round(speed * shape.flops_per_token / peak, 4) if peak else None,
                    "steps": len(seconds),
                    "spread": round(max(seconds) / min(seconds), 3),
                    "first_loss": round(told["loss"], 5),
                    "peak_bytes": told.get("peak_bytes"),
                    "how": told.get("how", ""),
                }
            )
        print(f"{machine.processor().name}, {machine.usable_cores()} cores, {platform.platform()}")
        print(f"{'shape':<8}{'system':<8}{'dtype':<10}{'tokens/s':>10}{'MFU':>8}{'spread':>8}   first loss, how")
        for row in rows:
            mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
            print(
                f"{row['shape']:<8}{row['system']:<8}{row['dtype']:<10}{row['tokens_per_second']:>10,.1f}{mfu:>8}"
                f"{row['spread']:>8.2f}   {row['first_loss']:.4f}, {row['how']}"
            )
        ratios = dict(_ratios(rows))
        for name, ratio in ratios.items():
            print(f"{name}: ours / torch, each at its best: {ratio:.2f} (target {TARGET})")
        for name, (low, high) in _losses(rows).items():
            if high - low > 0.01 * high:
                print(f"{name}: the first losses differ, {low:.4f} to {high:.4f}: not the same work")
        print(json.dumps({"rows": rows, "ratios": ratios, "peaks_flops": self.peaks, "target": TARGET}))


def _ratios(rows: list[dict[str, Any]]) -> list[tuple[str, float]]:
    found = []
    for name in dict.fromkeys(row["shape"] for row in rows):
        best = {
            system: max(r["tokens_per_second"] for r in rows if r["shape"] == name and r["system"] == system)
            for system in {r["system"] for r in rows if r["shape"] == name}
        }
        if len(best) == 2:
            found.append((name, round(best["ours"] / best["torch"], 3)))
    return found


def _losses(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["shape"], []).append(row["first_loss"])
    return {name: (min(losses), max(losses)) for name, losses in found.items()}


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
