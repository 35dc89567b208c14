"""The kernels of quantized matrices against their twins in ops/xla: every format, instruction set and odd shape.

Integer formats round the activations to int8 in blocks of 32, so each case is held twice (docs/numerics.md): to the
product with activations rounded like that, up to fp32 rounding, and to the exact product, up to the rounding's bound.
"""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemworks import machine, ops
from gemworks.ops import layout, select
from gemworks.ops.weight import BLOCK, FORMATS, PackedWeight, QuantWeight, code_shapes
from gemworks.ops.xla import basic, block
from gemworks.ops.xla import sample as xla_sample
from gemworks.ops.xla.quant import dequantize

if "cpu" not in select.available():
    pytest.skip("no CPU kernels here: see gemworks doctor", allow_module_level=True)

from gemworks.ops.cpu import library
from gemworks.ops.cpu import linear as cpu_linear

INTEGER = ("int4-b32", "int4", "int8-b32", "int8")
# Odd heights (panels of 16, pairs of panels), widths that fill a unit of 64 and that do not, one row, one block.
SHAPES = [(64, 64), (1, 32), (15, 96), (17, 64), (37, 160), (50, 640), (512, 1152)]
TOKENS = (1, 2, 3, 5, 6, 7, 13)  # every tile height, and remainders


def runnable_isas() -> list[str]:
    found = []
    for isa in library.ISAS:
        try:
            library.use(isa, 1)
        except Exception:
            continue
        found.append(isa)
    library.use(found[0], machine.threads())
    return found


@pytest.fixture(params=runnable_isas(), autouse=True)
def isa(request):
    before = library.isa()
    library.use(request.param, machine.threads())
    yield request.param
    library.use(before, machine.threads())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_weight(format: str, F: int, D: int, seed: int = 0) -> QuantWeight:
    """Every code equally likely, extremes too; scales of a trained model's size."""
    (code_shape, code_dtype), (scale_shape, scale_dtype) = code_shapes(format, F, D)
    if format == "bf16":
        codes = rng(seed).normal(0, 0.05, code_shape).astype(ml_dtypes.bfloat16).view(np.uint16)
    else:
        codes = rng(seed).integers(0, 256, code_shape).astype(np.uint8).view(code_dtype)
    scales = rng(seed + 1).uniform(0.005, 0.015, scale_shape).astype(scale_dtype)
    return QuantWeight(codes, scales, format, (F, D))


def packed(weight: QuantWeight) -> PackedWeight:
    return PackedWeight(jax.device_put(layout.pack(weight)), weight.format, weight.shape)


def activations(T: int, D: int, seed: int = 2) -> np.ndarray:
    """Normal numbers with an outlier of a hundred times the rest, and a block of zeros."""
    x = rng(seed).normal(0, 1, (T, D)).astype(np.float32)
    x[:, 3] *= 100
    x[-1, : min(BLOCK, D)] = 0
    return x


def rounded(x_TD) -> np.ndarray:
    """Return the activations as the kernels round them: int8 codes times max|x| / 127, in blocks of 32."""
    blocks = np.asarray(x_TD, np.float32).reshape(len(x_TD), -1, BLOCK)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    codes = np.rint(blocks * inverse)
    return (codes * (largest * np.float32(1 / 127))).reshape(np.shape(x_TD))


def rounding_bound(x_TD: np.ndarray, weight_FD: np.ndarray) -> np.ndarray:
    """Return the largest |W (x - rounded x)| there can be: half a step a column, 1 / 254 of the block's largest."""
    T, F = len(x_TD), len(weight_FD)
    step_TB = np.abs(x_TD.reshape(T, -1, BLOCK)).max(axis=-1) / 127
    return (step_TB / 2) @ np.abs(weight_FD.reshape(F, -1, BLOCK)).sum(axis=-1).T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_linear(format, shape):
    F, D = shape
    weight = random_weight(format, F, D)
    exact_FD = np.asarray(dequantize(weight), np.float64)
    for T in TOKENS:
        x = activations(T, D)
        y = np.asarray(ops.linear(jnp.asarray(x), packed(weight)))
        fp32 = 3e-6 * np.abs(x.astype(np.float64)) @ np.abs(exact_FD).T + 1e-30
        seen = rounded(x) if format in INTEGER else x
        assert (np.abs(y - seen.astype(np.float64) @ exact_FD.T) <= fp32).all(), T
        bound = rounding_bound(x, exact_FD) if format in INTEGER else 0
        assert (np.abs(y - x.astype(np.float64) @ exact_FD.T) <= bound + fp32).all(), T


@pytest.mark.parametrize("format", FORMATS)
def test_linear_is_the_twin_on_the_packed_form_too(format):
    """ops/xla takes a packed matrix as it takes a row-major one: the layouts hold the same numbers."""
    weight, x = random_weight(format, 37, 96), jnp.asarray(activations(3, 96))
    np.testing.assert_array_equal(basic.linear(x, packed(weight)), basic.linear(x, weight))


@pytest.mark.parametrize("format", FORMATS)
def test_no_tokens_give_no_rows(format):
    assert ops.linear(jnp.zeros((0, 64)), packed(random_weight(format, 17, 64))).shape == (0, 17)


@pytest.mark.parametrize("format", FORMATS)
def test_results_do_not_depend_on_threads_or_on_the_batch(format, isa):
    """Bit for bit: a number is computed whole by one thread, in one order, whatever the tile."""
    weight, x = packed(random_weight(format, 515, 160)), activations(13, 160)
    library.use(isa, 1)
    alone = np.concatenate([np.asarray(ops.linear(jnp.asarray(x[t : t + 1]), weight)) for t in range(13)])
    for threads in (1, 2, 3, 7):
        library.use(isa, threads)
        np.testing.assert_array_equal(ops.linear(jnp.asarray(x), weight), alone)


@pytest.mark.parametrize("D", [16, 48, 640])
@pytest.mark.parametrize("T", [1, 2, 3, 4])
def test_a_row_major_bf16_matrix_is_multiplied_in_place(T, D, isa):
    """Activations rounded to bf16 as in the twin, any number of threads."""
    x = activations(T, D)
    weight = rng(1).normal(0, 1, (131, D)).astype(ml_dtypes.bfloat16)
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float64) @ weight.astype(np.float64).T
    y = ops.linear(jnp.asarray(x), jnp.asarray(weight))
    bound = 1e-6 * np.abs(x).astype(np.float64) @ np.abs(weight.astype(np.float64)).T
    assert (np.abs(y - expected) <= bound).all()
    library.use(isa, 1)
    np.testing.assert_array_equal(ops.linear(jnp.asarray(x), jnp.asarray(weight)), y)


@pytest.mark.parametrize("format", FORMATS)
def test_embed(format):
    weight = random_weight(format, 50, 96)
    ids = np.array([0, 49, 17, 17, 16, 15, 60, -3], np.int32)  # past either end: clipped
    y = ops.embed(ids, packed(weight), scale=2.5)
    expected = np.asarray(dequantize(weight))[np.clip(ids, 0, 49)] * 2.5
    np.testing.assert_allclose(y, expected, rtol=2e-7)
    np.testing.assert_allclose(basic.embed(ids, weight, scale=2.5), expected, rtol=2e-7)


@pytest.mark.parametrize("format", ["int8", "int4-b32", "bf16"])
@pytest.mark.parametrize(("vocab", "top"), [(990, 50), (1000, 1), (3, 8), (17, 17)])
def test_head_top(format, vocab, top, isa):
    """The same logits as `linear`, the same order as top_k (ties to the lower id), the same total as logsumexp."""
    weight = packed(random_weight(format, 1000, 64))
    for T in (1, 3, 8):
        h = jnp.asarray(activations(T, 64))
        expected = xla_sample.head_top(h, weight, vocab=vocab, top=top, with_total=True, product=cpu_linear.linear)
        for threads in (1, 2, 5):
            library.use(isa, threads)
            values, ids, total = ops.head_top(h, weight, vocab=vocab, top=top, with_total=True)
            np.testing.assert_array_equal(values, expected[0])
            np.testing.assert_array_equal(ids, expected[1])
            np.testing.assert_allclose(total, expected[2], rtol=2e-6, atol=2e-6)


def test_head_top_orders_ties_by_id():
    zero = QuantWeight(np.zeros((3000, 64), np.int8), np.ones(3000, np.float32), "int8", (3000, 64))
    values, ids, total = ops.head_top(jnp.ones((2, 64)), packed(zero), vocab=2999, top=5, with_total=True)
    assert not values.any() and ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    np.testing.assert_allclose(total, np.log(2999), rtol=1e-6)


def layer(formats, *, D=96, N=4, K=2, H=32, F=160):
    """Weights q, k, v, o, gate, up, down of one layer; `formats` names the format of each."""
    shapes = [(N * H, D), (K * H, D), (K * H, D), (D, N * H), (F, D), (F, D), (D, F)]
    return [random_weight(f, *shape, seed=i) for i, (f, shape) in enumerate(zip(formats, shapes, strict=True))]


def product_with_rounded_rows(x_TD, weight: QuantWeight):
    """The twin's product with the kernels' rounding of activations."""
    return basic.linear(jnp.asarray(rounded(x_TD) if weight.format in INTEGER else x_TD), weight)


def relative(a, b) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


MIXES = [(f,) * 7 for f in FORMATS] + [("int4-b32", "int8", "int8-b32", "bf16", "int4", "sfp8", "int8")]


@pytest.mark.parametrize("formats", MIXES, ids="-".join)
@pytest.mark.parametrize("T", [1, 2, 9])
def test_qkv(formats, T):
    q, k, v = layer(formats)[:3]
    x = activations(T, 96)
    gains = rng(5).normal(0, 0.3, 96).astype(np.float32), *rng(6).normal(0, 0.3, (2, 32)).astype(np.float32)
    angle = rng(7).uniform(-3, 3, (T, 16))
    rope = jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32)

    def twin(product):
        return block.qkv(x, gains[0], q, k, v, *gains[1:], *rope, eps=1e-6, product=product)

    got = ops.qkv(jnp.asarray(x), gains[0], packed(q), packed(k), packed(v), *gains[1:], *rope, eps=1e-6)
    for ours, like, exact in zip(got, twin(product_with_rounded_rows), twin(basic.linear), strict=True):
        assert relative(ours, like) < 1e-3  # a code that falls on the other side of a tie is one step of one column
        assert relative(ours, exact) < 2e-2


@pytest.mark.parametrize("formats", MIXES, ids="-".join)
@pytest.mark.parametrize("T", [1, 2, 9])
def test_block_tail(formats, T):
    matrices = layer(formats)[3:]
    x, attn = activations(T, 96), activations(T, 128, seed=3)
    gains = rng(5).normal(0, 0.3, (3, 96)).astype(np.float32)
    got = ops.block_tail(jnp.asarray(x), jnp.asarray(attn), *gains, *map(packed, matrices), eps=1e-6)
    assert (
        relative(got, block.block_tail(x, attn, *gains, *matrices, eps=1e-6, product=product_with_rounded_rows)) < 1e-3
    )
    assert relative(got, block.block_tail(x, attn, *gains, *matrices, eps=1e-6)) < 2e-2


def test_a_layer_the_kernels_do_not_take_is_computed_by_parts():
    """Heads of 16: RoPE pairs fill half a vector. One matrix that is not packed: the others still run packed."""
    q, k, v, *rest = layer(("int8",) * 7, H=16)
    x, rope = activations(3, 96), (jnp.ones((3, 8)), jnp.zeros((3, 8)))
    gain, heads = np.zeros(96, np.float32), np.zeros(16, np.float32)
    got = ops.qkv(jnp.asarray(x), gain, packed(q), packed(k), packed(v), heads, heads, *rope, eps=1e-6)
    assert relative(got[2], block.qkv(x, gain, q, k, v, heads, heads, *rope, eps=1e-6)[2]) < 2e-2
    o, gate, up, down = rest
    attn = activations(3, 64)
    got = ops.block_tail(
        jnp.asarray(x), jnp.asarray(attn), gain, gain, gain, packed(o), gate, packed(up), down, eps=1e-6
    )
    assert relative(got, block.block_tail(x, attn, gain, gain, gain, *rest, eps=1e-6)) < 2e-2


def test_a_packed_buffer_of_the_wrong_length_is_refused():
    weight = packed(random_weight("int8", 64, 64))
    short = PackedWeight(weight.data[:-64], "int8", (64, 64))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"a packed \[64, 64\] matrix has 4288 bytes.*wanted 4352"):
        ops.linear(jnp.ones((1, 64)), short).block_until_ready()


def test_a_step_with_kernels_runs_in_parallel_with_itself():
    """Two products that XLA may compute at once take turns at the pool and its workspace."""
    a, b = packed(random_weight("int8", 512, 640)), packed(random_weight("int4-b32", 512, 640, seed=4))
    x = jnp.asarray(activations(7, 640))
    both = jax.jit(lambda x: (ops.linear(x, a), ops.linear(x, b)))
    expected = ops.linear(x, a), ops.linear(x, b)
    for _ in range(20):
        for got, want in zip(both(x), expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("format", FORMATS)
def test_the_twin_dequantizes_a_large_matrix_in_parts(format, monkeypatch):
    weight, x = random_weight(format, 48, 64), jnp.asarray(activations(3, 64))
    whole = basic.linear(x, weight)
    monkeypatch.setattr(basic, "_DEQUANTIZED_AT_ONCE", 8 * 64)
    np.testing.assert_allclose(basic.linear(x, weight), whole, rtol=1e-6, atol=1e-6)
