"""A frozen matrix with trained low-rank additions: LoRA, and DoRA's length of a row.

    y = W x + scale B A x                                   DoRA: y times m / |W + scale B A|, row by row

The length of a row is a constant for the gradient (section 4.3 of the DoRA paper), and is never computed from a matrix
[out, in]: |w + s b A|^2 = |w|^2 + 2 s b . (A w) + s^2 b (A A.T) b.T, where W A.T is a product with `rank` more rows.
"""

import equinox as eqx
import jax
import jax.numpy as jnp

from gemworks.ops.adapted import Composite, Product, linear
from gemworks.ops.weight import Weight

# T tokens, D input width, F output width, r rank


class LowRank(Composite):
    """A matrix, its additions, and for DoRA the length m of every row and the squared length of every row of W.

    key: of this product's dropout; None computes without.
    """

    weight: Weight | Composite
    a_rD: jax.Array
    b_Fr: jax.Array
    magnitude_F: jax.Array | None
    squares_F: jax.Array | None
    key: jax.Array | None
    scale: float = eqx.field(static=True)
    dropout: float = eqx.field(static=True)

    def times(self, x_TD: jax.Array, product: Product) -> jax.Array:
        """Return y in fp32, for any number of leading axes that `product` takes."""
        low_Tr = product(self._dropped(x_TD), self.a_rD)
        y_TF = linear(x_TD, self.weight, product=product) + self.scale * product(low_Tr, self.b_Fr)
        return y_TF if self.magnitude_F is None else y_TF * (self.magnitude_F / self._lengths(product))

    def _dropped(self, x_TD: jax.Array) -> jax.Array:
        if self.key is None:
            return x_TD
        kept = jax.random.bernoulli(self.key, 1 - self.dropout, x_TD.shape)
        return jnp.where(kept, x_TD / (1 - self.dropout), 0)

    def _lengths(self, product: Product) -> jax.Array:
        """|W + scale B A| of every row, [F]."""
        a_rD, b_Fr = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (self.a_rD, self.b_Fr))
        cross_F = (b_Fr * linear(a_rD, self.weight, product=product).T).sum(axis=1)
        own_F = (jnp.einsum("fr,rs->fs", b_Fr, product(a_rD, a_rD), precision="highest") * b_Fr).sum(axis=1)
        assert self.squares_F is not None, "DoRA's lengths begin with those of W"
        squares = self.squares_F + 2 * self.scale * cross_F + self.scale**2 * own_F
        return jnp.sqrt(jnp.maximum(squares, 1e-30))
