"""How well a model predicts a text: perplexity, and bits a byte, which compare models of different vocabularies too.

A text is cut into windows that do not overlap; each begins with <bos> and predicts all its tokens after it. So every
token counts once, and the first tokens of a window are predicted from little: lower figures need longer windows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, log

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gemworks.errors import ConfigError
from gemworks.model.gemma3 import Gemma3, full_batch

# T tokens of a window, R rows of logits at a time, V vocabulary rows

# Bytes of logits at a time: 64 rows of 262,144 words.
_LOGIT_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """`nll` is minus the summed natural logarithm of the probabilities of `tokens` tokens; `text_bytes` in UTF-8."""

    nll: float
    tokens: int
    text_bytes: int

    @property
    def perplexity(self) -> float:
        """exp of the mean over tokens."""
        return exp(self.nll / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """The text's length in bits under the model, over its length in bytes."""
        return self.nll / log(2) / self.text_bytes


def measure(
    model: Gemma3,
    ids: Sequence[int],
    *,
    bos_id: int,
    text_bytes: int,
    window: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Return the perplexity of a text of `ids`, without <bos>. `progress(tokens_done, tokens)` follows every window."""
    if not ids:
        raise ConfigError("the text must have at least one token, and it has none.")
    window = min(window, len(ids) + 1, model.config.max_positions)
    total = 0.0
    for at in range(0, len(ids), window - 1):
        piece = ids[at : at + window - 1]
        padded = np.zeros(window, np.int32)
        padded[0], padded[1 : len(piece) + 1] = bos_id, piece
        total += float(np.asarray(_negative_logprobs(model, padded))[: len(piece)].sum(dtype=np.float64))
        if progress:
            progress(at + len(piece), len(ids))
    return Perplexity(nll=total, tokens=len(ids), text_bytes=text_bytes)


@eqx.filter_jit
def _negative_logprobs(model: Gemma3, ids_T: np.ndarray) -> jax.Array:
    """Return -log p(ids[t + 1] | ids[:t + 1]) for every t but the last; the tail of a padded window is meaningless."""
    h_TD, _ = model(full_batch(jnp.asarray(ids_T), model.config))
    targets = jnp.asarray(ids_T)[1:]
    count = targets.shape[0]
    R = max(1, min(count, _LOGIT_BYTES // (4 * model.config.vocab_size)))
    turns = -(-count // R)
    h = jnp.pad(h_TD[:-1], ((0, turns * R - count), (0, 0))).reshape(turns, R, -1)
    targets = jnp.pad(targets, (0, turns * R - count)).reshape(turns, R)

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits_RV = model.logits(pair[0])
        chosen_R = jnp.take_along_axis(logits_RV, pair[1][:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits_RV, axis=-1) - chosen_R

    return jax.lax.map(one, (h, targets)).reshape(-1)[:count]
