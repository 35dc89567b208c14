"""Pan & Scan: crops that a picture far from square is read with, beside the whole of it (report, section 3; spec 10.2).

    1000 x 300, at most 4 crops          the whole is squashed to 896 x 896 too, so five or fewer tiles are read
    +--------+--------+-------+
    |  334   |  334   |  332  |          as many crops as the longer side has of the shorter, rounded half up;
    +--------+--------+-------+          each is ceil(side / crops) wide, the last one what remains

The rule is that of transformers' Gemma3ImageProcessor, box for box. Google's PyTorch code differs: it starts at a ratio
of 1.5 and fills the last crop with black.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from gemworks.errors import RequestError


class Box(NamedTuple):
    """Pixels left <= x < right, top <= y < bottom, as Pillow's `crop` takes them."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PanAndScan:
    """When a picture is cropped and into how many; the values here are those of the report."""

    min_crop_size: int = 256  # no crop has a side shorter than this, in pixels of the picture
    max_crops: int = 4
    min_ratio: float = 1.2  # longer side by shorter side from which on there are crops

    def __post_init__(self):
        for name, least in (("min_crop_size", 1), ("max_crops", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise RequestError(f"pan_and_scan: {name} must be a whole number of at least {least}, got {value!r}.")
        if not 0 <= self.min_ratio < math.inf:
            raise RequestError(f"pan_and_scan: min_ratio must be a number of at least 0, got {self.min_ratio!r}.")


def crop_boxes(width: int, height: int, settings: PanAndScan) -> tuple[Box, ...]:
    """Return the crops of a picture of `width` x `height` pixels from left to right or top to bottom; none: ()."""
    longer, shorter = max(width, height), min(width, height)
    if longer / shorter < settings.min_ratio:
        return ()
    count = min(longer // settings.min_crop_size, math.floor(longer / shorter + 0.5))
    count = min(settings.max_crops, max(2, count))
    step = math.ceil(longer / count)
    if min(step, shorter) < settings.min_crop_size:
        return ()
    spans = [(start, min(start + step, longer)) for start in range(0, min(count * step, longer), step)]
    if width >= height:
        return tuple(Box(start, 0, end, height) for start, end in spans)
    return tuple(Box(0, start, width, end) for start, end in spans)
