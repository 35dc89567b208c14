"""The weights of one layer of the vision tower, as ops.tower_layer takes them."""

from typing import NamedTuple

from gemworks.ops.kv import Array
from gemworks.ops.weight import Weight

# D model width, F feed-forward width


class Normed(NamedTuple):
    """A LayerNorm's gain and bias, [D] each; the gain multiplies as it is, not as 1 + w."""

    weight: Array
    bias: Array


class Biased(NamedTuple):
    """y = x @ weight.T + bias."""

    weight: Weight
    bias: Array


class TowerLayer(NamedTuple):
    """One layer. q, k, v and o are [D, D], up [F, D], down [D, F]."""

    attn_norm: Normed
    q: Biased
    k: Biased
    v: Biased
    o: Biased
    ffw_norm: Normed
    up: Biased
    down: Biased

    @property
    def products(self) -> tuple[Biased, ...]:
        """The matrices in the order of the kernel's operands."""
        return (self.q, self.k, self.v, self.o, self.up, self.down)
