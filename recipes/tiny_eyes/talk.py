"""Conversations about pictures, each a pure function of a random source.

A conversation has one picture, or now and then a second one later; text questions come before and between. The picture
stands before the question's words as the command line puts it, or behind them.
"""

import random
from typing import Any, NamedTuple

from recipes.tiny_eyes.questions import ask, no_picture
from recipes.tiny_eyes.scenes import Scene
from recipes.tiny_standin.phrasing import Exchange
from recipes.tiny_standin.talk import conversation

IMAGE = {"type": "image"}  # a place for a picture, in messages that are rendered with tiles of an album

_BEHIND = 0.15  # share of pictures that come after the words
_TEXT_FIRST, _TEXT_BETWEEN, _SECOND_PICTURE = 0.08, 0.06, 0.08


class Shown(NamedTuple):
    """Messages with places for images, and the scenes that stand there, by their number in an album."""

    messages: list[dict[str, Any]]
    scenes: list[int]


def conversation_about(rng: random.Random, scenes: list[Scene]) -> Shown:
    """One to three questions about a scene drawn from `scenes`."""
    messages: list[dict[str, Any]] = []
    if rng.random() < _TEXT_FIRST:
        messages += conversation(rng, 1)
    number = rng.randrange(len(scenes))
    shown = [number]
    messages += with_picture(rng, ask(rng, scenes[number]))
    for _ in range(rng.choices((0, 1, 2), weights=(45, 35, 20))[0]):
        draw = rng.random()
        if draw < _TEXT_BETWEEN:
            messages += [m for m in conversation(rng, 1) if m["role"] != "system"]
        elif draw < _TEXT_BETWEEN + _SECOND_PICTURE:
            number = rng.randrange(len(scenes))
            shown.append(number)
            messages += with_picture(rng, ask(rng, scenes[number]))
        else:
            messages += plain(ask(rng, scenes[number]))
    return Shown(messages, shown)


def blind_conversation(rng: random.Random) -> list[dict[str, Any]]:
    """A question about a picture where there is none, after other talk or not."""
    before = conversation(rng, 1) if rng.random() < 0.3 else []
    return [*before, *plain(no_picture(rng))]


def with_picture(rng: random.Random, exchange: Exchange) -> list[dict[str, Any]]:
    """A question with a picture, and its answer."""
    text = {"type": "text", "text": exchange.user}
    content = [text, IMAGE] if rng.random() < _BEHIND else [IMAGE, text]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": exchange.answer}]


def plain(exchange: Exchange) -> list[dict[str, Any]]:
    """A question without a picture, and its answer."""
    return [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.answer}]
