"""Arrays that hold a picture: [H, W], [H, W, 1 | 3 | 4] or [1 | 3 | 4, H, W]; see `brightness` for the numbers."""

import numpy as np
from PIL import Image

from gemworks.errors import RequestError
from gemworks.media.rgb import brightness, to_rgb

_CHANNELS = (1, 3, 4)


def array_image(array: np.ndarray, name: str, max_pixels: int) -> Image.Image:
    """Return the RGB picture an array holds, four channels composed over white. Raises RequestError."""
    if array.dtype.kind not in "biuf":
        raise RequestError(f"{name}: an array must hold numbers, got dtype {array.dtype}.")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise _wrong_shape(name, array)
    if array.ndim == 3 and array.shape[2] not in _CHANNELS:
        if array.shape[0] not in _CHANNELS:
            raise _wrong_shape(name, array)
        array = np.moveaxis(array, 0, 2)
    height, width = array.shape[:2]
    if height * width > max_pixels:
        raise RequestError(
            f"{name}: an image must have at most {max_pixels:,} pixels, got {width:,} x {height:,}.\nScale it down."
        )
    values = np.ascontiguousarray(brightness(array, name))
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    return to_rgb(Image.fromarray(values), name)


def _wrong_shape(name: str, array: np.ndarray) -> RequestError:
    return RequestError(
        f"{name}: an array must be [height, width] or [height, width, 1, 3 or 4 channels], got {list(array.shape)}."
    )
