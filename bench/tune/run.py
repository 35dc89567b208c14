"""How fast is a LoRA step, next to transformers with PEFT? Tokens a second, in interleaved rounds.

    python bench/tune/run.py [--shapes 270m,small,1b] [--dtypes bfloat16,float32] [--rank 16] [--rounds 3] [--steps 2]

A step is forward, backward, clipping and AdamW on the adapters of all matrices of the layers, for one batch of random
tokens; both sides have the same weights, rows and precision, and must give the same first loss (B is zero, so it is the
base's). Each round times every system, every second round in the other order; a figure is the median of all steps. The
larger shapes do not fit beside each other: there each round starts its systems anew. Ctrl-C prints what was measured.
The last line is one JSON object. Target: ours / PEFT >= 1.5, each at its best dtype.
"""

import argparse
import json
import platform
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.train.shapes import SHAPES, Shape
from gemworks import machine
from gemworks.bench.child import Child
from gemworks.errors import BackendError

ROOT = Path(__file__).resolve().parents[2]
TARGET = 1.5
MODULES = {"ours": "ours", "peft": "rival"}

Key = tuple[str, str, str]  # shape, system, dtype


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="270m")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a system in a round")
    parser.add_argument("--ours", action="store_true", help="without PEFT")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    systems = ["ours"] if told.ours else ["ours", "peft"]
    bench = Bench(told, [(system, dtype) for dtype in told.dtypes.split(",") for system in systems])
    try:
        for name in told.shapes.split(","):
            bench.measure(SHAPES[name])
    except KeyboardInterrupt:
        say("interrupted: what follows was measured until then")
    bench.report()


class Bench:
    """The systems and what they took: seconds of every step, by shape, system and dtype."""

    def __init__(self, told: argparse.Namespace, kinds: list[tuple[str, str]]):
        self.told, self.kinds = told, kinds
        self.seconds: dict[Key, list[float]] = {}
        self.loaded: dict[Key, dict[str, Any]] = {}
        self.log = Path(tempfile.mkdtemp(prefix="gemworks-bench-tune-")) / "systems.log"

    def measure(self, shape: Shape) -> None:
        """Time every system on a shape."""
        say(f"{shape.name}: {shape.rows} x {shape.tokens} tokens a step, {shape.num_parameters / 1e6:,.0f}M parameters")
        kept: dict[tuple[str, str], Child] = {}
        left = list(self.kinds)
        try:
            for turn in range(self.told.rounds):
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
        if child is None:
            child = self._child(kind[0])
        try:
            if key not in self.loaded or shape.is_alone:
                asked = {"do": "load", "shape": shape.to_json(), "dtype": kind[1], "rank": self.told.rank}
                self.loaded[key] = child.ask(asked)
            for _ in range(self.told.steps):
                self.seconds.setdefault(key, []).append(child.ask({"do": "step"})["seconds"])
        except BaseException:
            child.close()
            raise
        if shape.is_alone:
            child.close()
        else:
            kept[kind] = child
        took = statistics.median(self.seconds[key])
        say(f"  round {turn + 1} of {self.told.rounds}: {' '.join(kind)}: {shape.num_tokens / took:,.1f} tokens/s")

    def _child(self, system: str) -> Child:
        changes = {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", f"bench.tune.{MODULES[system]}"]
        return Child(command, name=system, log=self.log, changes=changes)

    def report(self) -> None:
        """Print the table, the ratios and the JSON object."""
        rows = [self._row(key, seconds) for key, seconds in self.seconds.items()]
        print(f"{machine.processor().name}, {machine.usable_cores()} cores, {platform.platform()}")
        print(f"{'shape':<8}{'system':<8}{'dtype':<10}{'tokens/s':>10}{'spread':>8}{'peak GB':>9}   first loss, how")
        for row in rows:
            print(
                f"{row['shape']:<8}{row['system']:<8}{row['dtype']:<10}{row['tokens_per_second']:>10,.1f}"
                f"{row['spread']:>8.2f}{row['peak_bytes'] / 1e9:>9.2f}   {row['first_loss']:.4f}, {row['how']}"
            )
        ratios = {}
        for name in dict.fromkeys(row["shape"] for row in rows):
            of_shape = [row for row in rows if row["shape"] == name]
            losses = [row["first_loss"] for row in of_shape]
            if max(losses) - min(losses) > 0.01 * max(losses):
                print(f"{name}: the first losses differ, {min(losses):.4f} to {max(losses):.4f}: not the same work")
            best = {row["system"]: 0.0 for row in of_shape}
            for row in of_shape:
                best[row["system"]] = max(best[row["system"]], row["tokens_per_second"])
            if len(best) == len(MODULES):
                ratios[name] = round(best["ours"] / best["peft"], 3)
                print(f"{name}: ours / PEFT, each at its best: {ratios[name]:.2f} (target {TARGET})")
        print(json.dumps({"rows": rows, "ratios": ratios, "rank": self.told.rank, "target": TARGET}))

    def _row(self, key: Key, seconds: list[float]) -> dict[str, Any]:
        shape, loaded = SHAPES[key[0]], self.loaded[key]
        return {
            "shape": key[0],
            "system": key[1],
            "dtype": key[2],
            "tokens_per_second": round(shape.num_tokens / statistics.median(seconds), 2),
            "steps": len(seconds),
            "spread": round(max(seconds) / min(seconds), 3),
            "first_loss": round(loaded["loss"], 5),
            "peak_bytes": loaded["peak_bytes"],
            "how": loaded["how"],
        }


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
