"""Questions about a scene, with the one right answer each, and what is said where there is no picture."""

import random
from collections import Counter
from collections.abc import Callable

from recipes.tiny_eyes.scenes import ZONES, Scene, Thing
from recipes.tiny_standin.phrasing import Exchange, Phrasing

NO_PICTURE = "I see no picture. Please show me one."

_COLOUR = Phrasing(
    known=(
        "What colour is the {shape}?",
        "What color is the {shape}?",
        "Which colour is the {shape}?",
        "Which color does the {shape} have?",
        "What colour does the {shape} have?",
        "What is the colour of the {shape}?",
        "What is the color of the {shape}?",
        "What's the colour of the {shape}?",
        "Tell me the colour of the {shape}.",
        "The {shape} is of which colour?",
        "Do you see what colour the {shape} is?",
        "Colour of the {shape}?",
        "Name the color of the {shape}.",
    ),
    held=("Please tell me what colour the {shape} is.", "Can you tell me the color of the {shape}?"),
)
_SHAPE = Phrasing(
    known=(
        "What shape is {colour}?",
        "Which shape is {colour}?",
        "What shape is the {colour} one?",
        "What shape is the {colour} thing?",
        "What is the {colour} thing?",
        "What is the {colour} shape?",
        "What is {colour}?",
        "What's the {colour} thing?",
        "Tell me the shape of the {colour} one.",
        "Which shape does the {colour} thing have?",
        "Name the {colour} shape.",
        "Do you see what the {colour} thing is?",
        "What kind of shape is the {colour} one?",
    ),
    held=("Please name the shape that is {colour}.", "Can you tell me what shape the {colour} thing has?"),
)
_COUNT = Phrasing(
    known=(
        "How many shapes are there?",
        "How many shapes do you see?",
        "How many shapes are in the picture?",
        "How many shapes are in the image?",
        "How many things are there?",
        "How many things do you see?",
        "How many things are in the picture?",
        "How many objects are there?",
        "How many objects do you see?",
        "Count the shapes.",
        "Count the things in the picture.",
        "Count the objects.",
        "What is the number of shapes?",
        "Tell me how many shapes there are.",
    ),
    held=("Please count the shapes in the picture.", "Can you tell me how many things you see?"),
)
_POSITION = Phrasing(
    known=(
        "Where is the {what}?",
        "Where's the {what}?",
        "Where is the {what} in the picture?",
        "Where do you see the {what}?",
        "Where in the picture is the {what}?",
        "Where in the image is the {what}?",
        "Tell me where the {what} is.",
        "In which place is the {what}?",
        "What is the position of the {what}?",
        "Do you see where the {what} is?",
        "Find the {what}.",
        "Position of the {what}?",
    ),
    held=("Please tell me where you see the {what}.", "Can you find the {what}?"),
)
# Of a picture of one shape, which needs no name.
_ONE_COLOUR = Phrasing(
    known=("What colour is it?", "What color is it?", "Which colour is this?", "What colour is the shape?"),
    held=("Which color is the shape?",),
)
_ONE_SHAPE = Phrasing(
    known=("What shape is it?", "What shape is this?", "Which shape is it?", "Which shape do you see?"),
    held=("Which shape is this?",),
)
_ONE_POSITION = Phrasing(
    known=("Where is it?", "Where is the shape?", "Where is it in the picture?", "Where do you see it?"),
    held=("Tell me where it is.",),
)
_DESCRIBE = Phrasing(
    known=(
        "What is this?",
        "What is it?",
        "What do you see?",
        "What is in the picture?",
        "What is in the image?",
        "What is in this picture?",
        "What do you see in the picture?",
        "What does the picture show?",
        "Describe the picture.",
        "Describe the image.",
        "Describe this.",
        "What can you see?",
        "Tell me what you see.",
    ),
    held=("Please describe what you see.", "What can you see in the image?"),
)
_LIST = Phrasing(
    known=(
        "List the shapes.",
        "List all shapes.",
        "List everything you see.",
        "Name all the shapes.",
        "Name everything in the picture.",
        "Which shapes do you see?",
        "Which shapes are in the picture?",
        "What shapes are there?",
        "What shapes do you see?",
        "Tell me everything you see.",
        "Describe everything.",
        "Describe all shapes in the picture.",
    ),
    held=("Please list all the shapes.", "Tell me which shapes there are."),
)


def colour(rng: random.Random, scene: Scene, *, held: bool = False) -> Exchange | None:
    """The colour of the only shape of its kind, or None where there is none."""
    one = _only(rng, scene, lambda thing: thing.shape)
    if one is None:
        return None
    if len(scene.things) == 1 and rng.random() < 0.4:
        return Exchange("colour", _ONE_COLOUR.ask(rng, held=held), f"It is {one.colour}.")
    return Exchange("colour", _COLOUR.ask(rng, held=held, shape=one.shape), f"The {one.shape} is {one.colour}.")


def shape(rng: random.Random, scene: Scene, *, held: bool = False) -> Exchange | None:
    """The shape of the only thing of its colour, or None where there is none."""
    one = _only(rng, scene, lambda thing: thing.colour)
    if one is None:
        return None
    if len(scene.things) == 1 and rng.random() < 0.4:
        return Exchange("shape", _ONE_SHAPE.ask(rng, held=held), f"It is a {one.shape}.")
    return Exchange("shape", _SHAPE.ask(rng, held=held, colour=one.colour), f"The {one.colour} shape is a {one.shape}.")


def count(rng: random.Random, scene: Scene, *, held: bool = False) -> Exchange:
    """How many shapes there are."""
    return Exchange("count", _COUNT.ask(rng, held=held), _number(scene))


def position(rng: random.Random, scene: Scene, *, held: bool = False) -> Exchange | None:
    """The zone of a thing that its shape or its colour tells from the others, or None where there is none."""
    by_shape, by_colour = _only(rng, scene, lambda thing: thing.shape), _only(rng, scene, lambda thing: thing.colour)
    if by_shape is None and by_colour is None:
        return None
    if len(scene.things) == 1 and rng.random() < 0.25:
        return Exchange("position", _ONE_POSITION.ask(rng, held=held), f"It is at the {ZONES[scene.things[0].zone]}.")
    if by_shape is not None and (by_colour is None or rng.random() < 0.5):
        what, one = by_shape.shape, by_shape
    else:
        assert by_colour is not None
        what, one = f"{by_colour.colour} {rng.choice(('shape', 'thing', by_colour.shape))}", by_colour
    return Exchange("position", _POSITION.ask(rng, held=held, what=what), f"The {what} is at the {ZONES[one.zone]}.")


def describe(rng: random.Random, scene: Scene, *, held: bool = False) -> Exchange:
    """One shape by name and colour; of several, how many."""
    one = scene.things[0]
    answer = f"It is {_article(one.colour)} {one.shape}." if len(scene.things) == 1 else _number(scene)
    return Exchange("describe", _DESCRIBE.ask(rng, held=held), answer)


def list_all(rng: random.Random, scene: Scene, *, held: bool = False) -> Exchange:
    """Every shape with its colour and zone, from the top left to the bottom right."""
    things = sorted(scene.things, key=lambda one: one.zone)
    said = ", ".join(f"{_article(one.colour)} {one.shape} at the {ZONES[one.zone]}" for one in things)
    return Exchange("list", _LIST.ask(rng, held=held), f"{said[0].upper()}{said[1:]}.")


def no_picture(rng: random.Random) -> Exchange:
    """A question about a picture that is not there."""
    asked = (
        _COLOUR.ask(rng, shape=rng.choice(("circle", "square", "triangle", "star", "cross"))),
        _COUNT.ask(rng),
        _DESCRIBE.ask(rng),
    )
    return Exchange("no_picture", rng.choice(asked), NO_PICTURE)


# Kind -> (maker, share of the questions).
KINDS: dict[str, tuple[Callable[..., Exchange | None], float]] = {
    "colour": (colour, 21),
    "shape": (shape, 21),
    "count": (count, 7),
    "position": (position, 21),
    "describe": (describe, 6),
    "list": (list_all, 24),
}
_MAKERS = [maker for maker, _ in KINDS.values()]
_SHARES = [share for _, share in KINDS.values()]


def ask(rng: random.Random, scene: Scene) -> Exchange:
    """A question of any kind in words of training."""
    while True:
        if found := rng.choices(_MAKERS, weights=_SHARES)[0](rng, scene):
            return found


def _only(rng: random.Random, scene: Scene, key: Callable[[Thing], str]) -> Thing | None:
    """A thing that no other equals in `key`."""
    number = Counter(map(key, scene.things))
    found = [thing for thing in scene.things if number[key(thing)] == 1]
    return rng.choice(found) if found else None


def _number(scene: Scene) -> str:
    number = len(scene.things)
    return "There is 1 shape." if number == 1 else f"There are {number} shapes."


def _article(colour: str) -> str:
    return f"an {colour}" if colour[0] in "aeiou" else f"a {colour}"
