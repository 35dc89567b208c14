"""Rotary position embedding: the angle tables. Two are enough for a step, one local and one global (spec 4.5)."""

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.model.config import LayerSpec
from gemworks.ops.kv import Array


def rope_frequencies(head_dim: int, *, base: float, scale: float = 1.0) -> np.ndarray:
    """Return f_J = base^(-2j / head_dim) / scale, fp32, J = head_dim / 2 (Su et al. 2021, RoFormer, section 3.2.2).

    `scale` is Gemma 3's linear interpolation: 8 on the global layers of 4B and up, so dividing is exact.

    The power is rounded to fp32 before its reciprocal is, as in the published evaluation: one rounding less moves a
    third of the frequencies by an ulp, which is 0.01 radian at position 131,071.
    """
    power_J = (float(base) ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)).astype(np.float32)
    return np.float32(1.0) / power_J / np.float32(scale)


def rope_tables(position_T: Array, head_dim: int, spec: LayerSpec) -> tuple[jax.Array, jax.Array]:
    """Return (cos_TJ, sin_TJ) in fp32 for the positions of a step."""
    frequencies_J = rope_frequencies(head_dim, base=spec.rope_base, scale=spec.rope_scale)
    angles_TJ = jnp.asarray(position_T, jnp.float32)[..., None] * frequencies_J
    return jnp.cos(angles_TJ), jnp.sin(angles_TJ)
