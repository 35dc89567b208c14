"""Small random Gemma 3 models of transformers, as causal and as image-text models, and ours with the same weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import Shape, configs, randomize
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    SiglipVisionConfig,
)

from gemworks.model.gemma3 import build
from gemworks.weights.names import hf_from_ours

VOCAB, IMAGE_ID = 320, 300

# heads, kv heads, head width, model width, layers, window, factor of global layers, query scalar
SHAPES = {
    "1b": Shape(4, 1, 32, 72, 8, 16, 1.0, 32),
    "4b": Shape(8, 4, 16, 64, 12, 8, 8.0, 16),
    "4b, short window": Shape(8, 4, 16, 64, 7, 3, 8.0, 16),
    "12b": Shape(16, 8, 8, 64, 6, 11, 8.0, 8),
    "27b": Shape(8, 4, 8, 96, 8, 5, 8.0, 168),
    "window 1": Shape(4, 2, 16, 48, 6, 1, 1.0, 16),
}


@pytest.fixture
def random_pair():
    """random_pair(shape, with_images=False, seed=0): (their model in eval mode, our model, our config)."""

    def random_pair(shape: str, *, with_images: bool = False, seed: int = 0):
        theirs, ours = configs(SHAPES[shape], VOCAB)
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
        randomize(model, theirs.hidden_size)
        state = model.state_dict()
        arrays = {}

        def leaf(name: str, shape: tuple[int, ...]):
            arrays[name] = state[hf_from_ours(name, "B" if with_images else "C")].numpy()
            assert arrays[name].shape == shape
            return jnp.asarray(np.array(arrays[name]))

        return model, build(ours, leaf), ours

    return random_pair
