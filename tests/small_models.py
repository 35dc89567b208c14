"""Seeded Gemma 3 models small enough to compile in a second, shared by the test groups."""

import jax.numpy as jnp
import numpy as np

from gemworks.model.config import LayerSpec, TextConfig, five_local_one_global
from gemworks.model.gemma3 import Gemma3, build


def small_config(
    *,
    window: int = 8,
    num_layers: int = 7,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    model_dim: int = 48,
    vocab_size: int = 160,
    global_scale: float = 1.0,
    tied_head: bool = True,
    max_positions: int = 512,
    layers: tuple[LayerSpec, ...] | None = None,
) -> TextConfig:
    """Return a shrunken member of the family: five local layers, a global one, a local one."""
    return TextConfig(
        vocab_size=vocab_size,
        model_dim=model_dim,
        ffw_dim=64,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        query_scale=head_dim**-0.5,
        layers=layers or five_local_one_global(num_layers, window=window, global_scale=global_scale),
        max_positions=max_positions,
        tied_head=tied_head,
    )


def random_arrays(config: TextConfig, seed: int = 0, *, spread: float = 0.15) -> dict[str, np.ndarray]:
    """Return fp32 arrays by our names. Spread is wide enough that attention is far from uniform."""
    rng = np.random.default_rng(seed)
    arrays = {}

    def leaf(name: str, shape: tuple[int, ...]) -> np.ndarray:
        arrays[name] = rng.normal(0.0, spread, shape).astype(np.float32)
        return arrays[name]

    build(config, leaf)
    return arrays


def random_model(config: TextConfig, seed: int = 0, *, dtype=jnp.float32) -> Gemma3:
    """Return the model of `random_arrays`, matrices in `dtype`."""
    arrays = random_arrays(config, seed)
    return build(config, lambda name, shape: jnp.asarray(arrays[name], jnp.float32 if len(shape) == 1 else dtype))


def random_ids(config: TextConfig, count: int, seed: int = 0) -> list[int]:
    """Return token ids."""
    return np.random.default_rng(seed + 1000).integers(0, config.vocab_size, count).tolist()
