"""transformers' own GGUF loader reads a file of ours, and the logits are those of the model it came from."""

import pytest

from gemworks.weights.checkpoint import open_checkpoint
from gemworks.weights.gguf_write import write_gguf

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("gguf", reason="the gguf package is not installed")


def test_transformers_loads_our_gguf(random_gemma, vocabulary, tmp_path):
    """f32: the norms' 1 comes and goes, so logits agree to float32 rounding. (Its loader drops the factor of 8: 1B.)"""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model, directory = random_gemma("1b")
    with open_checkpoint(directory) as checkpoint:
        write_gguf(checkpoint, vocabulary, tmp_path / "m.gguf", "f32")
    # What from_pretrained(gguf_file=...) does, without accelerate, which it insists on.
    settings = load_gguf_checkpoint(str(tmp_path / "m.gguf"))["config"]
    loaded = Gemma3ForCausalLM(Gemma3TextConfig(**settings)).eval()
    state = load_gguf_checkpoint(str(tmp_path / "m.gguf"), return_tensors=True, model_to_load=loaded)["tensors"]
    assert set(loaded.load_state_dict(state, strict=False).missing_keys) == {"lm_head.weight"}
    loaded.tie_weights()
    ids = torch.tensor([[2, *range(270, 310)]])
    with torch.no_grad():
        wanted, found = model(ids).logits, loaded(ids).logits
    assert (found - wanted).abs().max() < 1e-4 * wanted.std()
