"""The released sizes: parameter counts, layer patterns, KV bytes. Numbers are those of the published tables."""

import jax
import jax.numpy as jnp
import pytest

from gemworks.errors import ConfigError
from gemworks.model import costs
from gemworks.model.config import GEMMA3_1B, RELEASED, LayerSpec, TextConfig, five_local_one_global
from gemworks.model.gemma3 import full_batch, skeleton

# size: (parameters, global layers, local layers, window, head_dim, query scale, rows)
PUBLISHED = {
    "270m": (268_098_176, 3, 15, 512, 256, 1 / 16, 262_144),
    "1b": (999_885_952, 4, 22, 512, 256, 1 / 16, 262_144),
    "4b": (3_880_263_168, 5, 29, 1024, 256, 1 / 16, 262_208),
    "12b": (11_766_034_176, 8, 40, 1024, 256, 1 / 16, 262_208),
    "27b": (27_009_346_304, 10, 52, 1024, 128, 0.077151674981, 262_208),
}

# MiB of bf16 keys and values: size: {context: MiB}; the last row keeps every layer whole.
WINDOWED_MIB = {
    "270m": {8192: 31.5, 32768: 103.5},
    "1b": {8192: 43, 32768: 139},
    "4b": {8192: 276, 32768: 756, 131072: 2676},
    "12b": {8192: 832, 32768: 2368, 131072: 8512},
    "27b": {8192: 1056, 32768: 2976, 131072: 10656},
}
WHOLE_MIB_128K = {"4b": 17408, "12b": 49152, "27b": 63488}


@pytest.mark.parametrize("size", RELEASED)
def test_released_size_has_the_published_numbers(size):
    config = RELEASED[size]
    parameters, num_global, num_local, window, head_dim, scale, rows = PUBLISHED[size]
    assert costs.num_parameters(config) == parameters
    assert sum(not spec.is_local for spec in config.layers) == num_global
    assert sum(spec.is_local for spec in config.layers) == num_local
    assert config.local_spec is not None and config.local_spec.window == window
    assert (config.head_dim, config.vocab_size) == (head_dim, rows)
    assert config.query_scale == pytest.approx(scale, rel=1e-10)


@pytest.mark.parametrize("size", RELEASED)
def test_skeleton_has_every_parameter_and_runs_by_shape(size):
    """The real shapes, without allocating them: array sizes add up to the published count, logits are [S, V]."""
    config = RELEASED[size]
    model = skeleton(config, jnp.bfloat16)
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == PUBLISHED[size][0]

    def run(model, ids_T):
        h_TD, _ = model(full_batch(ids_T, config))
        return h_TD, model.logits(h_TD[-1:])

    h_TD, logits = jax.eval_shape(run, model, jax.ShapeDtypeStruct((2048,), jnp.int32))
    assert h_TD.shape == (2048, config.model_dim) and h_TD.dtype == jnp.float32
    assert logits.shape == (1, config.vocab_size) and logits.dtype == jnp.float32


@pytest.mark.parametrize(("size", "context"), [(s, c) for s, row in WINDOWED_MIB.items() for c in row])
def test_kv_bytes_are_the_published_table(size, context):
    assert costs.kv_bytes(RELEASED[size], context) == WINDOWED_MIB[size][context] * 2**20


def test_kv_bytes_of_whole_layers():
    for size, mib in WHOLE_MIB_128K.items():
        assert costs.kv_bytes(RELEASED[size], 131_072, windowed=False) == mib * 2**20


@pytest.mark.parametrize("size", WINDOWED_MIB)
def test_int8_kv_is_half_and_a_scale_of_4_bytes_for_each_head(size):
    config = RELEASED[size]
    half = costs.kv_bytes(config, 32_768) // 2
    assert costs.kv_bytes(config, 32_768, kv="int8") == half + half * 4 // config.head_dim
    assert costs.kv_bytes(config, 32_768, kv="float32") == 4 * half


def test_weight_bytes_by_hand():
    """A model of one layer small enough to count: 2 x 64 x 32 + ... matrices, norms in bf16, blocks of 18 bytes."""
    config = TextConfig(
        vocab_size=10,
        model_dim=32,
        ffw_dim=64,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        query_scale=0.25,
        layers=five_local_one_global(1, window=4),
        max_positions=16,
    )
    q, kv, o, ffw = 32 * 32, 16 * 32, 32 * 32, 3 * 64 * 32
    matrices = q + 2 * kv + o + ffw
    norms = 4 * 32 + 2 * 16 + 32
    assert costs.num_parameters(config) == matrices + norms + 10 * 32
    assert costs.weight_bytes(config, "bf16") == 2 * (matrices + norms + 320)
    assert costs.weight_bytes(config, "int4-b32") == (matrices + 320) // 32 * 18 + 2 * norms
    rows = 32 + 16 + 16 + 32 + 64 + 64 + 32
    assert costs.weight_bytes(config, "int4", embed_format="int8") == matrices // 2 + 4 * rows + 320 + 40 + 2 * norms


def test_pattern_starts_local_and_every_sixth_is_global():
    assert [i for i, spec in enumerate(GEMMA3_1B.layers) if not spec.is_local] == [5, 11, 17, 23]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3, "num_kv_heads": 2}, "num_heads must be a multiple of num_kv_heads, got 3 and 2"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"layers": ()}, "at least one layer"),
        ({"model_dim": 0}, "model_dim must be at least 1, got 0"),
        ({"layers": (LayerSpec(window=0, rope_base=1e4),)}, "window must be at least 1"),
        (
            {"layers": (LayerSpec(window=4, rope_base=1e4), LayerSpec(window=8, rope_base=1e4))},
            "all local layers must share one window",
        ),
    ],
)
def test_impossible_config_is_refused_by_name(change, message):
    fields = {
        "vocab_size": 16,
        "model_dim": 8,
        "ffw_dim": 8,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "query_scale": 0.5,
        "layers": five_local_one_global(1, window=4),
        "max_positions": 16,
    }
    with pytest.raises(ConfigError, match=message):
        TextConfig(**fields | change)
