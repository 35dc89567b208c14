"""The training texts as rows: a pure function of the seed, made anew by every run in a few seconds."""

import random
from collections.abc import Iterator

from gemworks.tokenizer.tokenizer import Tokenizer
from recipes.tiny_standin import stories, talk
from recipes.tiny_standin.packing import Rows, Sample, chat_sample, pack, shuffled, text_sample
from recipes.tiny_standin.recipe import Recipe

_TOKENIZER_TALKS, _TOKENIZER_TEXTS = 8000, 800
_PLAIN_SHARE = {"row": 0.27, "long_row": 0.3}  # of the texts; the others are conversations
_LONG_TALK = (6, 24)  # turns of a conversation in a long row, at least and at most


def tokenizer_texts(seed: int) -> Iterator[str]:
    """Texts to train the tokenizer on: what stands between two control tokens, and plain texts."""
    rng = random.Random(f"{seed} tokenizer")
    for _ in range(_TOKENIZER_TALKS):
        for message in talk.conversation(rng, talk.num_turns(rng)):
            yield ("model\n" if message["role"] == "assistant" else "user\n") + message["content"]
    for _ in range(_TOKENIZER_TEXTS):
        yield stories.plain_text(rng)


def training_rows(tokenizer: Tokenizer, recipe: Recipe) -> tuple[Rows, Rows]:
    """(short rows, long rows), enough for every step to see new ones. Texts that are too long are left out."""
    long_steps = recipe.steps // recipe.long_every
    return (
        _rows(tokenizer, recipe, "row", recipe.row, (recipe.steps - long_steps) * recipe.batch_tokens),
        _rows(tokenizer, recipe, "long_row", recipe.long_row, long_steps * recipe.long_tokens),
    )


def held_texts(tokenizer: Tokenizer, seed: int, number: int) -> list[Sample]:
    """Plain texts from the same grammar that no training text equals but by chance."""
    rng = random.Random(f"{seed} held texts")
    return [text_sample(tokenizer, stories.story(rng)) for _ in range(number)]


def _rows(tokenizer: Tokenizer, recipe: Recipe, kind: str, length: int, num_tokens: int) -> Rows:
    rng = random.Random(f"{recipe.seed} {kind}")
    is_long = kind == "long_row"
    needed = -(-num_tokens // length)
    samples: list[Sample] = []
    total = 0
    while total < needed * length:
        if rng.random() < _PLAIN_SHARE[kind]:
            sample = text_sample(tokenizer, stories.plain_text(rng))
        else:
            turns = rng.randint(*_LONG_TALK) if is_long and rng.random() < 0.6 else talk.num_turns(rng)
            sample = chat_sample(tokenizer, talk.conversation(rng, turns))
        if len(sample.ids) <= length:
            samples.append(sample)
            total += len(sample.ids)
    rows, _ = pack(samples, length)
    return Rows(*(array[:needed] for array in shuffled(rows, recipe.seed)))
