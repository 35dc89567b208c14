"""Pixels and crops against transformers' Gemma3ImageProcessorPil, the slow path the released models were tuned with."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import Gemma3ImageProcessorPil

from gemworks.media import PanAndScan, crop_boxes, prepare_picture, tower_input

SIZE = 896
# Modes that Pillow converts to RGB as pictures; its 16-bit and float conversions saturate, so those are apart.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "RGBa", "La")


@pytest.fixture(scope="module")
def processor():
    """preprocessor_config.json of the released models; the rest of their fields is null."""
    return Gemma3ImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        resample=2,
        rescale_factor=0.00392156862745098,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        do_convert_rgb=True,
    )


def odd_size(rng):
    """From one pixel to larger than the tower's input, wide, tall and square."""
    side = lambda: int(np.exp(rng.uniform(0, np.log(1500))))  # noqa: E731
    return side(), side()


def picture(rng, mode, width, height) -> Image.Image:
    """Smooth light and noise in every band, opaque, transparent and between."""
    y, x = np.mgrid[0:height, 0:width]
    bands = [127 + 90 * np.sin(x / (5 + 9 * i)) * np.cos(y / (7 + 5 * i)) for i in range(4)]
    pixels = np.uint8(np.clip(np.stack(bands, -1) + rng.normal(0, 30, (height, width, 4)), 0, 255))
    image = Image.fromarray(pixels)
    if mode in ("1", "L", "CMYK", "YCbCr", "RGB", "RGBX"):
        image = image.convert("RGB")
    if mode in ("HSV", "YCbCr", "LAB"):
        return Image.merge(mode, image.convert("RGB").split())
    if mode == "PA":
        return image.convert("RGB").quantize(16).convert("PA")
    return image.convert("RGB").quantize(64) if mode == "P" else image.convert(mode)


def their_pixels(processor, image, **options):
    return np.asarray(processor(image, **options)["pixel_values"])


def test_two_hundred_pictures_of_odd_sizes_and_modes(processor):
    rng = np.random.default_rng(20)
    differing = 0
    for i in range(200):
        mode = MODES[i % len(MODES)]
        image = picture(rng, mode, *odd_size(rng))
        # They know no premultiplied modes; Pillow's own conversion comes first there.
        plain = image.convert({"RGBa": "RGBA", "La": "LA"}[mode]) if mode in ("RGBa", "La") else image
        expected = their_pixels(processor, plain)
        got = tower_input(prepare_picture(image).tiles)
        assert got.shape == expected.shape == (1, 3, SIZE, SIZE)
        assert got.dtype == np.float32
        differing += not np.array_equal(got, expected)
        assert np.abs(got - expected).max() <= 1 / 255, (mode, image.size)
    assert differing == 0, f"{differing} of 200 are near, but not equal to the last bit"


def test_palettes_and_key_colours_that_are_transparent(processor):
    rng = np.random.default_rng(3)
    for mode, transparency in (("P", 3), ("P", bytes(range(0, 256, 4))), ("L", 90), ("RGB", (120, 130, 140))):
        data = io.BytesIO()
        picture(rng, mode, 97, 61).save(data, "PNG", transparency=transparency)
        opened = Image.open(io.BytesIO(data.getvalue()))
        assert opened.info["transparency"] is not None
        expected = their_pixels(processor, opened)
        assert np.array_equal(tower_input(prepare_picture(data.getvalue()).tiles), expected), (mode, transparency)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_files_and_every_orientation(processor, kind):
    """Against their loader, which turns by EXIF before it converts; formats without EXIF have one orientation."""
    from transformers.image_utils import load_image

    rng = np.random.default_rng(4)
    image = picture(rng, "RGB", 120, 75)
    has_exif = kind in ("PNG", "JPEG", "WEBP", "TIFF")
    for orientation in range(1, 9) if has_exif else [None]:
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        data = io.BytesIO()
        image.save(data, kind, **({"exif": exif.tobytes()} if orientation else {}))
        expected = their_pixels(processor, load_image("data:image/x;base64," + _base64(data.getvalue())))
        got = prepare_picture(data.getvalue())
        assert np.array_equal(tower_input(got.tiles), expected), (kind, orientation)
        assert (got.width, got.height) == ((75, 120) if (orientation or 1) > 4 else (120, 75))


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_sixteen_bits_are_shown_as_their_upper_eight(processor):
    """Theirs turns all above 255 white; ours equals what theirs makes of the picture in eight bits."""
    rng = np.random.default_rng(5)
    wide = rng.integers(0, 1 << 16, (70, 90)).astype(np.uint16)
    expected = their_pixels(processor, Image.fromarray((wide >> 8).astype(np.uint8)))
    for kind in ("PNG", "TIFF", "PPM"):
        data = io.BytesIO()
        Image.fromarray(wide).save(data, kind)
        assert np.array_equal(tower_input(prepare_picture(data.getvalue()).tiles), expected), kind
    assert np.array_equal(tower_input(prepare_picture(wide).tiles), expected)
    assert their_pixels(processor, Image.fromarray(wide)).mean() > 0.9  # white: why theirs is no measure here


class Sliced:
    """Stands for pixels of any size: what is cut out of it is remembered, and nothing is stored."""

    def __init__(self, width, height):
        self.shape = (3, height, width)
        self.ndim = 3

    def __getitem__(self, key):
        _, rows, columns = key
        _, height, width = self.shape
        top, bottom, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        return left, top, right, bottom


def test_crop_boxes_of_two_thousand_sizes_and_parameters(processor):
    rng = np.random.default_rng(6)
    num_cropped = 0
    for i in range(2000):
        width, height = (int(np.exp(rng.uniform(0, np.log(9000)))) for _ in range(2))
        least, most, ratio = (256, 4, 1.2)
        if i % 2:
            least, most = int(np.exp(rng.uniform(0, np.log(1500)))), int(rng.integers(1, 12))
            ratio = float(rng.choice([0, 1, 1.2, 1.5, width / height, height / width, rng.uniform(1, 4)]))
        expected = processor.pan_and_scan(Sliced(width, height), least, most, ratio)
        # Of a side shorter than the square of their number theirs cuts empty crops, which it then cannot resize.
        expected = [box for box in expected if box[0] < box[2] and box[1] < box[3]]
        settings = PanAndScan(min_crop_size=least, max_crops=most, min_ratio=ratio)
        assert [tuple(box) for box in crop_boxes(width, height, settings)] == expected, (width, height, settings)
        num_cropped += bool(expected)
    assert 400 < num_cropped < 1600


@pytest.mark.parametrize("size", [(1000, 300), (300, 1000), (5000, 1000), (720, 600), (700, 600), (500, 300)])
def test_pixels_of_whole_and_crops(processor, size):
    image = picture(np.random.default_rng(7), "RGB", *size)
    out = processor(
        image,
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=256,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    ours = prepare_picture(image, pan_and_scan=PanAndScan())
    assert out["num_crops"] == [ours.num_crops]
    assert np.array_equal(tower_input(ours.tiles), np.asarray(out["pixel_values"]))
