"""RoPE: the published frequencies, and angles that stay exact at the last position of the context."""

import jax
import numpy as np
import pytest

from gemworks.model.config import GEMMA3_4B, GEMMA3_27B
from gemworks.model.rope import rope_frequencies, rope_tables

# base, head_dim, scale -> f_0, f_1, f_2, f_{d/4}, f_{d/2 - 1}
PUBLISHED = {
    (1e4, 256, 1.0): (1, 0.93057204, 0.86596432, 0.01, 1.0746078e-4),
    (1e6, 256, 1.0): (1, 0.89768713, 0.80584219, 0.001, 1.1139739e-6),
    (1e6, 256, 8.0): (0.125, 0.11221089, 0.10073027, 1.25e-4, 1.3924673e-7),
    (1e4, 128, 1.0): (1, 0.86596432, 0.74989421, 0.01, 1.154782e-4),
    (1e6, 128, 8.0): (0.125, 0.10073027, 0.081172704, 1.25e-4, 1.5511722e-7),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_frequencies_are_the_published_ones(case):
    base, dim, scale = case
    f = rope_frequencies(dim, base=base, scale=scale)
    np.testing.assert_allclose([f[0], f[1], f[2], f[dim // 4], f[-1]], PUBLISHED[case], rtol=2e-7)


@pytest.mark.parametrize("spec", [GEMMA3_4B.local_spec, GEMMA3_4B.global_spec, GEMMA3_27B.global_spec])
def test_angles_are_exact_up_to_the_last_position(spec):
    """XLA's cos and sin reduce their argument well enough: 1e-7 off numpy's in float64 at 131,071 radians."""
    position_T = np.array([0, 1, 511, 512, 32_767, 99_999, 131_070, 131_071], np.int32)
    angles = position_T[:, None].astype(np.float32) * rope_frequencies(256, base=spec.rope_base, scale=spec.rope_scale)
    cos, sin = jax.jit(lambda p: rope_tables(p, 256, spec))(position_T)
    np.testing.assert_allclose(cos, np.cos(angles.astype(np.float64)), atol=1e-7)
    np.testing.assert_allclose(sin, np.sin(angles.astype(np.float64)), atol=1e-7)
