"""Texts as token ids with a loss mask, packed into rows of one length.

    ids      <bos> <start_of_turn> user \\n Hi <end_of_turn> \\n <start_of_turn> model \\n Hello ! <end_of_turn> \\n
    target     .         .          .   .  .       .         .        .          .    .    1    1       1        .

A row holds several texts; `segment` says which a token belongs to, 0 for what fills the end. The target of a position
is the next token, so the last token of a text has none.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gemworks.tokenizer.chat import render_chat, render_plain
from gemworks.tokenizer.tokenizer import Tokenizer
from recipes.tiny_standin.talk import Message


class Sample(NamedTuple):
    """One text. is_target[i]: ids[i] is to be predicted from what stands before it."""

    ids: list[int]
    is_target: list[bool]


class Rows(NamedTuple):
    """B rows of L tokens, int32. `weight_BL` is 1 where the next token counts, in fp32."""

    ids_BL: np.ndarray
    segment_BL: np.ndarray
    next_BL: np.ndarray
    weight_BL: np.ndarray


def chat_sample(tokenizer: Tokenizer, messages: Sequence[Message], *, last_only: bool = False) -> Sample:
    """A conversation as it is served; every answer with its <end_of_turn> is a target, or the last one only."""
    ids = render_chat(tokenizer, messages, add_generation_prompt=False)
    return Sample(ids, answers_of(tokenizer, ids, last_only=last_only))


def answers_of(tokenizer: Tokenizer, ids: list[int], *, last_only: bool = False) -> list[bool]:
    """Which tokens of a conversation are answers and their <end_of_turn>, or the last answer only."""
    start, end = tokenizer.chat_ids
    header = [start, *tokenizer.encode("model\n")]
    is_target = [False] * len(ids)
    i = 0
    while i < len(ids):
        if ids[i : i + len(header)] == header:
            i += len(header)
            last = ids.index(end, i)
            if last_only:
                is_target = [False] * len(ids)
            is_target[i : last + 1] = [True] * (last + 1 - i)
            i = last
        i += 1
    return is_target


def text_sample(tokenizer: Tokenizer, text: str) -> Sample:
    """A plain text that ends with <eos>; all of it but <bos> is a target."""
    ids = [*render_plain(tokenizer, text), tokenizer.eos_id]
    return Sample(ids, [False] + [True] * (len(ids) - 1))


def pack(samples: Iterable[Sample], length: int, *, open_rows: int = 64) -> tuple[Rows, list[tuple[int, int]]]:
    """Put every sample whole into the fullest of the last `open_rows` rows that has room for it.

    Also return (row, segment) of every sample.
    """
    rows: list[list[Sample]] = []
    room: list[int] = []
    places: list[tuple[int, int]] = []
    for sample in samples:
        needed = len(sample.ids)
        assert needed <= length, f"a text of {needed} tokens in rows of {length}"
        recent = range(max(0, len(rows) - open_rows), len(rows))
        fitting = [i for i in recent if room[i] >= needed]
        if fitting:
            i = min(fitting, key=room.__getitem__)
        else:
            i = len(rows)
            rows.append([])
            room.append(length)
        rows[i].append(sample)
        room[i] -= needed
        places.append((i, len(rows[i])))
    return _arrays(rows, length), places


def shuffled(rows: Rows, seed: int) -> Rows:
    """The same rows in another order."""
    order = list(range(len(rows.ids_BL)))
    random.Random(seed).shuffle(order)
    return Rows(*(array[order] for array in rows))


def _arrays(rows: Sequence[Sequence[Sample]], length: int) -> Rows:
    shape = (len(rows), length)
    ids, segment, following = (np.zeros(shape, np.int32) for _ in range(3))
    weight = np.zeros(shape, np.float32)
    for r, row in enumerate(rows):
        at = 0
        for number, sample in enumerate(row, 1):
            n = len(sample.ids)
            ids[r, at : at + n] = sample.ids
            segment[r, at : at + n] = number
            following[r, at : at + n - 1] = sample.ids[1:]
            weight[r, at : at + n - 1] = sample.is_target[1:]
            at += n
    return Rows(ids, segment, following, weight)
