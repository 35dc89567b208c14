"""The vision tower and projector against the same arithmetic written out in numpy, and their shapes at full size."""

from math import erf, prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks import ops
from gemworks.errors import ConfigError
from gemworks.model import siglip
from gemworks.model.multimodal import average_pool, build_vision, encode
from gemworks.model.vision_config import SIGLIP_SO400M_896, VisionConfig
from gemworks.ops import select
from gemworks.ops.tower import Biased, Normed, TowerLayer
from gemworks.ops.xla import tower as xla_tower

SMALL = VisionConfig(
    image_size=24, patch_size=4, model_dim=12, ffw_dim=20, num_layers=2, num_heads=3, tokens_per_image=9, norm_eps=1e-3
)
TEXT_DIM = 10


def small_vision(dtype=jnp.float32):
    """Return (the module, its arrays by name)."""
    rng = np.random.default_rng(0)
    arrays = {}

    def leaf(name, shape):
        arrays[name] = rng.normal(1.0 if name.endswith("norm.weight") else 0.0, 0.4, shape).astype(np.float32)
        return jnp.asarray(arrays[name], dtype if len(shape) == 2 else jnp.float32)

    return build_vision(SMALL, TEXT_DIM, leaf), arrays


def written_out(arrays, pixels_CYX) -> np.ndarray:
    """Soft tokens of one image in float64, patch by patch, query by query."""
    array = {name: value.astype(np.float64) for name, value in arrays.items()}
    side, size, D = SMALL.patches_per_side, SMALL.patch_size, SMALL.model_dim

    def norm(x, at):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(x.var(-1, keepdims=True) + SMALL.norm_eps)
        return scaled * array[f"{at}.weight"] + array[f"{at}.bias"]

    def linear(x, at):
        return x @ array[f"{at}.weight"].T + array[f"{at}.bias"]

    x = np.empty((side * side, D))
    for row in range(side):
        for column in range(side):
            patch = pixels_CYX[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            x[row * side + column] = linear(patch.reshape(-1).astype(np.float64), "vision.patch")
    x = x + array["vision.position"]
    H = SMALL.head_dim
    for i in range(SMALL.num_layers):
        at = f"vision.layers.{i}"
        q, k, v = (linear(norm(x, f"{at}.attn_norm"), f"{at}.attn.{one}") for one in "qkv")
        out = np.empty_like(x)
        for n in range(SMALL.num_heads):
            head = slice(n * H, (n + 1) * H)
            for p in range(len(x)):
                weights = np.exp(k[:, head] @ q[p, head] / np.sqrt(H))
                out[p, head] = weights @ v[:, head] / weights.sum()
        x = x + linear(out, f"{at}.attn.o")
        up = linear(norm(x, f"{at}.ffw_norm"), f"{at}.ffw.up")
        x = x + linear(0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3))), f"{at}.ffw.down")
    h = norm(x, "vision.final_norm").reshape(side, side, D)
    pooled = np.array([h[r : r + 2, c : c + 2].mean((0, 1)) for r in range(0, side, 2) for c in range(0, side, 2)])
    rms = np.sqrt((pooled**2).mean(-1, keepdims=True) + SMALL.norm_eps)
    return pooled / rms * (1 + array["projector.norm.scale"]) @ array["projector.weight"]


def some_pixels(seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (3, 24, 24)).astype(np.float32)


def test_soft_tokens_are_the_written_out_ones():
    vision, arrays = small_vision()
    images = [some_pixels(1), some_pixels(2)]
    got = encode(vision, iter(images))
    assert got.shape == (2, 9, TEXT_DIM)
    for soft, pixels in zip(got, images, strict=True):
        assert np.abs(soft - written_out(arrays, pixels)).max() < 1e-5


def test_weights_in_bf16_are_near():
    exact, rounded = (
        np.asarray(small_vision(dtype)[0](jnp.asarray(some_pixels()))) for dtype in ("float32", "bfloat16")
    )
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-5 < error < 5e-2


def test_it_traces_inside_a_callers_jit():
    vision, _ = small_vision()
    pixels = jnp.asarray(some_pixels())
    inside = jax.jit(lambda vision, pixels: vision(pixels))(vision, pixels)
    assert np.abs(np.asarray(inside - vision(pixels))).max() < 1e-5


def test_gelu_is_the_tanh_form():
    """The exact form differs by up to 4.7e-4, which no test of random weights would tell from rounding."""
    x = 2.0
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    exact = 0.5 * x * (1 + erf(x / np.sqrt(2)))
    nothing, same = Biased(jnp.zeros((1, 1)), jnp.zeros(1)), Biased(jnp.eye(1), jnp.zeros(1))
    gives_x = Normed(jnp.ones(1), jnp.full(1, x))  # of one number a row, the norm is its bias
    layer = TowerLayer(attn_norm=gives_x, q=same, k=same, v=nothing, o=nothing, ffw_norm=gives_x, up=same, down=same)
    got = float(ops.tower_layer(jnp.zeros((1, 1)), layer, heads=1, eps=1e-6)[0, 0])
    assert abs(got - tanh) < 1e-6 < abs(got - exact)


def test_patches_are_rows_of_whole_kernels():
    """The number of a pixel is its place: channel, row, column."""
    pixels = jnp.arange(3 * 4 * 6).reshape(3, 4, 6)
    patches = np.asarray(siglip.patches(pixels, 2))
    assert patches.shape == (6, 12)
    assert patches[0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31, 48, 49, 54, 55]
    assert patches[1][0] == 2 and patches[3][0] == 12


@pytest.mark.parametrize("block", [1, 7, 32, 64])
def test_blocks_of_queries_change_nothing(block, monkeypatch):
    q, k, v = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 64, 4)), jnp.float32) for i in range(3))
    scores = np.exp(np.einsum("nqh,nph->nqp", *(np.asarray(x, np.float64) for x in (q, k))) / 2)
    expected = np.einsum("nqp,nph->nqh", scores / scores.sum(-1, keepdims=True), np.asarray(v, np.float64))
    monkeypatch.setattr(xla_tower, "QUERY_BLOCK", block)
    assert np.abs(np.asarray(xla_tower.attend_all(q, k, v, scale=0.5)) - expected).max() < 1e-5


def largest_array(jaxpr) -> int:
    """Bytes of the largest array that a program makes, those of its loops and calls too."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [prod(out.aval.shape) * out.aval.dtype.itemsize for out in equation.outvars]
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        sizes += [largest_array(one) for one in inner if hasattr(one, "eqns")]
    return max(sizes)


def test_the_scores_of_all_heads_are_never_stored():
    """At the real shape no array of a layer exceeds 71 MB; 16 x 4096 x 4096 scores would be 1,074 MB."""
    config = SIGLIP_SO400M_896
    tower = siglip.build_siglip(config, lambda name, shape: jax.ShapeDtypeStruct(shape, jnp.float32))
    x_PD = jax.ShapeDtypeStruct((config.num_patches, config.model_dim), jnp.float32)
    with select.force("*", "xla"):
        program = jax.make_jaxpr(lambda layer, x: layer(x))(tower.layers[0], x_PD)
    widest = 4 * config.num_patches * config.ffw_dim  # of the feed-forward
    assert largest_array(program.jaxpr) == widest < 71e6


def test_the_real_shape_has_the_published_size():
    """Spec 3.4, and 256 soft tokens as wide as 4B."""
    shapes = {}

    def leaf(name, shape):
        shapes[name] = shape
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    vision = build_vision(SIGLIP_SO400M_896, 2560, leaf)
    projector = sum(prod(shape) for name, shape in shapes.items() if name.startswith("projector."))
    assert projector == 2_950_272
    assert sum(prod(shape) for shape in shapes.values()) - projector == 416_866_032
    pixels = jax.ShapeDtypeStruct((3, 896, 896), jnp.float32)
    soft = jax.eval_shape(lambda vision, pixels: vision(pixels), vision, pixels)
    assert (soft.shape, soft.dtype) == ((256, 2560), jnp.float32)


def test_the_pool_averages_neighbours_of_both_directions():
    grid = jnp.arange(16.0).reshape(16, 1)
    assert average_pool(grid, 2).ravel().tolist() == [2.5, 4.5, 10.5, 12.5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_heads": 5}, "model_dim must be a multiple of num_heads, got 12 and 5"),
        ({"patch_size": 5}, "image_size must be a multiple of patch_size, got 24 and 5"),
        ({"tokens_per_image": 8}, "square of a divisor of 6 patches a side, got 8"),
        ({"tokens_per_image": 16}, "square of a divisor of 6 patches a side, got 16"),
        ({"tokens_per_image": 0}, "square of a divisor"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, says):
    fields = {name: getattr(SMALL, name) for name in SMALL.__slots__} | change
    with pytest.raises(ConfigError, match=says):
        VisionConfig(**fields)
