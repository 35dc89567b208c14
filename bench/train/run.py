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
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.train.shapes import SHAPES
from bench.turns import HEADER, Turns, row_text, say
from gemworks import machine

TARGET = 1.5


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
    modules = {"ours": "bench.train.ours"} | ({} if told.ours else {"torch": "bench.train.rival"})
    turns = Turns(modules, told.dtypes.split(","), rounds=told.rounds, steps=told.steps, load={})
    peaks: dict[str, float] = {}
    try:
        peaks = measure_peaks(turns)
        for name in told.shapes.split(","):
            turns.measure(SHAPES[name].changed(told.rows, told.tokens))
    except KeyboardInterrupt:
        say("interrupted: what follows was measured until then")
    report(turns, peaks)


def measure_peaks(turns: Turns) -> dict[str, float]:
    """Return FLOP/s of square products, of both libraries in turns."""
    peaks: dict[str, float] = {}
    children = {system: turns.child(system) for system in turns.modules}
    for _ in range(2):
        for system, dtype in turns.kinds:
            found = children[system].ask({"do": "peak", "dtype": dtype})["flops"]
            name = f"{system} {dtype}"
            peaks[name] = max(peaks.get(name, 0.0), found)
    for child in children.values():
        child.close()
    say("matmul peaks, GFLOP/s: " + ", ".join(f"{k} {v / 1e9:.0f}" for k, v in peaks.items()))
    return peaks


def report(turns: Turns, peaks: dict[str, float]) -> None:
    """Print the table, the ratios and the JSON object."""
    peak = max(peaks.values(), default=0.0)
    print(f"{machine.processor().name}, {machine.usable_cores()} cores, {platform.platform()}")
    print(f"{HEADER}, MFU")
    rows = []
    for key in turns.seconds:
        flops = turns.speed(key) * turns.shapes[key[0]].flops_per_token
        row = turns.row(key) | {"mfu": round(flops / peak, 4) if peak else None}
        print(row_text(row) + ("" if row["mfu"] is None else f", {row['mfu']:.1%}"))
        rows.append(row)
    ratios = turns.ratios("torch")
    for name, ratio in ratios.items():
        print(f"{name}: ours / torch, each at its best: {ratio:.2f} (target {TARGET})")
    for name, (low, high) in turns.unequal_losses().items():
        print(f"{name}: the first losses differ, {low:.4f} to {high:.4f}: not the same work")
    print(json.dumps({"rows": rows, "ratios": ratios, "peaks_flops": peaks, "target": TARGET}))


if __name__ == "__main__":
    main()
