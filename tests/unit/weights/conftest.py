"""A tiny Gemma 3 and its published files, for the tests of reading and writing them."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gemworks.model.config import TextConfig, five_local_one_global
from gemworks.weights.config_json import json_from_text_config
from gemworks.weights.names import expected_shapes, hf_from_ours
from gemworks.weights.safetensors_write import TensorSource, write_shards

# Every size differs from every other, so that a swapped axis is a wrong shape.
TINY = TextConfig(
    vocab_size=96,
    model_dim=64,
    ffw_dim=160,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    query_scale=32**-0.5,
    layers=five_local_one_global(7, window=8, global_scale=8.0),
    max_positions=128,
)

HEADER_DTYPES = {np.dtype(ml_dtypes.bfloat16): "BF16", np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}


def random_weights(config: TextConfig, *, dtype=ml_dtypes.bfloat16, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in expected_shapes(config).items()}


def write_model(directory: Path, published: dict[str, np.ndarray], config: dict, *, shard_bytes=5_000_000_000) -> Path:
    """A Hugging Face directory with these tensors, under their published names, and this config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = [
        TensorSource(name, HEADER_DTYPES[array.dtype], array.shape, lambda array=array: array)
        for name, array in published.items()
    ]
    write_shards(directory, tensors, shard_bytes=shard_bytes)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


@pytest.fixture
def tiny_config() -> TextConfig:
    return TINY


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    """Random bf16 weights of the tiny model, by our names."""
    return random_weights(TINY)


@pytest.fixture
def save_model(tmp_path, weights):
    """save_model(layout=, dtype=, change=, shard_bytes=, name=) -> directory of the tiny model.

    `change` edits the published tensors in place before they are written; `config` edits config.json.
    """

    def save(*, layout="C", change=None, config=None, shard_bytes=5_000_000_000, name="model") -> Path:
        published = {hf_from_ours(ours, layout): array for ours, array in weights.items()}
        if change is not None:
            change(published)
        data = json_from_text_config(TINY)
        if config is not None:
            config(data)
        return write_model(tmp_path / name, published, data, shard_bytes=shard_bytes)

    return save


@pytest.fixture(scope="session")
def released_configs() -> dict[str, dict]:
    """config.json of every released size, in the form of its repository."""
    return json.loads(Path(__file__).with_name("released_configs.json").read_text(encoding="utf-8"))
