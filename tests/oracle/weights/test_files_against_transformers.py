"""Files of transformers open with us, ours load in transformers and in the safetensors library: the same bits."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from gemworks.errors import CheckpointError
from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.convert import convert
from gemworks.weights.names import ours_from_hf
from gemworks.weights.safetensors import SafetensorsFile

TEXT = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 8,
    "max_position_embeddings": 128,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}


def bits(tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def randomized(model, seed=0):
    """`model` in bf16 with every parameter drawn at random, norms too."""
    generator = torch.Generator().manual_seed(seed)
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def text_model(**changes):
    return randomized(Gemma3ForCausalLM(Gemma3TextConfig(**TEXT | changes)))


def multimodal_model():
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**TEXT),
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=95,
        boi_token_index=93,
        eoi_token_index=94,
    )
    return randomized(Gemma3ForConditionalGeneration(config))


def text_state(model) -> dict[str, bytes]:
    """Our name -> bits of every text tensor of a transformers model."""
    state = {ours_from_hf(name): tensor for name, tensor in model.state_dict().items()}
    found = {name: bits(tensor) for name, tensor in state.items() if isinstance(name, str)}
    if model.config.tie_word_embeddings:
        found.pop("head.weight")
    return found


def assert_same_bits(checkpoint, model):
    wanted = text_state(model)
    assert set(checkpoint.entries) == set(wanted)
    for name, one in wanted.items():
        assert checkpoint.read(name).tobytes() == one, name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
def test_a_text_model_saved_by_transformers_opens_bit_equal(tmp_path, tied, shard_size):
    model = text_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors").exists() == (shard_size == "5GB")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config.tied_head == tied
        assert checkpoint.config.global_spec.rope_scale == 8.0
        assert_same_bits(checkpoint, model)


def test_a_multimodal_model_saved_by_transformers_opens_bit_equal(tmp_path):
    model = multimodal_model()
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        published = {entry.published for entry in checkpoint.entries.values()}
        assert all("vision" not in name for name in published)
        assert_same_bits(checkpoint, model)
    stored = SafetensorsFile(tmp_path / "model.safetensors").tensors
    assert len(stored) > len(published), "the vision half is in the file"


@pytest.mark.parametrize("make", [text_model, multimodal_model, lambda: text_model(tie_word_embeddings=False)])
def test_transformers_loads_what_we_save(tmp_path, make):
    """The text half of any model, saved by us, gives transformers the same weights and the same logits as its own."""
    model = make()
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", shard_bytes=100_000)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert text_state(loaded) == text_state(model)
    ids = torch.arange(3, 23)[None]
    reloaded = type(model).from_pretrained(tmp_path / "theirs", dtype=torch.bfloat16)
    with torch.no_grad():
        np.testing.assert_array_equal(loaded(ids).logits.float().numpy(), reloaded(ids).logits.float().numpy())


def test_the_safetensors_library_reads_ours(tmp_path):
    model = text_model()
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours")
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        found = {ours_from_hf(name): bits(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    assert found == text_state(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_we_read_what_the_safetensors_library_writes(tmp_path, dtype):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "scalar": torch.tensor(2.5, dtype=dtype),
        "odd": torch.randn(3, 5, generator=generator).to(dtype),
        "matrix": torch.randn(32, 64, generator=generator).to(dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
        "bytes": torch.arange(7, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"made by": "the library"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert file.metadata == {"made by": "the library"}
    for name, tensor in tensors.items():
        assert bytes(file.raw(name)) == bits(tensor)
        if name != "bytes":
            assert file.array(name).tobytes() == bits(tensor) and file.array(name).shape == tuple(tensor.shape)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_header_is_refused_wherever_the_library_refuses_it(tmp_path, seed):
    """One byte of the header changed at random, 300 times: what the reference implementation refuses, so do we."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "a.safetensors"
    save_file({"one": torch.ones(4, 4), "two": torch.ones(3, dtype=torch.bfloat16)}, path)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(length)] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            with safe_open(path, "np") as file:
                list(file.keys())
        except Exception:
            refused += 1
            with pytest.raises(CheckpointError):
                SafetensorsFile(path)
    assert refused > 100
