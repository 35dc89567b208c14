"""Small random Gemma 3 models of transformers, saved as directories, and a vocabulary that llama.cpp accepts."""

import string

import pytest

from gemworks.weights.checkpoint import Vocabulary

# 8 control tokens, 256 bytes (llama.cpp wants them, and a newline), letters and pairs of letters: 512, a piece for
# every row, because a runtime may refuse to sample a row that has none.
_CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "[multimodal]", "<start_of_turn>", "<end_of_turn>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_LETTERS = ["\n", "\u2581", *string.ascii_lowercase]
_PAIRS = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase][:220]


@pytest.fixture(scope="session")
def vocabulary():
    types = [3, 3, 3, 2, 3, 3, 3, 3] + [6] * 256 + [1] * 248
    scores = [0.0] * 264 + [-float(rank) for rank in range(248)]
    return Vocabulary([*_CONTROL, *_BYTES, *_LETTERS, *_PAIRS], scores, types)


# Shape families of the released sizes, scaled down. Rows are multiples of 256, as K-quants need.
SHAPES = {
    "1b": {"num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 1},
    "4b": {"num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2, "factor": 8.0},
    # 62 layers make llama.cpp derive the scale from the width: 256 // 2, while the head has 256.
    "27b": {
        "num_hidden_layers": 62,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 128,
        "factor": 8.0,
    },
}


def _spread(name: str) -> tuple[float, float]:
    """Mean and standard deviation of a parameter, such that greedy answers wander and seldom meet a tie."""
    if "post_feedforward_layernorm" in name:
        return -0.9, 0.05  # llama.cpp's GELU is rounded to half precision: keep its part of the sum small
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 0.5, 0.2  # attention that picks a few tokens, not the mean of all
    if name.endswith("norm.weight"):
        return 0.0, 0.3
    if "embed_tokens" in name:
        return 0.0, 0.02  # the head is tied: a token with a large embedding repeats itself for ever
    return 0.0, 0.05


@pytest.fixture
def random_gemma(tmp_path):
    """random_gemma(shape, seed=0): (transformers model in float32, directory it was saved to)."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    def random_gemma(shape: str, seed: int = 0):
        fields = dict(SHAPES[shape])
        factor = fields.pop("factor", None)
        rope = {"rope_type": "linear", "factor": factor} if factor else {"rope_type": "default"}
        config = Gemma3TextConfig(
            vocab_size=512,
            hidden_size=256,
            intermediate_size=512,
            head_dim=256,
            sliding_window=16,
            max_position_embeddings=512,
            rope_parameters={
                "full_attention": {**rope, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            **{"query_pre_attn_scalar": 256, **fields},
        )
        torch.manual_seed(seed)
        model = Gemma3ForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(*_spread(name))
        directory = tmp_path / f"{shape}-{seed}"
        model.save_pretrained(directory)
        return model, directory

    return random_gemma
