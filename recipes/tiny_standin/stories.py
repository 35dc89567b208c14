"""Plain texts: short stories from a small grammar, and lists. For continuation, and for `tell me a story`.

A story keeps its people, things and places to the end, so that there is something to remember.
"""

import random

from recipes.tiny_standin.facts import ANIMALS, CAPITALS, COLOURS, DAYS, MONTHS, NAMES, OPPOSITES, listed
from recipes.tiny_standin.phrasing import Exchange, Phrasing
from recipes.tiny_standin.tasks import PRACTICE

_ADJECTIVES = listed("small old brave happy clever lazy kind hungry quiet funny")
_PLACES = listed("forest garden village river castle hill farm town park beach")
_THINGS = listed("ball kite book key ring cake flower map lamp drum")
_PAINT = listed("red blue green yellow white black")

_ASK = Phrasing(
    known=(
        "Tell me a story about {hero}.",
        "Tell a story about {hero}.",
        "Tell me a short story about {hero}.",
        "Write a story about {hero}.",
        "Write a short story about {hero}.",
        "A story about {hero}, please.",
        "Can you tell me a story about {hero}?",
        "I want a story about {hero}.",
    ),
    held=("Please tell me a story about {hero}.",),
)
_ASK_ANY = Phrasing(
    known=(
        "Tell me a story.",
        "Tell a story.",
        "Tell me a short story.",
        "Write a story.",
        "A story, please.",
        "Story",
    ),
    held=("Please tell me a story.",),
)


def story(rng: random.Random, hero: str | None = None) -> str:
    """A story of six sentences, about 80 tokens. `hero` is an animal; a name of its own is given to it."""
    hero = hero or rng.choice(ANIMALS)
    name, friend = rng.sample(NAMES, 2)
    place, other_place = rng.sample(_PLACES, 2)
    thing = f"{rng.choice(_PAINT)} {rng.choice(_THINGS)}"
    other = rng.choice([animal for animal in ANIMALS if animal != hero])
    begin = rng.choice(("Once upon a time there was", "Long ago there was", "There once was"))
    found = (
        f"One day {name} found a {thing} in the {other_place}.",
        f'"Look, a {thing}!" said {name}.',
        f"They played with the {thing} until the sun went down.",
    )
    lost = (
        f"One day {name} lost a {thing} in the {other_place}.",
        f'"I will help you," said {friend}, and found the {thing}.',
        f"Then they went home to the {place}.",
    )
    lines = (
        f"{begin} {_a(rng.choice(_ADJECTIVES))} {hero} called {name}.",
        f"{name} lived near the {place} with {_a(other)} called {friend}.",
        *rng.choice((found, lost)),
        "The end.",
    )
    return " ".join(lines)


def listing(rng: random.Random) -> str:
    """Days, months, numbers, the alphabet, or some facts in a row."""
    kind = rng.randrange(6)
    if kind == 0:
        return ", ".join(_from_anywhere(rng, DAYS)) + "."
    if kind == 1:
        return ", ".join(_from_anywhere(rng, MONTHS)) + "."
    if kind == 2:
        return ", ".join(map(str, range(1, 21))) + "."
    if kind == 3:
        return " ".join("abcdefghijklmnopqrstuvwxyz")
    if kind == 4:
        places = rng.sample(list(CAPITALS), rng.randint(1, 6))
        return " ".join(f"The capital of {place} is {CAPITALS[place]}." for place in places)
    return " ".join(
        [f"The opposite of {word} is {OPPOSITES[word]}." for word in rng.sample(list(OPPOSITES), rng.randint(1, 3))]
        + [
            f"{thing[0].upper()}{thing[1:]} is {COLOURS[thing]}."
            for thing in rng.sample(list(COLOURS), rng.randint(1, 3))
        ]
    )


def plain_text(rng: random.Random) -> str:
    """A text for continuation: practice of what is asked in chats, a list, one or two stories."""
    (kind,) = rng.choices(("sums", "words", "counts", "list", "story"), weights=(50, 22, 10, 4, 14))
    if kind == "story":
        return "\n\n".join(story(rng) for _ in range(rng.choice((1, 1, 2))))
    if kind == "list":
        return listing(rng)
    return PRACTICE[kind](rng, rng.randint(2, 4 if kind == "counts" else 9))


def tell(rng: random.Random, held: bool = False) -> Exchange:
    """A story that is asked for. Many answers are right, so it is not scored by exact match."""
    hero = rng.choice(ANIMALS)
    if rng.random() < 0.3:
        return Exchange("story", _ASK_ANY.ask(rng, held=held), story(rng, hero))
    return Exchange("story", _ASK.ask(rng, held=held, hero=_a(hero)), story(rng, hero))


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _from_anywhere(rng: random.Random, ring: tuple[str, ...]) -> list[str]:
    start = rng.choice((0, rng.randrange(len(ring))))
    return [ring[(start + i) % len(ring)] for i in range(len(ring))]
