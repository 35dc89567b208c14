"""Conversations about pictures as rows of tokens, and the soft tokens that stand in them.

    ids    ... \\n\\n\\n <start_of_image> [16 soft tokens] <end_of_image> \\n\\n What shape ...
    soft    .     .          .            7120 ... 7135         .         .     .         row of the album's soft tokens
    see     0     0          0            last of them          0         0     0         as in serving: spec 5.3

Prompts are rendered by the function that serving calls, Pan & Scan's wording included.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gemworks.tokenizer.images import render_chat_images
from gemworks.tokenizer.tokenizer import Tokenizer
from recipes.tiny_eyes import talk
from recipes.tiny_eyes.album import Album
from recipes.tiny_standin.packing import Rows, Sample, answers_of, chat_sample, pack

_BLIND = 0.06  # share of conversations that ask about a picture that is not there


class PictureSample(NamedTuple):
    """A conversation, and (its first token, the album's tile) of every image span."""

    sample: Sample
    spans: list[tuple[int, int]]


class PictureRows(NamedTuple):
    """Rows with pictures. soft_BL: the album's soft token that stands in a token's place, -1 for none.

    see_BL: the last position of its text that a token may see; what is below the token's own means nothing. Both int32.
    """

    rows: Rows
    soft_BL: np.ndarray
    see_BL: np.ndarray


def picture_sample(
    tokenizer: Tokenizer, shown: talk.Shown, album: Album, tokens_per_image: int, *, last_only: bool = False
) -> PictureSample:
    """The conversation as it is served; every answer is a target, or the last one only."""
    prompt = render_chat_images(
        tokenizer,
        shown.messages,
        [album.num_crops(scene) for scene in shown.scenes],
        tokens_per_image=tokens_per_image,
        add_generation_prompt=False,
    )
    # Spans count whole and crops in the order of the prompt, as the album keeps the tiles of a scene.
    tiles = [tile for scene in shown.scenes for tile in range(album.tiles_of[scene], album.tiles_of[scene + 1])]
    sample = Sample(prompt.ids, answers_of(tokenizer, prompt.ids, last_only=last_only))
    return PictureSample(sample, [(span.start, tiles[span.image]) for span in prompt.spans])


def picture_rows(
    tokenizer: Tokenizer, album: Album, *, seed: str, number: int, length: int, tokens_per_image: int
) -> PictureRows:
    """`number` rows of `length` tokens of conversations about the album, those without a picture among them."""
    rng = random.Random(seed)
    samples: list[PictureSample] = []
    total = 0
    while total < number * length:
        if rng.random() < _BLIND:
            one = PictureSample(chat_sample(tokenizer, talk.blind_conversation(rng)), [])
        else:
            shown = talk.conversation_about(rng, album.scenes)
            one = picture_sample(tokenizer, shown, album, tokens_per_image)
        if len(one.sample.ids) <= length:
            samples.append(one)
            total += len(one.sample.ids)
    rows = packed(samples, length, tokens_per_image)
    order = np.random.default_rng(len(rows.soft_BL)).permutation(len(rows.soft_BL))[:number]
    return PictureRows(Rows(*(array[order] for array in rows.rows)), rows.soft_BL[order], rows.see_BL[order])


def packed(samples: Sequence[PictureSample], length: int, tokens_per_image: int) -> PictureRows:
    """Put the samples into rows, the first of them first where there is room."""
    rows, places = pack([one.sample for one in samples], length)
    soft, see = np.full_like(rows.ids_BL, -1), np.zeros_like(rows.ids_BL)
    for one, (row, segment) in zip(samples, places, strict=True):
        begin = int((rows.segment_BL[row] == segment).argmax())
        for start, tile in one.spans:
            span = slice(begin + start, begin + start + tokens_per_image)
            soft[row, span] = tile * tokens_per_image + np.arange(tokens_per_image)
            see[row, span] = start + tokens_per_image - 1  # positions restart in every text of a row
    return PictureRows(rows, soft, see)


def without_pictures(rows: Rows) -> PictureRows:
    """Rows of texts alone, to stand in one batch with others."""
    return PictureRows(rows, np.full_like(rows.ids_BL, -1), np.zeros_like(rows.ids_BL))


def joined(first: PictureRows, second: PictureRows) -> PictureRows:
    """The rows of both, of one length."""
    rows = Rows(*(np.concatenate(pair) for pair in zip(first.rows, second.rows, strict=True)))
    return PictureRows(
        rows, np.concatenate([first.soft_BL, second.soft_BL]), np.concatenate([first.see_BL, second.see_BL])
    )
