"""What a step costs in operations, and what this machine can do in a second: the two halves of the model FLOPs
utilization (MFU) of PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).

Recomputed layers are not counted: MFU is about the model's work, not the machine's.
"""

import time

import jax
import jax.numpy as jnp

from gemworks.model.config import TextConfig
from gemworks.model.costs import matrix_shapes


def flops_per_token(config: TextConfig, tokens: int, *, is_frozen: bool = False) -> float:
    """Operations a token of a row of `tokens` costs, forward and backward: 6 a weight, and attention's two products.

    4 a weight where it is frozen and only passes the gradient on; an adapter's own, a percent of them, are not counted.
    A query of a layer is counted with the keys it may see: on average half the row, or its window.
    """
    weights = sum(rows * cols for rows, cols in matrix_shapes(config)) + config.vocab_size * config.model_dim
    keys = sum(min(tokens / 2, spec.window or tokens) for spec in config.layers)
    return (4 if is_frozen else 6) * weights + 12 * config.num_heads * config.head_dim * keys


def matmul_peak(dtype: str, *, size: int | None = None, seconds: float = 0.5) -> float:
    """Return the operations a second of one device in square products of `dtype`, measured: the best of several.

    1,024 rows fill a CPU's cores; an accelerator's need 8,192.
    """
    size = size or (1024 if jax.default_backend() == "cpu" else 8192)
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(dtype))
    product(a, a).block_until_ready()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
