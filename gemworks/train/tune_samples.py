"""What the model says while it is tuned: the likeliest answers to a few prompts, beside those of the data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

from gemworks.data.chat_rows import Texts
from gemworks.tokenizer.tokenizer import Tokenizer
from gemworks.train.adapters.base import Base
from gemworks.train.forward import Rows
from gemworks.train.on_policy import OnPolicy, answered
from gemworks.train.recipe import Execution, Recipe
from gemworks.train.trained import trained_model

_MOST_PROMPT, _MOST_ANSWER, _STEP = 512, 48, 32  # tokens

# The largest logit wins: Gumbel noise of about 10 beside differences of logits times 10^6.
_GREEDY = 1e-6


class Sample(NamedTuple):
    """A prompt, as ids and to read, and what the data says after it."""

    ids: tuple[int, ...]
    prompt: str
    wanted: str


def choose_samples(texts: Texts, count: int, tokenizer: Tokenizer, *, group: int, vocab: int) -> list[Sample]:
    """Return the first `count` prompts that are not too long: conversations up to their first learned answer."""
    found: list[Sample] = []
    for number in range(0, len(texts), group):
        if len(found) == count:
            break
        here = slice(int(texts.starts[number]), int(texts.starts[number + 1]))
        ids, learned = texts.ids_N[here], texts.learned_N[here]
        first = int(np.argmax(learned))
        if first > _MOST_PROMPT:
            continue
        after = np.flatnonzero(~learned[first:])
        answer = ids[first : first + int(after[0])] if after.size else ids[first:]
        words = [i for i in ids[:first].tolist() if i < vocab]
        found.append(Sample(tuple(ids[:first].tolist()), tokenizer.decode(words), tokenizer.decode(answer.tolist())))
    return found


class Speaker:
    """Answers samples with a recipe's model; compiled once."""

    def __init__(self, recipe: Recipe, samples: Sequence[Sample], tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        longest = max(len(one.ids) for one in samples) + _MOST_ANSWER
        self._rows = _rows_of(samples, -(-longest // _STEP) * _STEP)
        ends = tuple(i for i in (tokenizer.eos_id, tokenizer.end_of_turn_id) if i is not None)
        self._computed = _computed(replace(recipe, execution=Execution()), ends)

    def answers(self, params: Mapping[str, Any], base: Base | None) -> list[str]:
        """Return what the model says to each sample, at most 48 tokens and those that fill a row."""
        rows = jax.device_get(self._computed(dict(params), base, self._rows))
        said = [ids_T[mask_T > 0].tolist() for ids_T, mask_T in zip(rows.targets_BT, rows.loss_mask_BT, strict=True)]
        # A table has more rows than the tokenizer has pieces; a model that was not trained yet may say one.
        return [self._tokenizer.decode(i for i in ids if i < self._tokenizer.size) for ids in said]


@lru_cache(maxsize=4)
def _computed(recipe: Recipe, ends: tuple[int, ...]) -> Callable[[Any, Base | None, Rows], Rows]:
    settings = OnPolicy(temperature=_GREEDY, prompt=1, end=ends)

    @jax.jit
    def computed(params: Mapping[str, Any], base: Base | None, rows: Rows) -> Rows:
        return answered(settings, trained_model(recipe, params, base), rows, jax.random.key(0))

    return computed


def _rows_of(samples: Sequence[Sample], T: int) -> Rows:
    shape = len(samples), T
    ids, one = np.zeros(shape, np.int32), np.ones(shape, np.int32)
    mask = np.zeros(shape, np.float32)
    for b, sample in enumerate(samples):
        k = len(sample.ids)
        ids[b, :k] = sample.ids
        mask[b, k - 1 : k - 1 + _MOST_ANSWER] = 1
    position = np.broadcast_to(np.arange(T, dtype=np.int32), shape)
    return Rows(ids, np.zeros(shape, np.int32), mask, one, np.ascontiguousarray(position))
