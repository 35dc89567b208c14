"""Pictures of one to five coloured shapes on a light ground, and what is in them: a pure function of a random source.

    zones    0 top left     1 top       2 top right        a shape's centre is well inside its zone,
             3 left         4 centre    5 right            no zone holds two
             6 bottom left  7 bottom    8 bottom right

Pictures have the odd sizes of users' files and are drawn at them; gemworks.media makes tiles of them as in serving.
What a scene holds decides by its checksum whether training may see it: one arrangement in ten is kept for evaluation.
"""

import math
import random
import zlib
from typing import NamedTuple

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 60),
    "blue": (40, 90, 220),
    "purple": (140, 50, 170),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
ZONES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
MOST = 5  # shapes of a scene
CELLS = 4  # a side of the grid of soft tokens; no cell has the centres of two shapes

_JITTER = 15  # of a colour, in steps of 255, each channel
_SMALLEST = 0.10  # radius of a shape, by the picture's shorter side
_LARGEST = (0.32, 0.24, 0.17, 0.16, 0.16)  # the same, of one to five shapes
_OFF_CENTRE = 0.055  # of a shape from the middle of its zone, by the picture's sides
_FARTHEST = 0.11  # the same, of a shape that is moved to lie in the picture whole
_TURN = 12  # degrees
_PLAIN_SIDE, _PLAIN_RATIO = (64, 300), 1.6
_WIDE_SIDE, _WIDE_RATIO = (256, 320), (1.25, 2.7)  # what Pan & Scan crops; the shorter side, longer by shorter


class Thing(NamedTuple):
    """One shape. x, y: its centre in 0 ... 1 of the picture's sides; radius by the shorter side; angle in degrees."""

    shape: str
    colour: str
    zone: int
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]


class Scene(NamedTuple):
    """What a picture shows. `is_wide`: shown with Pan & Scan, which crops it if its crops have 256 pixels."""

    width: int
    height: int
    ground: tuple[int, int, int]
    things: tuple[Thing, ...]
    is_wide: bool


def random_scene(rng: random.Random, *, held: bool = False, wide_share: float = 0.12) -> Scene:
    """A scene whose arrangement is kept from training (`held`) or is not; the number of shapes is uniform."""
    number, is_wide = rng.randint(1, MOST), rng.random() < wide_share
    while True:
        width, height = _size(rng, is_wide)
        things = _things(rng, number, width, height)
        if things is None or is_held(things) != held:
            continue
        white = rng.random() < 0.4
        ground = (255, 255, 255) if white else (rng.randint(222, 255), rng.randint(222, 255), rng.randint(222, 255))
        return Scene(width, height, ground, things, is_wide)


def is_held(things: tuple[Thing, ...]) -> bool:
    """Whether pictures with these shapes in these zones and colours are kept from training: one in ten."""
    return zlib.crc32(arrangement(things).encode()) % 10 == 0


def arrangement(things: tuple[Thing, ...]) -> str:
    """What a scene holds and where, in words: equal for scenes that every question answers alike."""
    return "; ".join(sorted(f"{one.colour} {one.shape} {ZONES[one.zone]}" for one in things))


def draw(scene: Scene) -> Image.Image:
    """The picture, RGB, of the scene's size."""
    image = Image.new("RGB", (scene.width, scene.height), scene.ground)
    pen = ImageDraw.Draw(image)
    for one in scene.things:
        radius = one.radius * min(scene.width, scene.height)
        x, y = one.x * scene.width, one.y * scene.height
        if one.shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=one.rgb)
        else:
            turn = math.radians(one.angle)
            cos, sin = radius * math.cos(turn), radius * math.sin(turn)
            pen.polygon([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in _OUTLINES[one.shape]], fill=one.rgb)
    return image


def cell(x: float, y: float) -> int:
    """The place in a grid of CELLS x CELLS, row by row, of a point of the picture: the soft token that shows it."""
    return int(y * CELLS) * CELLS + int(x * CELLS)


def _size(rng: random.Random, is_wide: bool) -> tuple[int, int]:
    if is_wide:
        shorter = rng.randint(*_WIDE_SIDE)
        longer = round(shorter * rng.uniform(*_WIDE_RATIO))
    else:
        shorter = rng.randint(*_PLAIN_SIDE)
        longer = round(shorter * rng.uniform(1, _PLAIN_RATIO))
    return (longer, shorter) if rng.random() < (0.8 if is_wide else 0.5) else (shorter, longer)


def _things(rng: random.Random, number: int, width: int, height: int) -> tuple[Thing, ...] | None:
    """`number` shapes in different zones, or None where one leaves its zone or two touch or share a cell."""
    things: list[Thing] = []
    shorter = min(width, height)
    for zone in rng.sample(range(len(ZONES)), number):
        radius = rng.uniform(_SMALLEST, _LARGEST[number - 1])
        x, y = (
            _within((at + 0.5) / 3 + rng.uniform(-_OFF_CENTRE, _OFF_CENTRE), (radius * shorter + 1) / side)
            for at, side in ((zone % 3, width), (zone // 3, height))
        )
        if max(abs(x - (zone % 3 + 0.5) / 3), abs(y - (zone // 3 + 0.5) / 3)) > _FARTHEST:
            return None
        for other in things:
            apart = math.hypot((x - other.x) * width, (y - other.y) * height)
            if apart < (radius + other.radius) * shorter * 1.1 or cell(x, y) == cell(other.x, other.y):
                return None
        colour = rng.choice(list(COLOURS))
        red, green, blue = (min(255, max(0, c + rng.randint(-_JITTER, _JITTER))) for c in COLOURS[colour])
        turn = rng.uniform(-_TURN, _TURN)
        things.append(Thing(rng.choice(SHAPES), colour, zone, x, y, radius, turn, (red, green, blue)))
    return tuple(things)


def _within(at: float, margin: float) -> float:
    return min(max(at, margin), 1 - margin)


def _star() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        size, turn = (1.08, 0.44)[i % 2], math.pi * (i / 5 - 0.5)
        points.append((size * math.cos(turn), size * math.sin(turn)))
    return points


# Corners around (0, 0), y downwards, within a radius of about 1.
_OUTLINES = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.05), (1.0, 0.85), (-1.0, 0.85)],
    "star": _star(),
    "cross": [
        (-0.3, -1.0), (0.3, -1.0), (0.3, -0.3), (1.0, -0.3), (1.0, 0.3), (0.3, 0.3),
        (0.3, 1.0), (-0.3, 1.0), (-0.3, 0.3), (-1.0, 0.3), (-1.0, -0.3), (-0.3, -0.3),
    ],
}  # fmt: skip
