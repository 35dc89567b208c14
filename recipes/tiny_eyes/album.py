"""Scenes with their pictures as the tower sees them: drawn once, looked at by both stages of training."""

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gemworks.media import PanAndScan, Picture, prepare_picture
from recipes.tiny_eyes.scenes import CELLS, COLOURS, MOST, SHAPES, ZONES, Scene, cell, draw, random_scene

_COLOURS = tuple(COLOURS)


class Album(NamedTuple):
    """N scenes and their T tiles, uint8 [T, S, S, 3]. tiles_of[i]: the first tile of scene i, then those of its crops.

    A scene's whole is its first tile; crops follow it. The last element of tiles_of is T.
    """

    scenes: list[Scene]
    tiles: np.ndarray
    tiles_of: np.ndarray

    def num_crops(self, i: int) -> int:
        """Pan & Scan crops of scene i."""
        return int(self.tiles_of[i + 1] - self.tiles_of[i]) - 1


class Facts(NamedTuple):
    """What the tower learns to see, int32. Cells are those of CELLS x CELLS soft tokens, N scenes.

    shape_NC, colour_NC, zone_NC: of the shape whose centre is in the cell; shape is len(SHAPES) where there is none.
    """

    count_N: np.ndarray  # shapes of the scene, less one
    shape_NC: np.ndarray
    colour_NC: np.ndarray
    zone_NC: np.ndarray


NUM_CLASSES = {"count": MOST, "shape": len(SHAPES) + 1, "colour": len(COLOURS), "zone": len(ZONES)}


def picture_of(scene: Scene, tile_size: int) -> Picture:
    """The scene drawn and made into tiles as `gemworks run --image` does; wide ones with Pan & Scan."""
    return prepare_picture(
        draw(scene), pan_and_scan=PanAndScan() if scene.is_wide else None, tile_size=tile_size, name="scene"
    )


def make_album(seed: str, number: int, tile_size: int, report: Callable[[int], None]) -> Album:
    """`number` scenes that training may see; `report` is told how many are drawn."""
    rng = random.Random(seed)
    scenes, tiles, tiles_of = [], [], [0]
    for i in range(number):
        scene = random_scene(rng)
        scenes.append(scene)
        tiles += picture_of(scene, tile_size).tiles
        tiles_of.append(len(tiles))
        if i % 500 == 0:
            report(i)
    return Album(scenes, np.stack(tiles), np.array(tiles_of))


def facts_of(scenes: list[Scene]) -> Facts:
    """What is in every scene."""
    shape, colour, zone = (np.zeros((len(scenes), CELLS**2), np.int32) for _ in range(3))
    shape[:] = len(SHAPES)
    for n, scene in enumerate(scenes):
        for one in scene.things:
            at = cell(one.x, one.y)
            shape[n, at] = SHAPES.index(one.shape)
            colour[n, at] = _COLOURS.index(one.colour)
            zone[n, at] = one.zone
    return Facts(np.array([len(scene.things) - 1 for scene in scenes], np.int32), shape, colour, zone)
