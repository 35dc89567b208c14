"""The vision tower's kernels against the twin: attention exact and in bytes, packed layers, a whole tower."""

import zlib
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemworks import machine, ops
from gemworks.bench.vision import picture
from gemworks.bench.vision_files import draw, make_vision
from gemworks.errors import BackendError
from gemworks.model.multimodal import build_vision
from gemworks.model.vision_config import SIGLIP_SO400M_896, VisionConfig
from gemworks.ops import select
from gemworks.ops.layout import packed_bytes
from gemworks.ops.weight import PackedWeight
from gemworks.ops.xla import tower as xla
from gemworks.ops.xla.quant import dequantize
from gemworks.quant import tower as quant_tower
from gemworks.weights.vision import load_vision

pytestmark = pytest.mark.skipif("cpu" not in select.available(), reason="no CPU kernels here")

CONFIG = VisionConfig(
    image_size=98, patch_size=14, model_dim=96, ffw_dim=200, num_layers=2, num_heads=4, tokens_per_image=49
)


@pytest.fixture
def library():
    """The kernels' library, left with the set and threads it had."""
    from gemworks.ops.cpu import library

    isa = library.isa()
    yield library
    library.use(isa, machine.threads())


def heads(N: int, P: int, H: int, *, spread: float = 1.5, seed: int = 0) -> list[np.ndarray]:
    """q, k, v; keys and values have a mean far from zero in one column, as biases give them."""
    rng = np.random.default_rng([seed, N, P, H])
    q, k, v = (rng.normal(0, spread, (N, P, H)).astype(np.float32) for _ in range(3))
    k[..., 0] += 20
    v[..., -1] -= 9
    return [q, k, v]


def written_out(q, k, v, scale: float) -> np.ndarray:
    """Attention in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.einsum("nqh,nph->nqp", q, k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("nqp,nph->nqh", weights / weights.sum(-1, keepdims=True), v)


SIZES = [(1, 1, 16), (2, 7, 24), (1, 33, 72), (3, 100, 36), (1, 129, 64), (2, 260, 72), (1, 64, 17), (16, 49, 72)]


@pytest.mark.parametrize(("N", "P", "H"), SIZES)
def test_exact_attention_is_fp32(N, P, H):
    q, k, v = heads(N, P, H)
    with select.force("attend_all", "cpu"):
        got = np.asarray(jax.jit(partial(ops.attend_all, scale=H**-0.5))(q, k, v))
    assert np.abs(got - written_out(q, k, v, H**-0.5)).max() <= 2e-5 * np.abs(v).max()


@pytest.mark.parametrize(("N", "P", "H"), SIZES)
def test_attention_in_bytes_is_near(N, P, H):
    """Within 5 % of the values' spread for every number, 3 % of it in the mean; exact attention is at 1e-6."""
    q, k, v = heads(N, P, H)
    got = np.asarray(ops.attend_all(q, k, v, scale=H**-0.5, exact=False))
    wanted = written_out(q, k, v, H**-0.5)
    error = np.abs(got - wanted) / 1.5
    assert error.max() <= 0.12 and np.sqrt((error**2).mean()) <= 0.02


def test_peaked_and_flat_queries_lose_alike():
    """Weights have a scale a block and query: neither one key alone nor 600 alike may be off by a step of 1/255."""
    q, k, v = heads(2, 600, 72, seed=1)
    q[0] *= 4  # nearly one key each
    q[1] *= 0.01  # nearly the mean
    got = np.asarray(ops.attend_all(q, k, v, scale=72**-0.5, exact=False))
    wanted = written_out(q, k, v, 72**-0.5)
    assert np.sqrt(((got - wanted)[1] ** 2).mean()) <= 0.002 * 1.5
    assert np.sqrt(((got - wanted)[0] ** 2).mean()) <= 0.10 * 1.5


def test_bits_are_the_same_for_any_number_of_threads_and_set(library):
    q, k, v = heads(3, 140, 40)
    layer, x = packed_layers()[0], some_rows()
    seen = []
    for isa in library.ISAS:
        for threads in (1, 2, 3):
            try:
                library.use(isa, threads)
            except BackendError:  # this CPU lacks the set
                continue
            outs = [ops.attend_all(q, k, v, scale=0.2, exact=exact) for exact in (True, False)]
            seen.append([np.asarray(out).tobytes() for out in [*outs, layer(x)]])
    assert len(seen) >= 3 and all(one == seen[0] for one in seen)


def test_gradients_are_the_twins():
    q, k, v = (jnp.asarray(x) for x in heads(2, 20, 16))
    kernel, twin = (
        jax.grad(lambda q, k, v, f=f: f(q, k, v, scale=0.25).sum(), argnums=(0, 1, 2))(q, k, v)
        for f in (ops.attend_all, xla.attend_all)
    )
    for one, other in zip(kernel, twin, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))
    batch = jax.vmap(partial(ops.attend_all, scale=0.25))(*(jnp.stack([x, 2 * x]) for x in (q, k, v)))
    assert np.array_equal(np.asarray(batch[0]), np.asarray(ops.attend_all(q, k, v, scale=0.25)))


def leaf_of(form: str):
    """Tensors by name: "int8" as the loader packs them, "rounded" those dequantized, "float32" as drawn."""

    def leaf(name, shape):
        array = draw(name, shape)
        if form == "float32":
            return jnp.asarray(array, jnp.float32)
        kept = quant_tower.round_leaf(name, np.asarray(array))
        if form == "rounded" and isinstance(kept, PackedWeight):
            return dequantize(kept)
        return jax.tree.map(lambda x: jnp.asarray(x, None if x.dtype == np.uint8 else jnp.float32), kept)

    return leaf


def packed_layers(config: VisionConfig = CONFIG):
    return build_vision(config, 32, leaf_of("int8")).tower.layers


def some_rows(config: VisionConfig = CONFIG) -> jax.Array:
    rng = np.random.default_rng(4)
    return jnp.asarray(rng.normal(0, 1, (config.num_patches, config.model_dim)), jnp.float32)


@pytest.mark.parametrize("image", [14, 98, 154])
def test_a_packed_layer_is_its_matrices_layer(image):
    """Only activations are rounded: 1.5 % of what the layer adds, in the root mean square."""
    config = VisionConfig(
        image_size=image, patch_size=14, model_dim=96, ffw_dim=200, num_layers=1, num_heads=4, tokens_per_image=1
    )
    x = some_rows(config)
    got, wanted = (
        np.asarray(build_vision(config, 32, leaf_of(form)).tower.layers[0](x)) for form in ("int8", "rounded")
    )
    added = np.sqrt(((wanted - np.asarray(x)) ** 2).mean())
    error = np.sqrt(((got - wanted) ** 2).mean()) / added
    assert 1e-4 < error <= 0.015


def test_widths_without_a_kernel_take_the_twin():
    config = VisionConfig(
        image_size=28, patch_size=14, model_dim=40, ffw_dim=60, num_layers=1, num_heads=4, tokens_per_image=1
    )
    assert not quant_tower.fits(config)
    pixels = jnp.zeros((3, 28, 28))
    assert np.isfinite(np.asarray(build_vision(config, 32, leaf_of("float32"))(pixels))).all()


def test_a_checkpoint_in_bf16_takes_the_fast_path_and_one_in_fp32_the_exact_one(tmp_path):
    """Soft tokens of the loaded tower: within 2 % of fp32 and of cosine 0.9995, the exact path within 1e-5."""
    folder = make_vision(tmp_path, CONFIG, lambda _: None)
    pixels = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 98, 98)), jnp.float32)
    fast, exact = load_vision(folder), load_vision(folder, dtype="float32")
    packed = [one.weight for one in fast.tower.layers[0].layer.products]
    assert all(isinstance(weight, PackedWeight) and weight.format == "int8" for weight in packed)
    with select.force("*", "xla"):
        wanted = np.asarray(jax.jit(lambda vision, pixels: vision(pixels))(exact, pixels))
    assert np.abs(np.asarray(exact(pixels)) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    got = np.asarray(fast(pixels))
    assert np.linalg.norm(got - wanted) <= 0.02 * np.linalg.norm(wanted)
    sizes = np.linalg.norm(got, axis=-1) * np.linalg.norm(wanted, axis=-1)
    assert ((got * wanted).sum(-1) / sizes).min() >= 0.9995


def heavy(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """As trained towers have them: matrices with tails (Student's t, 5 degrees), gains and biases with outliers."""
    rng = np.random.default_rng([7, zlib.crc32(name.encode())])
    if len(shape) == 1:
        if not name.endswith("norm.weight"):
            return (rng.normal(0, 0.3, shape) * np.where(rng.random(shape) < 0.02, 8, 1)).astype(np.float32)
        return (np.exp(rng.normal(0, 0.5, shape)) * np.where(rng.random(shape) < 0.01, 6, 1)).astype(np.float32)
    if name == "vision.position":
        return rng.normal(0, 0.5, shape).astype(np.float32)
    inputs = shape[0] if name == "projector.weight" else shape[-1]
    spread = 0.8 if ".attn.q." in name or ".attn.k." in name else 0.35
    drawn = rng.standard_t(5, shape).astype(np.float32) * np.float32(spread / 1.29 * inputs**-0.5)
    return np.asarray(drawn.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.exhaustive
@pytest.mark.parametrize("weights", [draw, heavy])
def test_soft_tokens_of_27_layers(weights):
    """All the released widths and layers, a picture of 448 pixels: within 2 % of fp32, cosine 0.9997 at least."""
    config = replace(SIGLIP_SO400M_896, image_size=448, tokens_per_image=64)
    pixels = jnp.asarray(np.moveaxis(picture(448), -1, 0) / np.float32(127.5) - 1, jnp.float32)

    def soft(form: str) -> np.ndarray:
        def leaf(name, shape):
            array = np.asarray(weights(name, shape))
            if form == "int8":
                array = quant_tower.round_leaf(name, array)
            return jax.tree.map(lambda x: jnp.asarray(x, None if x.dtype == np.uint8 else jnp.float32), array)

        return np.asarray(build_vision(config, 640, leaf)(pixels))

    exact, fast = soft("float32"), soft("int8")
    sizes = np.linalg.norm(fast, axis=-1) * np.linalg.norm(exact, axis=-1)
    assert 1e-3 < np.linalg.norm(fast - exact) / np.linalg.norm(exact) <= 0.02
    assert ((fast * exact).sum(-1) / sizes).min() >= 0.9997


def test_the_scores_are_never_stored():
    """At the real shape no array of a layer is larger than room for q, k and v, 57 MB; scores would be 1,074 MB."""
    config = SIGLIP_SO400M_896

    def leaf(name, shape):
        if name.endswith("ffw.up.bias"):
            shape = (4320,)
        if not name.startswith("vision.layers") or len(shape) < 2:
            return jax.ShapeDtypeStruct(shape, jnp.float32)
        shape = tuple(-(-size // 32) * 32 for size in shape)
        return PackedWeight(jax.ShapeDtypeStruct((packed_bytes("int8", *shape),), jnp.uint8), "int8", shape)

    layer = build_vision(config, 32, leaf).tower.layers[0]
    x = jax.ShapeDtypeStruct((config.num_patches, config.model_dim), jnp.float32)
    program = jax.jit(lambda layer, x: layer(x)).lower(layer, x).compile()
    analysis = program.memory_analysis()
    assert "gemworks_tower_layer" in program.as_text()
    assert analysis is not None and analysis.temp_size_in_bytes <= 3 * 4096 * 1152 * 4 + (1 << 20)
