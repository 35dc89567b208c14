"""How often `tiny` answers what it never saw, exactly.

An answer counts if every token of it and its <end_of_turn> is the likeliest one given those before it. That is what
greedy generation does, so one forward pass over question and right answer decides it; nothing is generated.
"""

from collections.abc import Sequence

import numpy as np

from gemworks.model.gemma3 import Gemma3
from gemworks.tokenizer.tokenizer import Tokenizer
from recipes.tiny_standin.corpus import held_texts
from recipes.tiny_standin.loss import mean_loss_jit, predicted
from recipes.tiny_standin.packing import Rows, Sample, chat_sample, pack
from recipes.tiny_standin.talk import held_out

_ROW, _ROWS_AT_ONCE = 256, 16


def exact_match(model: Gemma3, tokenizer: Tokenizer, *, seed: int, per_task: int) -> dict[str, float]:
    """Task -> share of `per_task` held-out questions whose whole answer is right, 0 to 1."""
    questions = held_out(seed, per_task)
    samples = [
        chat_sample(tokenizer, messages, last_only=True)
        for conversations in questions.values()
        for messages in conversations
    ]
    right = np.array(are_right(model, samples)).reshape(len(questions), per_task)
    return dict(zip(questions, right.mean(axis=1).tolist(), strict=True))


def are_right(model: Gemma3, samples: Sequence[Sample]) -> list[bool]:
    """Whether greedy generation gives every target of each sample, whose targets must be one answer."""
    rows, places = pack(samples, _ROW)
    likeliest_BL = np.concatenate([np.asarray(predicted(model, part)) for part in _parts(rows)])[: len(rows.ids_BL)]
    is_wrong_BL = (likeliest_BL != rows.next_BL) & (rows.weight_BL > 0)
    return [not (is_wrong_BL[row] & (rows.segment_BL[row] == segment)).any() for row, segment in places]


def bits_per_byte(model: Gemma3, tokenizer: Tokenizer, *, seed: int, number: int = 64) -> float:
    """Cross-entropy of new stories from the same grammar, in bits per byte of text."""
    samples = held_texts(tokenizer, seed, number)
    rows, _ = pack(samples, _ROW)
    nats = sum(float(mean_loss_jit(model, part)) * float(part.weight_BL.sum()) for part in _parts(rows))
    num_bytes = sum(len(tokenizer.decode(sample.ids).encode()) for sample in samples)
    return nats / np.log(2) / num_bytes


def _parts(rows: Rows) -> list[Rows]:
    """The rows in batches of one size, the last filled up with empty rows."""

    def padded(array: np.ndarray) -> np.ndarray:
        missing = -len(array) % _ROWS_AT_ONCE
        return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])

    arrays = [padded(array) for array in rows]
    return [Rows(*(array[i : i + _ROWS_AT_ONCE] for array in arrays)) for i in range(0, len(arrays[0]), _ROWS_AT_ONCE)]
