"""Small random Gemma 3 models of transformers, as causal and as image-text models, and ours with the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from gemworks.model.config import TextConfig, five_local_one_global
from gemworks.model.gemma3 import build
from gemworks.weights.names import hf_from_ours

VOCAB, IMAGE_ID = 320, 300

# name: heads, kv heads, head width, model width, layers, window, factor of global layers, query scalar
SHAPES = {
    "1b": (4, 1, 32, 72, 8, 16, 1.0, 32),
    "4b": (8, 4, 16, 64, 12, 8, 8.0, 16),
    "4b, short window": (8, 4, 16, 64, 7, 3, 8.0, 16),
    "12b": (16, 8, 8, 64, 6, 11, 8.0, 8),
    "27b": (8, 4, 8, 96, 8, 5, 8.0, 168),
    "window 1": (4, 2, 16, 48, 6, 1, 1.0, 16),
}


def configs(shape: str) -> tuple[Gemma3TextConfig, TextConfig]:
    heads, kv_heads, head_dim, dim, layers, window, factor, scalar = SHAPES[shape]
    rope = {"rope_type": "default"} if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    theirs = Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        sliding_window=window,
        max_position_embeddings=512,
        rope_parameters={
            "full_attention": rope | {"rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        attn_implementation="eager",
    )
    ours = TextConfig(
        vocab_size=VOCAB,
        model_dim=dim,
        ffw_dim=2 * dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        query_scale=scalar**-0.5,
        layers=five_local_one_global(layers, window=window, global_scale=factor),
        max_positions=512,
    )
    return theirs, ours


@pytest.fixture
def random_pair():
    """random_pair(shape, with_images=False, seed=0): (their model in eval mode, our model, our config)."""

    def random_pair(shape: str, *, with_images: bool = False, seed: int = 0):
        theirs, ours = configs(shape)
        torch.manual_seed(seed)
        if with_images:
            vision = SiglipVisionConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=8,
                patch_size=4,
                vision_use_head=False,
            )
            whole = Gemma3Config(
                text_config=theirs, vision_config=vision, mm_tokens_per_image=4, image_token_id=IMAGE_ID
            )
            whole._attn_implementation = "eager"
            model = Gemma3ForConditionalGeneration(whole).eval()
        else:
            model = Gemma3ForCausalLM(theirs).eval()
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.3 if name.endswith("norm.weight") else theirs.hidden_size**-0.5)
        state = model.state_dict()
        arrays = {}

        def leaf(name: str, shape: tuple[int, ...]):
            arrays[name] = state[hf_from_ours(name, "B" if with_images else "C")].numpy()
            assert arrays[name].shape == shape
            return jnp.asarray(np.array(arrays[name]))

        return model, build(ours, leaf), ours

    return random_pair
