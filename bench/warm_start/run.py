"""How long does a user wait for the first word, and how much memory does the process take?

    python bench/warm_start/run.py DIR [--quant int4-b32|none] [--embed int8] [--context 8192] [--rounds 5]

DIR holds a model; `gemworks bench make-random` makes one of random weights. One that is stored quantized is run as it
is with `--quant none`. Each round is a process of its own: `gemworks run`, from its start to the first byte of its
answer to a prompt of 16 tokens, then its peak resident memory beyond the packed file and the cache of keys and values.
The first process, which packs and compiles, is reported apart. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gemworks.model.costs import kv_bytes
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.packed_store import packed_of

# Fifteen tokens of the official vocabulary and <bos>.
PROMPT = "Once upon a time there was a small house at the edge of a wood"


def one_start(model: Path, options: list[str], bytecode: str) -> tuple[float, float, int]:
    """Run one process; return seconds to the first byte, processor seconds in all, and its peak resident bytes.

    Its modules' bytecode is kept in the directory `bytecode`, as that of an installed package is.
    """
    command = [sys.executable, "-m", "gemworks", "run", str(model), PROMPT, "--raw", "--max-tokens", "4", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    first_s = time.perf_counter() - started
    while os.read(process.stdout.fileno(), 1 << 16):
        pass
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return first_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quant", default="int4-b32")
    parser.add_argument("--embed", default="int8")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    options = ["--context", str(asked.context), "--temperature", "0"]
    if asked.quant != "none":
        options += ["--quant", asked.quant, "--embed", asked.embed]
    with tempfile.TemporaryDirectory() as bytecode:
        cold_s, _, _ = one_start(asked.model, options, bytecode)
        starts = [one_start(asked.model, options, bytecode) for _ in range(asked.rounds)]
    with open_checkpoint(asked.model) as checkpoint:
        kv = kv_bytes(checkpoint.config, asked.context)
    packed = packed_of(asked.model)[0].num_bytes  # the one used last
    first_s = statistics.median(start[0] for start in starts)
    cpu_s = statistics.median(start[1] for start in starts)
    peak = statistics.median(start[2] for start in starts)
    print(f"first start   {cold_s:.2f} s to the first token, packing and compiling included")
    print(f"warm start    {first_s:.2f} s, median of {asked.rounds}: {', '.join(f'{s[0]:.2f}' for s in starts)}")
    print(f"processor     {cpu_s:.2f} s, four tokens in all")
    print(
        f"peak memory   {peak / 1e6:.0f} MB = packed file {packed / 1e6:.0f} + keys and values {kv / 1e6:.0f} + ",
        end="",
    )
    print(f"{(peak - packed - kv) / 1e6:.0f}")
    report = {
        "bench": "warm_start",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "model": asked.model.name,
        "quant": None if asked.quant == "none" else f"{asked.quant},embed={asked.embed}",
        "context": asked.context,
        "cold_first_s": round(cold_s, 3),
        "warm_first_s": round(first_s, 3),
        "warm_cpu_s": round(cpu_s, 3),
        "warm_first_s_all": [round(start[0], 3) for start in starts],
        "peak_bytes": int(peak),
        "packed_bytes": packed,
        "kv_bytes": kv,
        "over_bytes": int(peak - packed - kv),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
