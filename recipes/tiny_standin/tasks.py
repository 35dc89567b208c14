"""Questions with one right answer: sums, capitals, opposites, colours, days and months, counting, spelling, repeating.

Every function takes (rng, held) and returns an Exchange; `held` asks for an item or a wording kept from training.
`FOLLOW_UPS` are second questions that only make sense after a first ("And of Spain?").
"""

import random
from collections.abc import Callable, Sequence

from recipes.tiny_standin.facts import (
    ANIMALS,
    CAPITALS,
    COLOURS,
    DAYS,
    LENGTHS,
    MONTH_DAYS,
    MONTHS,
    OPPOSITES,
    UNKNOWN_PLACES,
    WORDS,
)
from recipes.tiny_standin.phrasing import Exchange, Phrasing, is_held_pair, is_held_range, is_held_word

TOP = 99  # largest number that is added or subtracted

_PLUS = Phrasing(
    known=(
        "What is {a} + {b}?",
        "{a} + {b}",
        "{a}+{b}",
        "{a} + {b} = ?",
        "{a} + {b} =",
        "What is {a}+{b}?",
        "What is {a} plus {b}?",
        "What's {a} + {b}?",
        "{a} plus {b}?",
        "How much is {a} + {b}?",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "Please add {a} and {b}.",
        "Calculate {a} + {b}.",
        "Tell me {a} + {b}.",
        "Tell me how much {a} plus {b} is.",
        "Work out {a} + {b}.",
        "Do you know what {a} + {b} is?",
        "Can you add {a} and {b}?",
        "What is the sum of {a} and {b}?",
        "I have {a} apples and get {b} more. How many do I have?",
    ),
    held=("Tell me what {a} + {b} is.", "Compute {a} plus {b}."),
)
_MINUS = Phrasing(
    known=(
        "What is {a} - {b}?",
        "{a} - {b}",
        "{a}-{b}",
        "{a} - {b} = ?",
        "{a} - {b} =",
        "What is {a}-{b}?",
        "What is {a} minus {b}?",
        "What's {a} - {b}?",
        "{a} minus {b}?",
        "How much is {a} - {b}?",
        "How much is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Please take {b} from {a}.",
        "Calculate {a} - {b}.",
        "Tell me {a} - {b}.",
        "Tell me how much {a} minus {b} is.",
        "Work out {a} - {b}.",
        "Do you know what {a} - {b} is?",
        "Can you subtract {b} from {a}?",
        "I have {a} apples and give {b} away. How many do I have?",
    ),
    held=("Tell me what {a} - {b} is.", "Compute {a} minus {b}."),
)
_CAPITAL = Phrasing(
    known=(
        "What is the capital of {place}?",
        "What's the capital of {place}?",
        "Capital of {place}?",
        "The capital of {place}?",
        "Name the capital of {place}.",
        "Tell me the capital of {place}.",
        "What is the capital city of {place}?",
        "Which city is the capital of {place}?",
        "Do you know the capital of {place}?",
        "Can you tell me the capital of {place}?",
    ),
    held=("Please name the capital city of {place}.", "I would like to know the capital of {place}."),
)
_COUNTRY = Phrasing(
    known=(
        "{city} is the capital of which country?",
        "Which country has the capital {city}?",
        "What country is {city} the capital of?",
        "Of which country is {city} the capital?",
    ),
    held=("{city} is the capital of what country?",),
)
_OPPOSITE = Phrasing(
    known=(
        "What is the opposite of {word}?",
        "What's the opposite of {word}?",
        "Opposite of {word}?",
        "The opposite of {word}?",
        "Tell me the opposite of {word}.",
        "Name the opposite of {word}.",
        "What is the contrary of {word}?",
        "Which word is the opposite of {word}?",
        "Give me the opposite of {word}.",
    ),
    held=("Do you know the opposite of {word}?", "Please tell me the opposite of {word}."),
)
_COLOUR = Phrasing(
    known=(
        "What colour is {thing}?",
        "What color is {thing}?",
        "Which colour is {thing}?",
        "Which color does {thing} have?",
        "What colour does {thing} have?",
        "What is the colour of {thing}?",
        "What is the color of {thing}?",
        "Colour of {thing}?",
        "Tell me the colour of {thing}.",
    ),
    held=("Can you tell me what colour {thing} is?", "Tell me the color of {thing}."),
)
_AFTER = Phrasing(
    known=(
        "What comes after {one}?",
        "Which {kind} comes after {one}?",
        "What {kind} comes after {one}?",
        "What is the {kind} after {one}?",
        "Which {kind} follows {one}?",
        "Name the {kind} after {one}.",
    ),
    held=("Tell me the {kind} after {one}.",),
)
_BEFORE = Phrasing(
    known=(
        "What comes before {one}?",
        "Which {kind} comes before {one}?",
        "What {kind} comes before {one}?",
        "What is the {kind} before {one}?",
        "Name the {kind} before {one}.",
    ),
    held=("Tell me the {kind} before {one}.",),
)
_HOW_MANY = Phrasing(
    known=("How many {what}?", "How many {parts} are in {whole}?", "How many {parts} does {whole} have?"),
    held=("Tell me how many {parts} {whole} has.",),
)
_COUNT = Phrasing(
    known=(
        "Count from {first} to {last}.",
        "Please count from {first} to {last}.",
        "Can you count from {first} to {last}?",
        "Count {first} to {last}.",
        "Say the numbers from {first} to {last}.",
    ),
    held=("Now count from {first} to {last}.",),
)
_COUNT_TO = Phrasing(
    known=("Count to {last}.", "Please count to {last}.", "Can you count to {last}?", "Count up to {last}."),
    held=(),
)
_SPELL = Phrasing(
    known=(
        "Spell {word}.",
        "Spell the word {word}.",
        "How do you spell {word}?",
        "How is {word} spelled?",
        "Please spell {word}.",
        "Can you spell {word}?",
        'Spell "{word}".',
    ),
    held=("Please spell the word {word}.", "Spell {word} for me."),
)
_REPEAT = Phrasing(
    known=(
        "Repeat {text}.",
        "Repeat: {text}",
        "Repeat after me: {text}",
        "Say {text}.",
        "Say: {text}",
        "Please say {text}.",
        "Please repeat: {text}",
        'Say "{text}".',
        'Repeat "{text}".',
    ),
    held=("Can you say {text}?", 'Please repeat "{text}".'),
)


def plus(rng: random.Random, held: bool = False) -> Exchange:
    """A sum of two numbers up to TOP."""
    a, b = _pair(rng, held)
    return Exchange("plus", _PLUS.ask(rng, held=held and rng.random() < 0.25, a=a, b=b), _sum(a, b), {"number": a + b})


def minus(rng: random.Random, held: bool = False) -> Exchange:
    """A difference of two numbers up to TOP; it may be negative."""
    a, b = _pair_to_subtract(rng, held)
    user = _MINUS.ask(rng, held=held and rng.random() < 0.25, a=a, b=b)
    return Exchange("minus", user, _difference(a, b), {"number": a - b})


def capital(rng: random.Random, held: bool = False) -> Exchange:
    """A country's capital, or that a place's capital is not known."""
    if not held and rng.random() < 0.12:
        place = rng.choice(UNKNOWN_PLACES) if rng.random() < 0.6 else made_up_word(rng).capitalize()
        user = _CAPITAL.ask(rng, lower_slots=False, place=place)
        return Exchange("capital", user, f"I do not know the capital of {place}.")
    place = rng.choice(list(CAPITALS))
    return Exchange("capital", _CAPITAL.ask(rng, held=held, place=place), _capital_of(place))


def country(rng: random.Random, held: bool = False) -> Exchange:
    """The country of a capital."""
    place = rng.choice(list(CAPITALS))
    city = CAPITALS[place]
    return Exchange("country", _COUNTRY.ask(rng, held=held, city=city), f"{city} is the capital of {place}.")


def opposite(rng: random.Random, held: bool = False) -> Exchange:
    """The opposite of a word."""
    word = rng.choice(list(OPPOSITES))
    return Exchange("opposite", _OPPOSITE.ask(rng, held=held, word=word), _opposite_of(word))


def colour(rng: random.Random, held: bool = False) -> Exchange:
    """The colour of a thing."""
    thing = rng.choice(list(COLOURS))
    return Exchange("colour", _COLOUR.ask(rng, held=held, thing=thing), _colour_of(thing))


def calendar(rng: random.Random, held: bool = False) -> Exchange:
    """The day or month before or after another."""
    kind, ring = rng.choice((("day", DAYS), ("month", MONTHS)))
    i = rng.randrange(len(ring))
    after = rng.random() < 0.6
    user = (_AFTER if after else _BEFORE).ask(rng, held=held, kind=kind, one=ring[i])
    return Exchange("calendar", user, *_next_to(ring, i, 1 if after else -1))


def how_many(rng: random.Random, held: bool = False) -> Exchange:
    """The length of a month, a week, a year ..."""
    if rng.random() < 0.6:
        month = rng.choice(MONTHS)
        slots = {"what": f"days are in {month}", "parts": "days", "whole": month}
        return Exchange("how_many", _HOW_MANY.ask(rng, held=held, **slots), f"{month} has {MONTH_DAYS[month]} days.")
    name = rng.choice(list(LENGTHS))
    parts, whole = name.split(" in ")
    slots = {"what": f"{parts} are there in {whole}", "parts": parts, "whole": whole}
    return Exchange("how_many", _HOW_MANY.ask(rng, held=held, **slots), LENGTHS[name])


def count(rng: random.Random, held: bool = False) -> Exchange:
    """Counting, up to 30 numbers in a row and up to TOP."""
    first, last = _range(rng, held)
    phrasing, reworded = (_COUNT_TO, False) if first == 1 else (_COUNT, held and rng.random() < 0.25)
    return Exchange("count", phrasing.ask(rng, held=reworded, first=first, last=last), _counted(first, last))


def spell(rng: random.Random, held: bool = False) -> Exchange:
    """A word's letters with hyphens between them."""
    word = _word(rng, held)
    user = _SPELL.ask(rng, held=held and rng.random() < 0.25, lower_slots=False, word=word)
    return Exchange("spell", user, _spelled(word))


def repeat(rng: random.Random, held: bool = False) -> Exchange:
    """One to four words said again."""
    text = " ".join(_word(rng, held) for _ in range(rng.choice((1, 1, 2, 3, 4))))
    user = _REPEAT.ask(rng, held=held and rng.random() < 0.25, lower_slots=False, text=text)
    return Exchange("repeat", user, text, {"text": text})


def _sums(rng: random.Random, number: int) -> str:
    return " ".join(
        _sum(*_pair(rng, held=False)) if rng.random() < 0.45 else _difference(*_pair_to_subtract(rng, held=False))
        for _ in range(number)
    )


def _words(rng: random.Random, number: int) -> str:
    """apple: a-p-p-l-e. or, as often, apple moon: apple moon."""
    lines = []
    for _ in range(number):
        word = _word(rng, held=False)
        text = " ".join([word, *(_word(rng, held=False) for _ in range(rng.randint(0, 2)))])
        lines.append(f"{word}: {_spelled(word)}." if rng.random() < 0.5 else f"{text}: {text}.")
    return " ".join(lines)


def _counts(rng: random.Random, number: int) -> str:
    ranges = (_range(rng, held=False) for _ in range(number))
    return " ".join(f"{first} to {last}: {_counted(first, last)}" for first, last in ranges)


# Plain texts of `number` exercises each, worded as the answers are: a chat spends 34 tokens on a sum, these 13.
PRACTICE: dict[str, Callable[[random.Random, int], str]] = {"sums": _sums, "words": _words, "counts": _counts}


def made_up_word(rng: random.Random) -> str:
    """Two or three syllables that mean nothing."""
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.randint(2, 3))) + rng.choice(
        ("", "", "n", "r", "s", "l", "t")
    )


def _after_sum(rng: random.Random, before: Exchange) -> Exchange | None:
    number, b = before.slots["number"], rng.randint(1, TOP if rng.random() < 0.5 else 9)
    if not 0 <= number <= TOP or is_held_pair(number, b):
        return None
    if rng.random() < 0.5:
        user = rng.choice(
            ("Plus {b}?", "Add {b}.", "Now add {b}.", "And plus {b}?", "And {b} more?", "plus {b}", "+ {b}")
        )
        return Exchange("plus", user.format(b=b), _sum(number, b), {"number": number + b})
    user = rng.choice(("Minus {b}?", "Subtract {b}.", "Now subtract {b}.", "And minus {b}?", "minus {b}", "- {b}"))
    return Exchange("minus", user.format(b=b), _difference(number, b), {"number": number - b})


def _after_capital(rng: random.Random, before: Exchange) -> Exchange:
    place = rng.choice(list(CAPITALS))
    user = rng.choice(("And of {}?", "And {}?", "What about {}?", "And the capital of {}?", "and {}", "of {}?"))
    return Exchange("capital", user.format(place), _capital_of(place))


def _after_opposite(rng: random.Random, before: Exchange) -> Exchange:
    word = rng.choice(list(OPPOSITES))
    user = rng.choice(("And of {}?", "And {}?", "What about {}?", "And the opposite of {}?", "and {}"))
    return Exchange("opposite", user.format(word), _opposite_of(word))


def _after_colour(rng: random.Random, before: Exchange) -> Exchange:
    thing = rng.choice(list(COLOURS))
    user = rng.choice(("And {}?", "What about {}?", "And what colour is {}?", "and {}"))
    return Exchange("colour", user.format(thing), _colour_of(thing))


def _after_calendar(rng: random.Random, before: Exchange) -> Exchange:
    ring = DAYS if before.slots["one"] in DAYS else MONTHS
    i, step = ring.index(before.slots["one"]), before.slots["step"]
    word = "after" if step > 0 else "before"
    user = rng.choice((f"And {word} that?", f"And {word} {ring[i]}?", f"What comes {word} that?", f"and {word} that"))
    return Exchange("calendar", user, *_next_to(ring, i, step))


def _after_spell(rng: random.Random, before: Exchange) -> Exchange:
    word = _word(rng, held=False)
    return Exchange(
        "spell", rng.choice(("And {}?", "Now {}.", "And now {}.", "And spell {}.")).format(word), _spelled(word)
    )


def _after_repeat(rng: random.Random, before: Exchange) -> Exchange:
    user = rng.choice(("Again.", "Again, please.", "Say it again.", "Once more.", "again"))
    return Exchange("repeat", user, before.slots["text"], before.slots)


FOLLOW_UPS: dict[str, Callable[[random.Random, Exchange], Exchange | None]] = {
    "plus": _after_sum,
    "minus": _after_sum,
    "capital": _after_capital,
    "opposite": _after_opposite,
    "colour": _after_colour,
    "calendar": _after_calendar,
    "spell": _after_spell,
    "repeat": _after_repeat,
}


def _pair(rng: random.Random, held: bool) -> tuple[int, int]:
    while True:
        top = 9 if not held and rng.random() < 0.2 else TOP
        a, b = rng.randint(0, top), rng.randint(0, top)
        if is_held_pair(a, b) == held:
            return a, b


def _pair_to_subtract(rng: random.Random, held: bool) -> tuple[int, int]:
    a, b = _pair(rng, held)
    return (b, a) if b > a and rng.random() < 0.6 else (a, b)


def _word(rng: random.Random, held: bool) -> str:
    while True:
        word = made_up_word(rng) if rng.random() < 0.3 else rng.choice(WORDS + ANIMALS)
        if is_held_word(word) == held:
            return word


def _range(rng: random.Random, held: bool) -> tuple[int, int]:
    while True:
        first = 1 if not held and rng.random() < 0.35 else rng.randrange(TOP)
        last = min(TOP, first + (rng.randint(1, 9) if rng.random() < 0.9 else rng.randint(10, 29)))
        if is_held_range(first, last) == held:
            return first, last


def _counted(first: int, last: int) -> str:
    return ", ".join(map(str, range(first, last + 1))) + "."


def _sum(a: int, b: int) -> str:
    return f"{a} + {b} = {a + b}."


def _difference(a: int, b: int) -> str:
    return f"{a} - {b} = {a - b}."


def _capital_of(place: str) -> str:
    return f"The capital of {place} is {CAPITALS[place]}."


def _opposite_of(word: str) -> str:
    return f"The opposite of {word} is {OPPOSITES[word]}."


def _colour_of(thing: str) -> str:
    return f"{thing[0].upper()}{thing[1:]} is {COLOURS[thing]}."


def _spelled(word: str) -> str:
    return "-".join(word)


def _next_to(ring: Sequence[str], i: int, step: int) -> tuple[str, dict[str, object]]:
    one, found = ring[i], ring[(i + step) % len(ring)]
    return f"{found} comes {'after' if step > 0 else 'before'} {one}.", {"one": found, "step": step}
