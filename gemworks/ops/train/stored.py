"""Frozen matrices in training. A quantized one is codes and scales in memory, floats only for the part in use:

    y = x W.T        a part of W's rows at a time: dequantized, rounded to the compute dtype, multiplied, dropped
    d_x = d_y W      the same again, for the gradient; W itself has none

The parts are turns of a loop, which no compiler can hoist out of it or share between the two passes: a whole bf16 copy
of the model never exists.
"""

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks.ops.adapted import Composite, Product
from gemworks.ops.gradients import with_gradient
from gemworks.ops.kv import Array
from gemworks.ops.weight import Format, QuantWeight
from gemworks.ops.xla import basic, quant

# T tokens, D input width, F output width, n parts, f rows of a part

AT_ONCE = 1 << 21  # weights of a part: 4 MiB in bf16


class _How(NamedTuple):
    """What is no array."""

    format: Format
    shape: tuple[int, int]
    dtype: np.dtype
    parts: int


class Fixed(Composite):
    """A matrix that is not trained: nothing computes a gradient of it. shape: [out, in]; dtype: of products."""

    shape: eqx.AbstractVar[tuple[int, int]]
    dtype: eqx.AbstractVar[np.dtype]

    @abc.abstractmethod
    def part(self, i, parts: int) -> jax.Array:
        """Return the rows of part i of `parts`, side by side, in the dtype of products."""


class Held(Fixed):
    """A float matrix as it is."""

    weight: jax.Array

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        return self.weight.shape  # type: ignore[return-value]

    @property
    def dtype(self) -> np.dtype:
        """Of products."""
        return np.dtype(self.weight.dtype)

    def times(self, x_TD: jax.Array, product: Product) -> jax.Array:
        """Return y in fp32."""
        return product(x_TD, self.weight)

    def embed(self, ids_T: Array, scale: float) -> jax.Array:
        """Return x_TD as ops/xla does."""
        return basic.embed(ids_T, self.weight, scale=scale)

    def part(self, i, parts: int) -> jax.Array:
        """Return the rows of part i."""
        return _rows(self.weight, i, parts)


class Stored(Fixed):
    """A quantized matrix, and the dtype in which products with it are computed (sums in fp32)."""

    weight: QuantWeight
    dtype: np.dtype = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in]."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.weight.nbytes

    def times(self, x_TD: jax.Array, product: Product | None = None) -> jax.Array:
        """Return y in fp32, for any number of leading axes. It needs no other product."""
        del product
        F, D = self.shape
        how = _How(self.weight.format, self.shape, self.dtype, num_parts(F, D))
        y = _times(how, x_TD.reshape(-1, D).astype(self.dtype), *_arrays(self.weight))
        return y.reshape(*x_TD.shape[:-1], F)

    def embed(self, ids_T: Array, scale: float) -> jax.Array:
        """Return x_TD as ops/xla does: of a quantized table not rounded, of a bf16 one to bf16."""
        ids_T = jnp.asarray(ids_T)
        x_TD = quant.take_rows(self.weight, ids_T.reshape(-1)).reshape(*ids_T.shape, -1) * scale
        return x_TD.astype(jnp.bfloat16).astype(jnp.float32) if self.weight.format == "bf16" else x_TD

    def part(self, i, parts: int) -> jax.Array:
        """Return the rows of part i, dequantized."""
        codes, scales = _arrays(self.weight)
        how = _How(self.weight.format, self.shape, self.dtype, parts)
        return _dequantized(how, _rows(codes, i, parts), _rows(scales, i, parts) if _by_row(how) else scales)

    def row_squares(self) -> jax.Array:
        """Return the squared length of every row, fp32 [F]."""
        F, D = self.shape
        how = _How(self.weight.format, self.shape, self.dtype, num_parts(F, D))

        def squares(codes, scales):
            def turn(part):
                return jnp.square(_part(how, part, scales).astype(jnp.float32)).sum(axis=1)

            return jax.lax.map(turn, _split(how, codes, scales)).reshape(F)

        return jax.jit(squares)(*_arrays(self.weight))


def num_parts(F: int, D: int) -> int:
    """Return the fewest equal parts of F rows of D columns that have at most AT_ONCE weights each; 2 at least.

    XLA unrolls a loop of one turn, and may then keep what every layer dequantized until the end of the step.
    """
    return next((n for n in range(2, F + 1) if F % n == 0 and n * AT_ONCE >= F * D), F)


def _rows(x: jax.Array, i, parts: int) -> jax.Array:
    count = x.shape[0] // parts
    return jax.lax.dynamic_slice_in_dim(x, i * count, count, axis=0)


def _arrays(weight: QuantWeight) -> tuple[jax.Array, jax.Array]:
    return jnp.asarray(weight.codes), jnp.asarray(weight.scales)


def _by_row(how: _How) -> bool:
    return how.format not in ("sfp8", "bf16")


def _split(how: _How, codes: jax.Array, scales: jax.Array):
    """The arrays of each part in front: codes, and scales where every row has its own."""
    arrays = (codes, scales) if _by_row(how) else (codes,)
    return tuple(x.reshape(how.parts, -1, *x.shape[1:]) for x in arrays)


def _part(how: _How, part, scales: jax.Array) -> jax.Array:
    return _dequantized(how, part[0], part[1] if _by_row(how) else scales)


def _dequantized(how: _How, codes: jax.Array, scales: jax.Array) -> jax.Array:
    rows = codes.shape[0]
    return quant.dequantize(QuantWeight(codes, scales, how.format, (rows, how.shape[1]))).astype(how.dtype)


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(spec, a, b, precision="highest", preferred_element_type=jnp.float32)


def _plain(how: _How, x_TD, codes, scales):
    y_nTf = jax.lax.map(lambda part: _einsum("td,fd->tf", x_TD, _part(how, part, scales)), _split(how, codes, scales))
    return jnp.moveaxis(y_nTf, 0, 1).reshape(x_TD.shape[0], how.shape[0])


def _forward(how: _How, x_TD, codes, scales):
    return _plain(how, x_TD, codes, scales), (codes, scales, jnp.zeros((), x_TD.dtype))


def _backward(how: _How, kept, d_y_TF):
    codes, scales, like_x = kept
    d_y_nTf = jnp.moveaxis(d_y_TF.astype(how.dtype).reshape(d_y_TF.shape[0], how.parts, -1), 1, 0)

    def turn(d_x_TD, given):
        d_y_Tf, part = given
        return d_x_TD + _einsum("tf,fd->td", d_y_Tf, _part(how, part, scales)), None

    start = jnp.zeros((d_y_TF.shape[0], how.shape[1]), jnp.float32)
    d_x_TD, _ = jax.lax.scan(turn, start, (d_y_nTf, _split(how, codes, scales)))
    return d_x_TD.astype(like_x.dtype), None, None


_times = with_gradient(_plain, _forward, _backward)
