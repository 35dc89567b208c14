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
    parser.add_argument("--shapes", default="270m")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a system in a round")
    parser.add_argument("--ours", action="store_true", help="without PEFT")
    told = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    modules = {"ours": "bench.tune.ours"} | ({} if told.ours else {"peft": "bench.tune.rival"})
    load = {"rank": told.rank}
    turns = Turns(modules, told.dtypes.split(","), rounds=told.rounds, steps=told.steps, load=load)
    try:
        for name in told.shapes.split(","):
            turns.measure(SHAPES[name])
    except KeyboardInterrupt:
        say("interrupted: what follows was measured until then")
    report(turns, told.rank)


def report(turns: Turns, rank: int) -> None:
    """Print the table, the ratios and the JSON object."""
    print(f"{machine.processor().name}, {machine.usable_cores()} cores, {platform.platform()}")
    print(HEADER)
    rows = [turns.row(key) for key in turns.seconds]
    for row in rows:
        print(row_text(row))
    ratios = turns.ratios("peft")
    for name, ratio in ratios.items():
        print(f"{name}: ours / PEFT, each at its best: {ratio:.2f} (target {TARGET})")
    for name, (low, high) in turns.unequal_losses().items():
        print(f"{name}: the first losses differ, {low:.4f} to {high:.4f}: not the same work")
    print(json.dumps({"rows": rows, "ratios": ratios, "rank": rank, "target": TARGET}))


if __name__ == "__main__":
    main()
