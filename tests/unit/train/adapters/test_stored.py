"""A frozen quantized matrix multiplies, embeds and passes gradients on as the matrix it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemworks.ops.train import stored
from gemworks.ops.train.head import token_logits
from gemworks.ops.train.product import linear
from gemworks.ops.train.stored import Held, Stored, num_parts
from gemworks.quant.formats import dequantize
from gemworks.quant.rtn import quantize

FORMATS = ("int4-b32", "int4", "int8-b32", "int8", "sfp8")


def a_matrix(format: str, F: int = 48, D: int = 64, dtype="float32") -> tuple[Stored, np.ndarray]:
    """A stored matrix, and what it stands for."""
    quantized = quantize(np.random.default_rng(0).normal(size=(F, D)).astype(np.float32), format)
    return Stored(jax.tree.map(jnp.asarray, quantized), np.dtype(jnp.dtype(dtype))), dequantize(quantized)


@pytest.mark.parametrize(
    "format", ["int4-b32", *(pytest.param(one, marks=pytest.mark.exhaustive) for one in FORMATS[1:])]
)
def test_products_and_gradients_are_those_of_the_matrix(format, monkeypatch):
    monkeypatch.setattr(stored, "AT_ONCE", 16 * 64)  # three parts
    weight, plain = a_matrix(format)
    assert num_parts(*weight.shape) == 3
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 64)), jnp.float32)
    d_y = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 48)), jnp.float32)

    def score(product):
        return jax.jit(jax.value_and_grad(lambda x: (product(x) * d_y).sum()))(x)

    value, gradient = score(weight.times)
    wanted, wanted_gradient = score(lambda x: linear(x, jnp.asarray(plain)))
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5)
    np.testing.assert_allclose(weight.row_squares(), (plain**2).sum(axis=1), rtol=1e-5)
    ids = np.array([[3, 47], [0, 3]])
    np.testing.assert_allclose(weight.embed(ids, 2.0), 2 * plain[ids], rtol=1e-6)
    np.testing.assert_array_equal(weight.part(1, 3), plain[16:32])


def test_bf16_products_round_their_operands_only():
    weight, plain = a_matrix("int8-b32", dtype="bfloat16")
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, 64)), jnp.float32)
    rounded = np.asarray(jnp.asarray(plain, jnp.bfloat16), np.float32)
    wanted = np.asarray(x.astype(jnp.bfloat16), np.float32) @ rounded.T
    got = weight.times(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["held", "stored"])
def test_a_fixed_head_gives_the_loss_and_the_states_gradient(kind):
    weight, plain = a_matrix("int8", F=60)
    rng = np.random.default_rng(3)
    h, d_total = jnp.asarray(rng.normal(size=(2, 3, 64)), jnp.float32), jnp.asarray(rng.normal(size=(2, 3)))
    ids = jnp.asarray(rng.integers(0, 60, (2, 3, 1)))
    head = weight if kind == "stored" else Held(jnp.asarray(plain))

    def score(h, head):
        log_total, chosen = token_logits(h, head, ids, words_at_once=15)
        return (log_total * d_total).sum() + 2 * chosen.sum()

    got, got_gradient = jax.value_and_grad(score)(h, head)
    wanted, wanted_gradient = jax.value_and_grad(score)(h, jnp.asarray(plain))
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)
    np.testing.assert_allclose(got_gradient, wanted_gradient, atol=1e-5)


def test_no_float_copy_of_the_matrix_is_in_the_program(monkeypatch):
    """Forward and backward: nothing as large as the whole matrix but its codes."""
    monkeypatch.setattr(stored, "AT_ONCE", 1 << 12)
    weight, _ = a_matrix("int4-b32", F=512, D=256)
    x = jnp.ones((4, 256), jnp.float32)
    compiled = jax.jit(jax.grad(lambda x, w: (w.times(x) ** 2).sum())).lower(x, weight).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 512 * 256 * 4 / 3
