"""Distillation: the student learns from draws of a teacher that computes beside it, or from a store of them.

    loss = alpha (logZ - sum_i t_i z_i) + (1 - alpha) (logZ - z_next)          logZ over the whole vocabulary

alpha is 1 as in the Gemma 3 report, which has no hard labels. The teacher's logits are made a row at a time, drawn
from and dropped: [T, V] exists for one row, [B, T, V] never. Targets: train/targets.py; the store: train/store.py.

The teacher's forward pass is the cost: no gradient, about a third of a step of a model of its size.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import Gemma3
from gemworks.ops.kv import Array
from gemworks.ops.train.head import WORDS_AT_ONCE, token_logits
from gemworks.ops.train.product import linear
from gemworks.parallel.plan import ROWS
from gemworks.train.forward import Layout, Rows, head_rows, hidden
from gemworks.train.loss import Call, Terms, num_targets, weighted_sum
from gemworks.train.targets import NUM_DRAWS, SCHEMES, Scheme, sampled_targets

# B rows, T tokens a row, C draws of a token, V vocabulary rows


class TaughtRows(NamedTuple):
    """Rows with what a teacher said of each token: drawn ids and their targets; target 0 is no draw."""

    ids_BT: Array
    targets_BT: Array
    loss_mask_BT: Array
    segment_BT: Array
    position_BT: Array
    drawn_BTC: Array
    taught_BTC: Array


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Learn from draws of the teacher `call.frozen`, a Gemma3 model with the student's vocabulary."""

    scheme: Scheme = "ht"
    draws: int = NUM_DRAWS
    temperature: float = 1.0
    alpha: float = 1.0
    z_loss: float = 0.0
    words_at_once: int = WORDS_AT_ONCE

    def __post_init__(self):
        if self.scheme not in SCHEMES:
            raise ConfigError(f'scheme of a distillation must be one of {", ".join(SCHEMES)}, got "{self.scheme}".')
        if self.draws < 1 or self.temperature <= 0 or not 0 <= self.alpha <= 1:
            raise ConfigError(
                "a distillation needs draws >= 1, temperature > 0 and 0 <= alpha <= 1; got "
                f"{self.draws}, {self.temperature} and {self.alpha}."
            )

    def __call__(self, model: Gemma3, rows: Rows, call: Call) -> Terms:
        """Return the sums over these rows."""
        drawn, taught = teach(self, call.frozen, rows, call)
        return FromStore(alpha=self.alpha, z_loss=self.z_loss, words_at_once=self.words_at_once)(
            model, TaughtRows(*rows[:5], drawn, taught), call
        )


@dataclass(frozen=True, kw_only=True)
class FromStore:
    """Learn from draws that lie in a store beside the rows."""

    alpha: float = 1.0
    z_loss: float = 0.0
    words_at_once: int = WORDS_AT_ONCE

    def __call__(self, model: Gemma3, rows: TaughtRows, call: Call) -> Terms:
        """Return the sums over these rows."""
        plain = Rows(*rows[:5])
        h_BTD = hidden(model, plain, call.layout, remat=call.remat)
        ids = jnp.concatenate([jnp.asarray(rows.drawn_BTC), jnp.asarray(rows.targets_BT)[..., None]], axis=-1)
        log_total, chosen = token_logits(h_BTD, head_rows(model), ids, words_at_once=self.words_at_once)
        taught = jnp.asarray(rows.taught_BTC)
        soft = weighted_sum(taught.sum(axis=-1) * log_total - (taught * chosen[..., :-1]).sum(axis=-1), plain)
        nll = weighted_sum(log_total - chosen[..., -1], plain)
        total = self.alpha * soft + (1 - self.alpha) * nll
        if self.z_loss:
            total = total + self.z_loss * weighted_sum(jnp.square(log_total), plain)
        # The entropy of what is taught is what the loss cannot fall below: the difference is the divergence.
        entropy = -jnp.where(taught > 0, taught * jnp.log(jnp.maximum(taught, 1e-30)), 0).sum(axis=-1)
        return Terms(total, num_targets(plain), {"nll": nll, "divergence": soft - weighted_sum(entropy, plain)})


def teach(settings: Distill, teacher: Gemma3, rows: Rows, call: Call) -> tuple[jax.Array, jax.Array]:
    """Return (drawn_BTC, taught_BTC) for every token of the rows."""
    teacher = jax.lax.stop_gradient(teacher)
    h_BTD = hidden(teacher, rows, call.layout, remat=False)
    head = head_rows(teacher)
    keys = jax.random.split(call.key, h_BTD.shape[0])

    def row(h_TD: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sampled_targets(key, linear(h_TD, head) / settings.temperature, settings.scheme, settings.draws)

    # Rows of different devices at once, one of each: R of them.
    R = 1 if call.layout is None else call.layout.plan.shape.rows
    placed = (lambda x: x) if call.layout is None else partial(_turn_on_devices, call.layout)

    def apart(x: jax.Array) -> jax.Array:
        return placed(jnp.moveaxis(x.reshape(R, -1, *x.shape[1:]), 1, 0))

    def together(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(placed(x), 0, 1).reshape(-1, *x.shape[2:])

    drawn, taught = jax.lax.map(lambda turn: jax.vmap(row)(*turn), (apart(h_BTD), apart(keys)))
    return together(drawn), together(taught)


def _turn_on_devices(layout: Layout, x: jax.Array) -> jax.Array:
    """x [turns, R, T, ...] (or the turns' keys) placed so that a device has the rows that are its own in the batch."""
    return layout.put(x, PartitionSpec(None, *ROWS) if x.ndim > 2 else PartitionSpec(None, ROWS[0]))


def check_teacher(student: TextConfig, teacher: TextConfig) -> None:
    """Raise ConfigError unless the teacher speaks the student's words."""
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            "teacher and student must have one vocabulary, got "
            f"{teacher.vocab_size:,} and {student.vocab_size:,} words.\nUse a teacher with the student's tokenizer."
        )


def frozen_model(model: Any, dtype: str) -> Gemma3:
    """Return a model whose matrices are in `dtype`, to be given to a run as `frozen`."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if x.ndim == 2 else jnp.float32), model)
