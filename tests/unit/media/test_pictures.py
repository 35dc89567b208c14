"""Tiles, their keys and the numbers the tower takes; crops; and which image a part of a message means."""

import numpy as np
import pytest
from PIL import Image

from gemworks.errors import RequestError
from gemworks.media import PanAndScan, crop_boxes, image_request, prepare_picture, tower_input


def some_pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Spec 10.2.
@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((896, 896), []),
        ((700, 600), []),
        ((720, 600), [(360, 600)] * 2),
        ((600, 400), [(300, 400)] * 2),
        ((500, 300), []),
        ((1000, 300), [(334, 300), (334, 300), (332, 300)]),
        ((2000, 500), [(500, 500)] * 4),
        ((5000, 1000), [(1250, 1000)] * 4),
        ((300, 1000), [(300, 334), (300, 334), (300, 332)]),
        ((255, 2000), []),
        ((1500, 600), [(500, 600)] * 3),  # 2.5 is rounded up
        ((1499, 600), [(750, 600), (749, 600)]),
    ],
)
def test_crops_are_the_specified_ones(size, sizes):
    boxes = crop_boxes(*size, PanAndScan())
    assert [(right - left, bottom - top) for left, top, right, bottom in boxes] == sizes


@pytest.mark.parametrize("size", [(1000, 300), (300, 1000), (2001, 500), (997, 331)])
def test_crops_cover_the_picture_once(size):
    seen = np.zeros(size[::-1], int)
    for left, top, right, bottom in crop_boxes(*size, PanAndScan()):
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("wrong", [{"min_crop_size": 0}, {"max_crops": 0}, {"min_ratio": -1.0}, {"max_crops": 2.5}])
def test_parameters_without_sense_are_refused(wrong):
    with pytest.raises(RequestError, match=f"pan_and_scan: {next(iter(wrong))} must be"):
        PanAndScan(**wrong)


def test_the_whole_comes_first_and_then_the_crops():
    pixels = some_pixels(300, 1000)
    picture = prepare_picture(pixels, pan_and_scan=PanAndScan())
    assert (picture.width, picture.height, picture.num_crops) == (1000, 300, 3)
    parts = [pixels, *(pixels[top:bottom, left:right] for left, top, right, bottom in picture.boxes)]
    assert len(picture.tiles) == len(picture.keys) == 4
    for tile, part in zip(picture.tiles, parts, strict=True):
        assert tile.shape == (896, 896, 3) and tile.dtype == np.uint8
        assert np.array_equal(tile, np.asarray(Image.fromarray(part).resize((896, 896), Image.Resampling.BILINEAR)))


def test_a_crop_does_not_see_its_neighbours():
    """A filter that read beyond the edge would mix black into white."""
    pixels = np.zeros((600, 1200, 3), np.uint8)
    pixels[:, :600] = 255
    picture = prepare_picture(pixels, pan_and_scan=PanAndScan())
    assert (picture.tiles[1] == 255).all() and (picture.tiles[2] == 0).all()


def test_a_picture_of_the_towers_size_is_not_touched():
    pixels = some_pixels(896, 896)
    assert np.array_equal(prepare_picture(pixels).tiles[0], pixels)


def test_keys_are_of_the_content():
    pixels = some_pixels(40, 50)
    changed = pixels.copy()
    changed[20, 20, 1] ^= 128
    key = prepare_picture(pixels).keys
    assert prepare_picture(Image.fromarray(pixels)).keys == key
    assert prepare_picture(changed).keys != key
    assert prepare_picture(pixels, tile_size=448).keys != key


def test_tiles_cannot_change_behind_their_key():
    with pytest.raises(ValueError, match="read-only"):
        prepare_picture(some_pixels(4, 4)).tiles[0][0, 0] = 0


def test_the_towers_numbers():
    """Channels first; 0 is -1, 255 is 1, and equal steps between."""
    tile = np.arange(256, dtype=np.uint8).reshape(16, 16, 1) * np.array([1, 0, 0], np.uint8)
    numbers = tower_input([tile, tile])
    assert numbers.shape == (2, 3, 16, 16) and numbers.dtype == np.float32
    assert np.abs(numbers[1, 0].ravel() - np.linspace(-1, 1, 256)).max() < 1e-6
    assert (numbers[0, 1:] == -1).all()


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "image_url", "image_url": {"url": "data:,x"}}, ("data:,x", False)),
        ({"type": "image_url", "image_url": {"url": "data:,x", "detail": "high"}}, ("data:,x", True)),
        ({"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}, ("data:,x", False)),
        ({"type": "input_image", "image_url": "data:,x", "detail": "high"}, ("data:,x", True)),
        ({"type": "input_image", "image_url": "data:,x", "detail": "auto"}, ("data:,x", False)),
        ({"type": "image", "image": "a.png"}, ("a.png", False)),
        ({"type": "image", "path": "a.png"}, ("a.png", False)),
        ({"type": "image", "url": "a.png", "image": None}, ("a.png", False)),
        ({"type": "image", "base64": "AAAA"}, ("data:;base64,AAAA", False)),
        ({"type": "image", "image": b"bytes", "detail": "high"}, (b"bytes", True)),
    ],
)
def test_parts_mean_an_image(part, expected):
    assert image_request(part, "here") == expected


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image"}, "got none of them"),
        ({"type": "image", "image": "a", "path": "b"}, "got image and path"),
        ({"type": "image_url", "image_url": {"detail": "high"}}, 'image_url must have a "url"'),
        ({"type": "image_url", "image_url": {"url": "x", "detail": "ultra"}}, "detail must be .* got 'ultra'"),
        ({"type": "image_url", "image_url": {"url": "x", "detail": ["high"]}}, "detail must be"),
    ],
)
def test_parts_that_mean_none_are_refused(part, says):
    with pytest.raises(RequestError, match=says) as caught:
        image_request(part, "messages[0].content[1]")
    assert str(caught.value).startswith("messages[0].content[1]: ")
