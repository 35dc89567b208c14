"""A picture as the vision tower reads it: square tiles of bytes, a key of their content, and the numbers (spec 10.1).

    RGB  ->  896 x 896 by Pillow's bilinear filter (antialiased, aspect ratio lost)  ->  uint8  ->  [-1, 1] in fp32

With Pan & Scan there are several tiles, the whole picture first. Tiles stay bytes (2.4 MB) until they are encoded,
where the fp32 tensor has 9.6 MB.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from gemworks.media.decode import DEFAULT_LIMITS, Limits, decode_image
from gemworks.media.pan_and_scan import Box, PanAndScan, crop_boxes

TILE_SIZE = 896

# preprocessor_config.json of the released models.
_RESCALE, _MEAN, _STD = 0.00392156862745098, 0.5, 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image, ready to be encoded. `tiles` are uint8 [S, S, 3], the whole first, then the crops; `keys` name them.

    A key is of what the tower sees, so equal keys mean equal soft tokens, whatever file they came from.
    """

    width: int
    height: int
    tiles: tuple[np.ndarray, ...]
    keys: tuple[str, ...]
    boxes: tuple[Box, ...]  # of the crops

    @property
    def num_crops(self) -> int:
        """Crops beside the whole picture; what the prompt's wording depends on."""
        return len(self.boxes)


def prepare_picture(
    source: Any,
    *,
    pan_and_scan: PanAndScan | None = None,
    name: str | None = None,
    allow_paths: bool = True,
    limits: Limits = DEFAULT_LIMITS,
    tile_size: int = TILE_SIZE,
) -> Picture:
    """Decode `source` (see decode_image), crop it where `pan_and_scan` is given, resize. Raises RequestError."""
    image = decode_image(source, name=name, allow_paths=allow_paths, limits=limits)
    boxes = crop_boxes(image.width, image.height, pan_and_scan) if pan_and_scan else ()
    tiles = [_tile(image, tile_size)]
    # Cropped before it is resized: with resize(box=...) the filter would read pixels beyond the crop's edge.
    tiles += [_tile(image.crop(box), tile_size) for box in boxes]
    return Picture(
        width=image.width,
        height=image.height,
        tiles=tuple(tiles),
        keys=tuple(_key(tile) for tile in tiles),
        boxes=boxes,
    )


def tower_input(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Return pixels_BCYX, fp32 in [-1, 1], of tiles uint8 [Y, X, 3]: transformers' numbers to the last bit."""
    return np.stack([np.moveaxis(_NORMALIZED[tile], 2, 0) for tile in tiles])


def _tile(image: Image.Image, size: int) -> np.ndarray:
    tile = np.array(image.resize((size, size), Image.Resampling.BILINEAR))
    tile.flags.writeable = False
    return tile


def _key(tile: np.ndarray) -> str:
    digest = hashlib.blake2b(tile.tobytes(), digest_size=16)
    digest.update(str(tile.shape).encode())
    return digest.hexdigest()


def _normalized() -> np.ndarray:
    """The 256 values a byte can become, computed in the order and the widths that transformers uses."""
    rescaled = (np.arange(256, dtype=np.float64) * _RESCALE).astype(np.float32)
    return (rescaled - np.float32(_MEAN)) / np.float32(_STD)


_NORMALIZED = _normalized()
