"""Losses as sums over a batch: the loop divides by the number of tokens of the whole step, once.

    loss = sum_t w_t (CE_t + z logZ_t^2) / sum_t w_t

A mean of means would weigh a micro-batch, or a device, with few targets as much as one with many. So a method returns
sums; accumulation and sharding add sums, and change nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from gemworks.model.gemma3 import Gemma3
from gemworks.ops.train.cross_entropy import LOGITS_AT_ONCE, cross_entropy
from gemworks.ops.train.head import WORDS_AT_ONCE, token_logits
from gemworks.train.forward import Layout, Rows, head_rows, hidden

# B rows, T tokens a row, D model width


class Terms(NamedTuple):
    """Sums over a (micro) batch: the loss is total / weight; `more` are sums to be shown, divided by weight too."""

    total: jax.Array
    weight: jax.Array
    more: Mapping[str, jax.Array]


class Call(NamedTuple):
    """What a method gets beside model and rows.

    key: made of (seed, step, micro-batch). frozen: the arrays that the method reads and the run does not train, as a
    teacher's. layout: where arrays lie. remat: whether layers are computed again for the gradient. base: the model
    without the adapter, where one is trained.
    """

    key: jax.Array
    frozen: Any = None
    layout: Layout | None = None
    remat: bool = True
    base: Gemma3 | None = None


class Method(Protocol):
    """What a micro-batch adds to the loss: a pure function, as a frozen dataclass whose fields recipe.json shows."""

    def __call__(self, model: Gemma3, rows: Any, call: Call) -> Terms:
        """Return the sums over these rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Cross-entropy with the next token. z_loss pulls ln sum e^logit towards 0 (PaLM, arXiv 2204.02311: 1e-4).

    On one device the head is read for logits_at_once / V tokens at a time; on several, where tokens and words are
    divided, and where the head is not trained, for words_at_once words at a time.
    """

    z_loss: float = 0.0
    words_at_once: int = WORDS_AT_ONCE
    logits_at_once: int = LOGITS_AT_ONCE

    def __call__(self, model: Gemma3, rows: Rows, call: Call) -> Terms:
        """Return the sums over these rows."""
        h_BTD, head_VD = hidden(model, rows, call.layout, remat=call.remat), head_rows(model)
        if call.layout is None and isinstance(head_VD, jax.Array):
            weight_BT, logits = jnp.asarray(rows.loss_mask_BT), self.logits_at_once
            targets_BT = jnp.asarray(rows.targets_BT)
            total, nll = cross_entropy(h_BTD, head_VD, targets_BT, weight_BT, z_loss=self.z_loss, logits_at_once=logits)
            return Terms(total, num_targets(rows), {"nll": nll})
        ids_BT1 = jnp.asarray(rows.targets_BT)[..., None]
        log_total_BT, chosen_BT1 = token_logits(h_BTD, head_VD, ids_BT1, words_at_once=self.words_at_once)
        nll = weighted_sum(log_total_BT - chosen_BT1[..., 0], rows)
        total = nll + self.z_loss * weighted_sum(jnp.square(log_total_BT), rows) if self.z_loss else nll
        return Terms(total, num_targets(rows), {"nll": nll})


def weighted_sum(x_BT: jax.Array, rows: Rows) -> jax.Array:
    """Return the sum of x over the targets that count."""
    weight_BT = jnp.asarray(rows.loss_mask_BT, jnp.float32)
    # A where, not a product: 0 x inf of a position that does not count would be NaN.
    return jnp.where(weight_BT > 0, x_BT * weight_BT, 0).sum()


def num_targets(rows: Rows) -> jax.Array:
    """Return the sum of the weights."""
    return jnp.asarray(rows.loss_mask_BT, jnp.float32).sum()
