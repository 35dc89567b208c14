"""Any mode of Pillow's -> RGB, as transformers' image processor converts, and right where that one saturates.

alpha, transparency, palettes     over white
CMYK, YCbCr, LAB, HSV, L, 1       by Pillow's conversion
16-bit grey (I;16, I)             the upper eight bits; Pillow's conversion would make all above 255 white
float (F)                         [0, 1] times 255, or [0, 255] as it is
"""

import numpy as np
from PIL import Image

from gemworks.errors import RequestError

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pixels composed in one go: three strips of this size are 12 MB, where whole pictures would be three more copies.
_STRIP_PIXELS = 1_000_000

_WHITE = (255, 255, 255, 255)


def upright(image: Image.Image) -> Image.Image:
    """Return the picture turned as its EXIF orientation says, or itself. EXIF that cannot be read turns nothing."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # a broken EXIF block is no reason to refuse the picture
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an RGB picture, itself if it is one. Raises RequestError for numbers without a meaning as brightness."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey((np.asarray(image).astype(np.uint16, copy=False) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        return _grey(brightness(np.asarray(image), name))
    if mode in ("RGBa", "La"):  # colours already multiplied by alpha
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        return _over_white(image)
    return image if mode == "RGB" else image.convert("RGB")


def brightness(values: np.ndarray, name: str) -> np.ndarray:
    """Return uint8 of numbers that are [0, 1] (float), 8 bits or 16 bits wide; RequestError for others."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return values
    least, most = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (least >= 0 and most <= 255):  # also where one is NaN
            raise _no_brightness(name, "floats within [0, 1] or [0, 255]", least, most)
        return np.rint(values * (255.0 if most <= 1 else 1.0)).astype(np.uint8)
    if least < 0 or most > 0xFFFF:
        raise _no_brightness(name, "whole numbers within [0, 255] or [0, 65535]", least, most)
    return (values if most <= 255 and values.dtype != np.uint16 else values >> 8).astype(np.uint8)


def _no_brightness(name: str, wanted: str, least, most) -> RequestError:
    return RequestError(f"{name}: pixels must be {wanted}, got {least} to {most}.\nScale them first.")


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    """Compose over white, strip by strip, with Pillow's own rounding (alpha_composite)."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    result = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        strip = image.crop(box).convert("RGBA")
        composed = Image.alpha_composite(Image.new("RGBA", strip.size, _WHITE), strip)
        result.paste(composed.convert("RGB"), box[:2])
    return result
