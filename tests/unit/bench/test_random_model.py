"""Models of random numbers: the same each time, whole, and of the kind that a network can run."""

import json
import string

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small_models import small_config

from gemworks.bench import random_model
from gemworks.bench.random_model import config_of, draw, make_random, write_gguf
from gemworks.errors import ConfigError, StorageError
from gemworks.model.config import RELEASED
from gemworks.model.gemma3 import full_batch
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.load import load_model
from gemworks.weights.names import expected_shapes


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
    rows = [(name, -1000.0, 2 if name == "<unk>" else 3) for name in names]
    rows += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    rows += [(letter, -float(i), 1) for i, letter in enumerate(string.ascii_letters)]
    Tokenizer.from_vocabulary(*map(list, zip(*rows, strict=True))).save(folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_files_and_another_gives_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_random(small_config(), tmp_path / name, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a["model.safetensors"] != c["model.safetensors"]
    assert a["config.json"] == c["config.json"]


def test_a_tensor_depends_on_its_name_and_not_on_the_model_around_it():
    [first] = draw("layers.0.attn.q.weight", (64, 48), 0)
    [again] = draw("layers.0.attn.q.weight", (64, 48), 0)
    [other] = draw("layers.1.attn.q.weight", (64, 48), 0)
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_matrices_come_in_blocks_of_at_most_four_megabytes():
    """1B's table is 604 MB in bf16: whole, it would be twice that while it is rounded."""
    blocks = draw("embed.weight", (RELEASED["1b"].vocab_size, RELEASED["1b"].model_dim), 0)
    sizes = {next(blocks).shape for _ in range(3)}
    assert sizes == {(910, 1152)}
    assert 910 * 1152 * 4 <= 4 << 20


def test_spreads_are_those_of_the_family():
    matrix = np.concatenate([block.astype(np.float32) for block in draw("layers.0.ffw.up.weight", (4000, 640), 3)])
    [gain] = draw("final_norm.scale", (5000,), 3)
    assert matrix.shape == (4000, 640)
    assert matrix.std() == pytest.approx(0.02, rel=0.01)
    assert abs(matrix.mean()) < 1e-4
    assert np.abs(gain.astype(np.float32)).max() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_it_opens_as_a_whole_checkpoint_and_keeps_activations_finite(tmp_path, shard_bytes):
    """In one file or in shards with their index; 60 layers deep, in bf16."""
    config = small_config(num_layers=60)
    make_random(config, tmp_path / "model", shard_bytes=shard_bytes)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > (1 if shard_bytes == 20_000 else 0)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.config == config
        assert {entry.dtype for entry in checkpoint.entries.values()} == {"BF16"}
        assert checkpoint.generation.eos_ids == (1, 106)
        model = load_model(checkpoint)
    h_TD, _ = model(full_batch(jnp.arange(3, 40), config))
    assert bool(jnp.isfinite(h_TD).all())
    assert 0.5 < float(jnp.sqrt((h_TD**2).mean())) < 2


def test_the_tokenizer_goes_with_it_and_into_the_gguf_file(tmp_path, tokenizer_folder):
    make_random(small_config(vocab_size=330), tmp_path / "model", tokenizer=tokenizer_folder)
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (tokenizer_folder / "tokenizer.json").read_bytes()
    write_gguf(tmp_path / "model", "bf16", tmp_path / "model-bf16.gguf")
    with open_checkpoint(tmp_path / "model-bf16.gguf") as gguf, open_checkpoint(tmp_path / "model") as original:
        vocabulary = gguf.vocabulary()
        assert vocabulary is not None and len(vocabulary.pieces) == 330
        for name in expected_shapes(original.config):
            np.testing.assert_array_equal(gguf.read(name).astype(np.float32), original.read(name).astype(np.float32))


def test_an_llm_answers_with_it(tmp_path, tokenizer_folder):
    from gemworks import LLM

    make_random(small_config(vocab_size=330), tmp_path / "model", tokenizer=tokenizer_folder)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" or config["dtype"] == "bfloat16"
    answer = LLM(tmp_path / "model").generate([2, 10, 11], temperature=0.0, max_tokens=4)
    assert 1 <= len(answer.token_ids) <= 4


def test_an_unknown_size_is_refused():
    with pytest.raises(ConfigError, match='a size must be one of 270m, 1b, 4b, 12b, 27b, got "2b"'):
        config_of("2b")


def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="has neither"):
        make_random(small_config(), tmp_path / "model", tokenizer=tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_broken_write_leaves_nothing(tmp_path, monkeypatch):
    def draw_until_the_disk_is_full(name, shape, seed):
        if name == "final_norm.scale":
            raise OSError(28, "No space left on device")
        yield np.zeros(shape, ml_dtypes.bfloat16)

    monkeypatch.setattr(random_model, "draw", draw_until_the_disk_is_full)
    with pytest.raises(StorageError):
        make_random(small_config(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
