"""Every op on every backend of this machine against numpy in float64, over odd shapes and both dtypes."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from gemworks import ops
from gemworks.errors import BackendError
from gemworks.ops import select


@pytest.fixture(params=select.available(), autouse=True)
def backend(request):
    with select.force("*", request.param):
        yield request.param


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(1, 7), (3, 640), (2, 5, 16)])
def test_rms_norm(shape):
    x, scale = rng().normal(0, 3, shape).astype(np.float32), rng(1).normal(0, 1, shape[-1]).astype(np.float32)
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale.astype(np.float64))
    np.testing.assert_allclose(ops.rms_norm(jnp.asarray(x), jnp.asarray(scale), eps=1e-6), expected, rtol=2e-6)


def test_rms_norm_of_zeros_is_zero():
    assert not np.any(ops.rms_norm(jnp.zeros((2, 8)), jnp.ones(8), eps=1e-6))


@pytest.mark.parametrize("T", [1, 2, 5, 33])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_linear(T, dtype):
    """fp32 accumulation of operands rounded to the weights' dtype; one row takes another path on CPU in bf16."""
    x = rng().normal(0, 1, (T, 130)).astype(np.float32)
    weight = rng(1).normal(0, 1, (37, 130)).astype(dtype)
    expected = x.astype(dtype).astype(np.float64) @ weight.astype(np.float64).T
    y = ops.linear(jnp.asarray(x), jnp.asarray(weight))
    assert y.dtype == jnp.float32 and y.shape == (T, 37)
    np.testing.assert_allclose(y, expected, atol=2e-5 * np.sqrt(130))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_embed(dtype):
    weight = rng().normal(0, 1, (11, 6)).astype(dtype)
    ids = np.array([0, 10, 3, 3], np.int32)
    expected = (weight[ids].astype(np.float32) * np.float32(2.5)).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(ops.embed(jnp.asarray(ids), jnp.asarray(weight), scale=2.5), expected)


def test_rope_turns_the_pairs_i_and_i_plus_half():
    x = rng().normal(0, 1, (3, 2, 8)).astype(np.float32)
    angle = rng(1).uniform(-3, 3, (3, 4))
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[:, None, :]
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    y = ops.rope(jnp.asarray(x), jnp.asarray(np.cos(angle), jnp.float32), jnp.asarray(np.sin(angle), jnp.float32))
    np.testing.assert_allclose(y, expected, atol=1e-6)


def test_geglu_activates_the_gate():
    gate, up = rng().normal(0, 2, (4, 9)).astype(np.float32), rng(1).normal(0, 1, (4, 9)).astype(np.float32)
    z = gate.astype(np.float64)
    expected = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) * up
    np.testing.assert_allclose(ops.geglu(jnp.asarray(gate), jnp.asarray(up)), expected, atol=2e-6)


def test_unknown_backend_is_refused():
    with (
        pytest.raises(BackendError, match=r'ops have no backend "cuda" here\.\nAvailable: xla'),
        select.force("*", "cuda"),
    ):
        pass


def test_every_op_says_why_it_has_its_backend():
    assert {choice.op for choice in select.explain()} >= {"linear", "attention", "sample"}
    assert all("forced by the caller" in choice.reason for choice in select.explain())


def test_forcing_a_backend_serves_what_it_lacks_from_xla(backend):
    for choice in select.explain():
        assert choice.backend in (backend, "xla")
    assert select.choose("linear").backend == backend


def test_an_op_that_a_backend_lacks_cannot_be_forced_alone(backend):
    if backend == "cpu":
        with pytest.raises(BackendError, match='op sample has no backend "cpu"'), select.force("sample", "cpu"):
            pass


def test_environment_forces_a_backend(monkeypatch):
    monkeypatch.setattr(select, "_forced", {})
    monkeypatch.setenv("GEMWORKS_BACKEND", "xla")
    assert select.choose("linear").reason == "forced by GEMWORKS_BACKEND"
    monkeypatch.setenv("GEMWORKS_BACKEND", "tpu-v9")
    with pytest.raises(BackendError, match='no backend "tpu-v9"'):
        select.choose("linear")
