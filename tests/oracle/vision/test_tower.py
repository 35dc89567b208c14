"""Tower, pool and projector against transformers' Gemma3Model on the same random weights, on CPU."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Gemma3Config, Gemma3Model, SiglipVisionConfig, SiglipVisionModel

from gemworks.model import siglip
from gemworks.model.multimodal import Vision, average_pool, build_vision, encode
from gemworks.model.vision_config import SIGLIP_SO400M_896, VisionConfig
from gemworks.ops.xla import tower as xla_tower
from gemworks.weights.names import hf_from_vision


@dataclass(frozen=True)
class Case:
    image: int
    patch: int
    dim: int
    ffw: int
    layers: int
    heads: int
    tokens: int
    text_dim: int
    eps: float = 1e-6


FAMILY = {
    "16 patches to 4": Case(56, 14, 32, 48, 3, 4, 4, 24),
    "64 patches, no pooling": Case(64, 8, 24, 56, 2, 3, 64, 40),
    "pool of 4": Case(112, 7, 72, 160, 2, 1, 16, 32),
    "heads of 72": Case(84, 14, 144, 270, 4, 2, 9, 64),
    "one token": Case(32, 4, 16, 20, 1, 8, 1, 8),
    "wide eps": Case(48, 6, 40, 64, 5, 5, 16, 48, eps=1e-2),
    "more patches than a block of queries": Case(72, 4, 16, 32, 2, 2, 81, 24),
}


def their_config(case: Case) -> Gemma3Config:
    text = dict(vocab_size=16, hidden_size=case.text_dim, intermediate_size=8, num_hidden_layers=1, head_dim=2)
    vision = dict(
        hidden_size=case.dim,
        intermediate_size=case.ffw,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        image_size=case.image,
        patch_size=case.patch,
        layer_norm_eps=case.eps,
        vision_use_head=False,
    )
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=case.tokens)


def our_config(case: Case) -> VisionConfig:
    """Written out, not parsed: the parser has tests of its own."""
    return VisionConfig(
        image_size=case.image,
        patch_size=case.patch,
        model_dim=case.dim,
        ffw_dim=case.ffw,
        num_layers=case.layers,
        num_heads=case.heads,
        tokens_per_image=case.tokens,
        norm_eps=case.eps,
    )


def randomize(model: torch.nn.Module, seed: int, spread: float = 0.2) -> None:
    """Weights wide enough that attention is far from uniform, and biases that are not zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = name.endswith(("layer_norm1.weight", "layer_norm2.weight", "post_layernorm.weight"))
            parameter.normal_(1.0 if is_gain else 0.0, spread)


def reference(case: Case, seed: int) -> Gemma3Model:
    torch.manual_seed(seed)
    model = Gemma3Model(their_config(case)).eval()
    randomize(model, seed)
    return model


def ours_with_their_weights(config: VisionConfig, text_dim: int, model: torch.nn.Module, dtype=jnp.float32) -> Vision:
    """Every array by its published name; transformers 5 leaves `vision_model.` out in memory."""
    theirs = {name.replace("vision_model.", ""): p.detach() for name, p in model.named_parameters()}

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        published = hf_from_vision(name, "A").replace("vision_model.", "")
        array = theirs[published].float().numpy().reshape(shape)
        return jnp.asarray(array, dtype if len(shape) == 2 else jnp.float32)

    return build_vision(config, text_dim, leaf)


def some_pixels(case: Case, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, case.image, case.image)).astype(np.float32)


def their_features(model: Gemma3Model, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (the tower's last hidden state, the projector's soft tokens)."""
    with torch.no_grad():
        weights_dtype = next(model.parameters()).dtype
        out = model.get_image_features(torch.tensor(pixels).to(weights_dtype), return_dict=True)
    return out.last_hidden_state.float().numpy(), out.pooler_output.float().numpy()


@pytest.mark.parametrize("case", FAMILY.values(), ids=FAMILY)
@pytest.mark.parametrize("seed", [0, 1])
def test_soft_tokens_are_theirs(case, seed):
    model = reference(case, seed)
    pixels = some_pixels(case, 2, seed)
    hidden, soft = their_features(model, pixels)
    ours = ours_with_their_weights(our_config(case), case.text_dim, model)
    assert np.abs(np.asarray(ours.tower(jnp.asarray(pixels[0]))) - hidden[0]).max() <= 2e-4
    got = encode(ours, iter(pixels))
    assert got.shape == (2, case.tokens, case.text_dim) and got.dtype == np.float32
    assert np.abs(soft).max() > 0.5, "soft tokens too small to tell anything"
    assert np.abs(got - soft).max() <= 2e-4


@pytest.mark.parametrize("case", FAMILY.values(), ids=FAMILY)
def test_bf16_is_as_near_to_fp32_as_theirs(case):
    """Our bf16 differs from their fp32 by at most what their own bf16 does, all on weights that bf16 holds."""
    model = reference(case, 7).to(torch.bfloat16)
    pixels = some_pixels(case, 2, 7)
    _, theirs = their_features(model, pixels)
    ours = encode(ours_with_their_weights(our_config(case), case.text_dim, model, jnp.bfloat16), pixels)
    _, exact = their_features(model.float(), pixels)
    their_error, our_error = (np.sqrt(((x - exact) ** 2).mean()) for x in (theirs, ours))
    assert our_error <= their_error, f"ours {our_error:.2e}, theirs {their_error:.2e}"


def test_the_pool_averages_neighbours_of_both_directions():
    grid = np.arange(36, dtype=np.float32).reshape(36, 1)
    pooled = torch.nn.AvgPool2d(3)(torch.tensor(grid.reshape(1, 1, 6, 6)))
    assert np.array_equal(np.asarray(average_pool(jnp.asarray(grid), 3)).ravel(), pooled.numpy().ravel())


@pytest.mark.parametrize("size", [1, 5, 16, 63, 64, 100])
def test_blocks_of_queries_change_nothing(size, monkeypatch):
    """Whole, even and uneven blocks give what one block gives."""
    q, k, v = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 64, 8)), jnp.float32) for i in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(*(torch.tensor(np.asarray(x)) for x in (q, k, v)))
    monkeypatch.setattr(xla_tower, "QUERY_BLOCK", size)
    assert np.abs(np.asarray(xla_tower.attend_all(q, k, v, scale=8**-0.5)) - expected.numpy()).max() <= 1e-5


def photograph(width: int, height: int, seed: int) -> np.ndarray:
    """A drawn scene with smooth light, edges, texture and noise, prepared as a photograph is."""
    from PIL import Image, ImageDraw

    from gemworks.media import prepare_picture, tower_input

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = np.stack([np.sin(x / rng.uniform(40, 300) + i) + np.cos(y / rng.uniform(40, 300)) for i in range(3)], -1)
    image = Image.fromarray(np.uint8(np.clip(127 + 60 * light + rng.normal(0, 12, light.shape), 0, 255)))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        left, top = rng.integers(0, width), rng.integers(0, height)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        draw.ellipse((left, top, left + int(rng.integers(5, 200)), top + int(rng.integers(5, 200))), fill=colour)
    return tower_input(prepare_picture(image).tiles)[0]


@pytest.mark.slow
def test_real_shape_tower_on_three_photographs():
    """27 layers of 1152, 4,096 patches of 896 x 896 pixels, three pictures of different aspect (five minutes)."""
    config = SIGLIP_SO400M_896
    theirs = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=896,
        patch_size=14,
        vision_use_head=False,
    )
    model = SiglipVisionModel(theirs).eval()
    randomize(model, 5, spread=0.02)
    arrays = {name.replace("vision_model.", ""): p.detach().numpy() for name, p in model.named_parameters()}

    def leaf(name: str, shape: tuple[int, ...]) -> jax.Array:
        published = hf_from_vision(name, "A").removeprefix("vision_tower.vision_model.")
        return jax.device_put(arrays[published].reshape(shape), may_alias=True)  # 1.7 GB once, not twice

    tower = siglip.build_siglip(config, leaf)
    for seed, (width, height) in enumerate([(1600, 1200), (700, 1300), (640, 640)]):
        pixels = photograph(width, height, seed)
        with torch.no_grad():
            expected = model(torch.tensor(pixels[None])).last_hidden_state[0].numpy()
        got = np.asarray(tower(jnp.asarray(pixels)))
        assert np.abs(expected).max() > 0.5
        assert np.abs(got - expected).max() <= 1e-3
