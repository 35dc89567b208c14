"""Systems that take turns at training steps, each in a process of its own."""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.train.shapes import Shape
from gemworks.bench.child import Child
from gemworks.errors import BackendError

ROOT = Path(__file__).resolve().parents[1]

Key = tuple[str, str, str]  # shape, system, dtype


class Turns:
    """Times every system on shapes: every second round in the other order, the first step of a process not counted.

    modules: system -> the module that is it ("bench.train.ours"). load: what a process is told beside its shape and
    dtype. `seconds` has one figure a step, `loaded` what each said when it had its model.
    """

    def __init__(self, modules: dict[str, str], dtypes: list[str], *, rounds: int, steps: int, load: dict[str, Any]):
        self.modules, self.rounds, self.steps, self._load = modules, rounds, steps, load
        self.kinds = [(system, dtype) for dtype in dtypes for system in modules]
        self.seconds: dict[Key, list[float]] = {}
        self.loaded: dict[Key, dict[str, Any]] = {}
        self.shapes: dict[str, Shape] = {}
        self.log = Path(tempfile.mkdtemp(prefix="gemworks-bench-")) / "systems.log"

    def measure(self, shape: Shape) -> None:
        """Time every system on a shape. One that fails takes no further part."""
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

    def child(self, system: str) -> Child:
        """Return a new process of a system. Programs are kept: one that is started anew need not compile again."""
        programs = {"JAX_COMPILATION_CACHE_DIR": str(self.log.parent / "programs")}
        changes = {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"} | programs
        return Child([sys.executable, "-m", self.modules[system]], name=system, log=self.log, changes=changes)

    def speed(self, key: Key) -> float:
        """Return the median tokens a second."""
        return self.shapes[key[0]].num_tokens / statistics.median(self.seconds[key])

    def ratios(self, rival: str) -> dict[str, float]:
        """Return ours over the rival by shape, each at its best dtype, where both were measured."""
        found = {}
        for name in self.shapes:
            best = {
                system: max((self.speed(key) for key in self.seconds if key[:2] == (name, system)), default=0.0)
                for system in ("ours", rival)
            }
            if all(best.values()):
                found[name] = round(best["ours"] / best[rival], 3)
        return found

    def unequal_losses(self) -> dict[str, tuple[float, float]]:
        """Return the lowest and highest first loss of shapes where they differ by more than 1 %: not the same work."""
        found = {}
        for name in self.shapes:
            losses = [told["loss"] for key, told in self.loaded.items() if key[0] == name]
            if losses and max(losses) - min(losses) > 0.01 * max(losses):
                found[name] = (min(losses), max(losses))
        return found

    def row(self, key: Key) -> dict[str, Any]:
        """Return what the report says of a system on a shape."""
        seconds, told = self.seconds[key], self.loaded[key]
        return {
            "shape": key[0],
            "system": key[1],
            "dtype": key[2],
            "tokens_per_second": round(self.speed(key), 2),
            "steps": len(seconds),
            "spread": round(max(seconds) / min(seconds), 3),
            "first_loss": round(told["loss"], 5),
            "peak_bytes": told.get("peak_bytes"),
            "how": told.get("how", ""),
        }

    def _turn(self, shape: Shape, kind: tuple[str, str], turn: int, kept: dict[tuple[str, str], Child]) -> None:
        key = shape.name, *kind
        child = kept.pop(kind, None)
        try:
            if child is None:
                child = self.child(kind[0])
                asked = {"do": "load", "shape": shape.to_json(), "dtype": kind[1], **self._load}
                self.loaded[key] = child.ask(asked)
            for _ in range(self.steps):
                self.seconds.setdefault(key, []).append(child.ask({"do": "step"})["seconds"])
        except BaseException:
            if child is not None:
                child.close()
            raise
        if shape.is_alone:
            child.close()
        else:
            kept[kind] = child
        say(f"  round {turn + 1} of {self.rounds}: {' '.join(kind)}: {self.speed(key):,.1f} tokens/s")


def say(text: str) -> None:
    """Progress, to stderr."""
    print(text, file=sys.stderr, flush=True)


def row_text(row: dict[str, Any]) -> str:
    """A row of a report as columns."""
    memory = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
    return (
        f"{row['shape']:<8}{row['system']:<8}{row['dtype']:<10}{row['tokens_per_second']:>10,.1f}"
        f"{row['spread']:>8.2f}{memory:>9}   {row['first_loss']:.4f}, {row['how']}"
    )


HEADER = f"{'shape':<8}{'system':<8}{'dtype':<10}{'tokens/s':>10}{'spread':>8}{'peak GB':>9}   first loss, how"
