"""What is measured: each row's prompt and answer, who takes part, and what its figure is divided by.

decode    64 tokens after one token            every system        tokens/s; bytes of weights and KV a second
prefill   a prompt of 512                      every system        tokens/s; multiply-adds a second
batch     8 texts of 128, 32 tokens each       all but OpenVINO    tokens/s in all
long      a prompt of 8192, then 32 tokens     ours, int8 table    two rows: prefill-8k, decode-8k
matmul    the blocks at 512, no attention      ours, int8 table    multiply-adds a second
start     a fresh process, a prompt of 16      ours, int8 table    seconds to the first token
memory    a fresh process, 512 and 32 tokens   ours, int8 table    peak memory over weights and KV
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemworks.bench.system import SystemSpec
from gemworks.model.config import TextConfig

DECODE_TOKENS, PREFILL_TOKENS = 64, 512
BATCH_TEXTS, BATCH_PROMPT, BATCH_TOKENS = 8, 128, 32
LONG_PROMPT, LONG_TOKENS = 8192, 32
START_PROMPT, START_TOKENS = 16, 1
MEMORY_PROMPT, MEMORY_TOKENS = 512, 32

SHORT_CONTEXT = 1024
LONG_CONTEXT = LONG_PROMPT + 256

# The format whose decode, prefill, start and memory the targets are about.
MAIN_KIND = "int4-b32+int8"
WHATS = ("decode", "prefill", "batch", "long", "matmul", "start", "memory")

_BOS = 2
# Ordinary pieces of the official vocabulary, no control tokens.
_IDS = (300, 200_000)


@dataclass(frozen=True, slots=True)
class Row:
    """Something to measure on a worker: `measure(worker, round)` gives its figures by name."""

    what: str
    measure: Callable[[Any, int], dict[str, float]]
    takes: Callable[[SystemSpec], bool]


def prompt(count: int, seed: int, config: TextConfig) -> list[int]:
    """Return <bos> and random ordinary tokens, `count` in all."""
    low, high = (min(bound, config.vocab_size // 2 * (i + 1)) for i, bound in enumerate(_IDS))
    drawn = np.random.default_rng(seed).integers(min(low, high - 1), high, count - 1)
    return [_BOS, *drawn.tolist()]


def rows(config: TextConfig, whats: tuple[str, ...]) -> list[Row]:
    """Return the rows that workers measure, among `whats` (start and memory are processes: starts.py)."""

    def decode(worker, round: int) -> dict[str, float]:
        worker.prepare(context=SHORT_CONTEXT, sequences=1)
        worker.prefill(ids=[_BOS])
        return {"decode": DECODE_TOKENS / worker.decode(count=DECODE_TOKENS)}

    def prefill(worker, round: int) -> dict[str, float]:
        worker.prepare(context=SHORT_CONTEXT, sequences=1)
        return {"prefill": PREFILL_TOKENS / worker.prefill(ids=prompt(PREFILL_TOKENS, round, config))}

    def batch(worker, round: int) -> dict[str, float]:
        texts = [prompt(BATCH_PROMPT, 100 * round + i, config) for i in range(BATCH_TEXTS)]
        return {"batch": BATCH_TEXTS * BATCH_TOKENS / worker.batch(prompts=texts, count=BATCH_TOKENS)}

    def long(worker, round: int) -> dict[str, float]:
        worker.prepare(context=LONG_CONTEXT, sequences=1)
        prefill_s = worker.prefill(ids=prompt(LONG_PROMPT, round, config))
        return {"prefill-8k": LONG_PROMPT / prefill_s, "decode-8k": LONG_TOKENS / worker.decode(count=LONG_TOKENS)}

    def matmul(worker, round: int) -> dict[str, float]:
        return {"matmul": PREFILL_TOKENS / worker.matmuls(tokens=PREFILL_TOKENS)}

    all_rows = (
        Row("decode", decode, lambda spec: True),
        Row("prefill", prefill, lambda spec: True),
        Row("batch", batch, lambda spec: spec.engine != "openvino" and _is_first_of_its_engine(spec)),
        Row("matmul", matmul, is_main),
        Row("long", long, is_main),
    )
    return [row for row in all_rows if row.what in whats]


def is_main(spec: SystemSpec) -> bool:
    """True for ours in the format the targets are about."""
    return spec.engine == "ours" and spec.kind == MAIN_KIND


def _is_first_of_its_engine(spec: SystemSpec) -> bool:
    return spec.kind in (MAIN_KIND, "bf16", "q4_0")
