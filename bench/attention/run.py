"""What does attention cost a token, at which fraction of what the machine allows?

    python bench/attention/run.py [--models 1b,4b] [--kv bfloat16,int8] [--backends cpu,xla] [--rounds 5]

One step is the attention of all layers of a kind (local: rings; global: pages) of a model, each with its own cache, as
in a model's step: decode of one token at a context, and prefill of a 512-token chunk that ends there. Decode is
bound by reading keys and values, prefill by fp32 multiply-adds; both peaks are measured in the same process. Backends
take turns. A step's time includes calling its program from Python, a tenth of a millisecond. The last line is one JSON
object.
"""

import argparse
import functools
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gemworks import env, machine, ops
from gemworks.bench import peaks
from gemworks.engine.shapes import PAGE_SIZE
from gemworks.model.config import RELEASED, TextConfig
from gemworks.ops import select
from gemworks.ops.kv import PagePlan, RingPlan, new_page_kv, new_ring_kv

STEPS = ((1, 16), (1, 2048), (1, 8192), (512, 512), (512, 8192))  # columns, context after the step


@dataclass(frozen=True, slots=True)
class Result:
    """One kind of layers at one step. Rates count what must be read and multiplied, not what a kernel wastes."""

    model: str
    kv: str
    kind: str
    columns: int
    context: int
    backend: str
    ms: float
    ms_a_token: float
    gb_s: float
    gfma_s: float


class Layers:
    """All layers of a kind, compiled for one step on one backend."""

    def __init__(self, config: TextConfig, kind: str, columns: int, context: int, kv_dtype: str, backend: str):
        self.window = config.local_spec.window if kind == "local" and config.local_spec else None
        self.layers = sum(layer.is_local == (kind == "local") for layer in config.layers)
        start, count = np.array([context - columns], np.int32), np.array([columns], np.int32)
        heads = (config.num_kv_heads, config.head_dim, kv_dtype)
        if self.window:
            self._plan = RingPlan(start, count, np.zeros(1, np.int32), self.window)
            self._kv = [new_ring_kv(1, self.window, *heads) for _ in range(self.layers)]
        else:
            pages = -(-context // PAGE_SIZE)
            self._plan = PagePlan(start, count, np.arange(1, pages + 1, dtype=np.int32)[None])
            self._kv = [new_page_kv(pages + 1, PAGE_SIZE, *heads) for _ in range(self.layers)]
        rng = np.random.default_rng(0)
        shapes = [(columns, n, config.head_dim) for n in (config.num_heads, config.num_kv_heads, config.num_kv_heads)]
        self._qkv = [jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in shapes]
        attention = functools.partial(ops.attention, scale=config.query_scale)

        def step(kv, q, k, v, plan):
            outs, new_kv = zip(*(attention(q, k, v, plan, layer) for layer in kv), strict=True)
            return outs[-1], list(new_kv)

        with select.force("attention", backend):
            self._program = jax.jit(step, donate_argnums=0).lower(self._kv, *self._qkv, self._plan).compile()

    def seconds(self) -> float:
        """Run one step and return its time."""
        started = time.perf_counter()
        out, self._kv = self._program(self._kv, *self._qkv, self._plan)
        jax.block_until_ready((out, self._kv))
        return time.perf_counter() - started

    def keys(self, columns: int, context: int) -> int:
        """Keys that the step's queries see, summed over columns and layers."""
        seen = (min(p + 1, self.window or p + 1) for p in range(context - columns, context))
        return sum(seen) * self.layers

    def read_bytes(self, context: int) -> int:
        """Bytes of keys and values that the step reads, each once."""
        stored = sum(x.nbytes for x in jax.tree.leaves(self._kv))
        if self.window is None:  # all pages but page 0
            return stored * context // (-(-context // PAGE_SIZE) * PAGE_SIZE + PAGE_SIZE)
        return stored * min(context, self.window) // self.window


def measure(
    name: str, kv: str, kind: str, columns: int, context: int, backends: list[str], rounds: int
) -> list[Result]:
    """Return a Result for each backend."""
    config = RELEASED[name]
    systems = {backend: Layers(config, kind, columns, context, kv, backend) for backend in backends}
    times: dict[str, list[float]] = {backend: [] for backend in backends}
    for _ in range(rounds + 1):  # the first warms up
        for backend, system in systems.items():
            times[backend].append(system.seconds())
    results = []
    for backend, system in systems.items():
        median_s = statistics.median(times[backend][1:])
        multiply_adds = system.keys(columns, context) * config.num_heads * config.head_dim * 2
        rates = system.read_bytes(context) / median_s / 1e9, multiply_adds / median_s / 1e9
        results.append(
            Result(name, kv, kind, columns, context, backend, median_s * 1e3, median_s * 1e3 / columns, *rates)
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="1b,4b")
    parser.add_argument("--kv", default="bfloat16,int8")
    parser.add_argument("--backends", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    backends = asked.backends.split(",")
    threads = env.threads() or machine.threads()
    peak = peaks.measure(threads)
    print(
        f"peaks with {threads} threads: {peak.read_gb_s or 0:.1f} GB/s read, {peak.fma_gmac_s or 0:.0f} GFMA/s in fp32"
    )
    results = []
    for name in asked.models.split(","):
        for kv in asked.kv.split(","):
            for columns, context in STEPS:
                for kind in ("local", "global"):
                    for found in measure(name, kv, kind, columns, context, backends, asked.rounds):
                        results.append(found)
                        share = found.gb_s / (peak.read_gb_s or np.nan), found.gfma_s / (peak.fma_gmac_s or np.nan)
                        print(
                            f"{name:<3} {kv:<8} {kind:<6} {columns:>3} at {context:>5}  {found.backend:<4}"
                            f"{found.ms:9.3f} ms {found.ms_a_token:7.4f} a token "
                            f"{found.gb_s:6.2f} GB/s ({share[0]:4.0%}) {found.gfma_s:6.1f} GFMA/s ({share[1]:4.0%})"
                        )
    report = {"machine": platform.processor() or platform.machine(), "peaks": asdict(peak)}
    print(json.dumps(report | {"results": [asdict(r) for r in results]}))


if __name__ == "__main__":
    main()
