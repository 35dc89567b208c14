"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): what is better, without a reward model.

    r(y) = beta (ln p(y | x) - ln p_ref(y | x))
    loss = mean over the pairs of -(1 - e) ln sigmoid(r(better) - r(worse)) - e ln sigmoid(r(worse) - r(better))

ln p is summed over the answer's tokens. p_ref is the model before the first step: with an adapter that is the frozen
base, so no second model is held. What it says of the data does not change, and is computed once, before the run. e is
the share of pairs that are taken to be labelled the wrong way round (Mitchell 2023); 0 is the paper's loss.

A row holds whole pairs (data/chat_rows.py): segment 2p + 1 is the better text of pair p, 2p + 2 the worse.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gemworks.data.chat_rows import PairRows, PairSource
from gemworks.errors import ConfigError
from gemworks.model.gemma3 import Gemma3
from gemworks.ops.train.head import WORDS_AT_ONCE, token_logits
from gemworks.train.forward import head_rows, hidden
from gemworks.train.loss import Call, Terms

# B rows, T tokens a row, P pairs a row, Q = 2 P segments


@dataclass(frozen=True, kw_only=True)
class DPO:
    """Prefer the better of two answers. beta: how dear it is to leave the reference; the paper's is 0.1 to 0.5."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    words_at_once: int = WORDS_AT_ONCE

    def __post_init__(self):
        if self.beta <= 0:
            raise ConfigError(f"beta of DPO must be greater than 0, got {self.beta}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"label_smoothing must be at least 0 and less than 0.5, got {self.label_smoothing}.")

    def __call__(self, model: Gemma3, rows: PairRows, call: Call) -> Terms:
        """Return the sums over the pairs of these rows."""
        ours_BQ = answer_log_probs(model, rows, call, words_at_once=self.words_at_once)
        reward_BQ = self.beta * (ours_BQ - jnp.asarray(rows.reference_BQ))
        better_BP, worse_BP = reward_BQ[:, 0::2], reward_BQ[:, 1::2]
        counts_BP = jnp.arange(better_BP.shape[1]) < jnp.asarray(rows.pairs_B)[:, None]
        margin_BP = better_BP - worse_BP
        e = self.label_smoothing
        loss_BP = -(1 - e) * jax.nn.log_sigmoid(margin_BP) - e * jax.nn.log_sigmoid(-margin_BP)

        def over_pairs(x_BP: jax.Array) -> jax.Array:
            return jnp.where(counts_BP, x_BP, 0).sum()

        more = {
            "accuracy": over_pairs((margin_BP > 0).astype(jnp.float32)),
            "margin": over_pairs(margin_BP),
            "reward_better": over_pairs(better_BP),
            "reward_worse": over_pairs(worse_BP),
        }
        return Terms(over_pairs(loss_BP), over_pairs(jnp.ones_like(loss_BP)), more)


def answer_log_probs(model: Gemma3, rows: PairRows, call: Call, *, words_at_once: int = WORDS_AT_ONCE) -> jax.Array:
    """Return fp32 [B, Q]: ln p of the learned tokens of each segment of each row, summed; 0 where there is none."""
    h_BTD = hidden(model, rows, call.layout, remat=call.remat)  # type: ignore[arg-type]  # the fields of Rows, and more
    ids_BT1 = jnp.asarray(rows.targets_BT)[..., None]
    log_total_BT, chosen_BT1 = token_logits(h_BTD, head_rows(model), ids_BT1, words_at_once=words_at_once)
    is_learned_BT = jnp.asarray(rows.loss_mask_BT) > 0
    log_p_BT = jnp.where(is_learned_BT, chosen_BT1[..., 0] - log_total_BT, 0)
    Q = rows.reference_BQ.shape[1]
    sums = jax.vmap(lambda x_T, segment_T: jax.ops.segment_sum(x_T, segment_T, Q + 1))
    return sums(log_p_BT, jnp.asarray(rows.segment_BT))[:, 1:]


def reference_log_probs(
    model: Gemma3, source: PairSource, *, rows_at_once: int = 1, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Return fp32 [pairs, 2]: what `model` says of the better and the worse answer of every pair of the source."""
    found = np.zeros((len(source.texts) // 2, 2), np.float32)

    @jax.jit
    def computed(model: Gemma3, rows: PairRows) -> jax.Array:
        return answer_log_probs(model, rows, Call(jax.random.key(0), remat=False))

    for first in range(0, source.num_rows, rows_at_once):
        numbers = list(range(first, min(first + rows_at_once, source.num_rows)))
        padded = numbers + numbers[-1:] * (rows_at_once - len(numbers))  # one shape, compiled once
        sums_BQ = np.asarray(computed(model, source.rows(padded)))
        for number, sums_Q in zip(numbers, sums_BQ, strict=False):
            documents = source.documents(number)
            found[documents] = sums_Q[: 2 * documents.size].reshape(-1, 2)
        if progress is not None:
            progress(min(first + rows_at_once, source.num_rows), source.num_rows)
    return found
