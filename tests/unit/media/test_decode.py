"""Images from every kind of source, turned, flattened and checked."""

import base64
import io
import os
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from gemworks.errors import RequestError
from gemworks.media import Limits, decode_image


def some_pixels(height=5, width=7, channels=3, seed=0):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, kind="PNG", **options) -> bytes:
    data = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(data, kind, **options)
    return data.getvalue()


def decoded(source, **options) -> np.ndarray:
    image = decode_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(source, **options) -> str:
    with pytest.raises(RequestError) as caught:
        decode_image(source, **options)
    return str(caught.value)


def data_url(data: bytes, kind="image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_every_source_gives_the_same_picture(tmp_path):
    pixels = some_pixels()
    data = encoded(pixels)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    sources = [
        path,
        str(path),
        data,
        bytearray(data),
        memoryview(data),
        data_url(data),
        data_url(data, "text/plain"),
        data_url(data).replace("+", "-").replace("/", "_").replace("data:image_png", "data:image/png").rstrip("="),
        "data:image/png," + quote(data),
        Image.open(path),
        Image.fromarray(pixels),
        pixels,
        np.moveaxis(pixels, 2, 0),
        pixels / 255.0,
        (pixels / 255).astype(np.float32),
        pixels.astype(np.int64),
        pixels.astype(np.float32),
        pixels.astype(np.uint16) * 257,
    ]
    for source in sources:
        assert np.array_equal(decoded(source), pixels), type(source)


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(encoded(some_pixels()))
    assert np.array_equal(decoded("~/a.png"), some_pixels())


def test_the_content_counts_and_not_the_name(tmp_path):
    path = tmp_path / "really a gif.jpg"
    path.write_bytes(encoded(Image.new("RGB", (4, 3), "red"), "GIF"))
    assert np.array_equal(decoded(path), np.full((3, 4, 3), (255, 0, 0)))


def test_transparency_lies_over_white():
    clear = some_pixels(channels=4)
    clear[..., 3] = 0
    assert (decoded(clear) == 255).all()
    clear[..., 3] = 255
    assert np.array_equal(decoded(clear), clear[..., :3])
    half = np.zeros((1, 1, 4), np.uint8)
    half[..., 3] = 51
    assert decoded(encoded(half)).tolist() == [[[204, 204, 204]]]  # 255 * (1 - 51 / 255)


def test_a_picture_flattened_in_strips_has_no_seams(monkeypatch):
    pixels = some_pixels(50, 31, 4)
    whole = decoded(pixels)
    monkeypatch.setattr("gemworks.media.rgb._STRIP_PIXELS", 31 * 7)
    assert np.array_equal(decoded(pixels), whole)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert np.array_equal(decoded(data), np.full((4, 6, 3), (255, 0, 0))), kind


def test_exif_turns_the_picture():
    """Orientation 6: the camera was held upright, row 0 of the file is the right side."""
    pixels = some_pixels(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decoded(encoded(pixels, exif=exif.tobytes())), np.rot90(pixels, -1))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_turns_nothing():
    pixels = some_pixels()
    assert np.array_equal(decoded(encoded(pixels, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")), pixels)


def test_a_given_pil_image_is_not_changed():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(some_pixels(4, 6, 4), exif=exif.tobytes())))
    before = np.asarray(image).copy()
    decode_image(image)
    assert image.mode == "RGBA"
    assert np.array_equal(np.asarray(image), before)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 200]], np.uint8), [0, 200]),
        (np.array([[0, 200]], np.int32), [0, 200]),
        (np.array([[255, 65535]], np.uint16), [0, 255]),
        (np.array([[300, 65535]], np.int64), [1, 255]),
        (np.array([[0.0, 0.5]]), [0, 128]),
        (np.array([[0.0, 1.0]], np.float16), [0, 255]),
        (np.array([[0.4, 254.6]]), [0, 255]),
        (np.zeros((1, 2)), [0, 0]),
    ],
)
def test_what_numbers_mean(values, shown):
    assert decoded(values)[0, :, 0].tolist() == shown
    if values.dtype.kind == "f":
        assert decoded(Image.fromarray(values.astype(np.float32)))[0, :, 0].tolist() == shown


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_files_of_sixteen_bits_are_not_all_white(kind):
    """Pillow's own conversion makes everything above 255 white."""
    wide = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert decoded(encoded(wide, kind))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((0, 5, 3), np.uint8), "got [0, 5, 3]"),
        (np.zeros(7, np.uint8), "got [7]"),
        (np.zeros((2, 3, 4, 3), np.uint8), "got [2, 3, 4, 3]"),
        (np.zeros((5, 6, 2), np.uint8), "got [5, 6, 2]"),
        (np.zeros((2, 2), complex), "got dtype complex128"),
        (np.array([["a"]]), "got dtype <U1"),
        (np.array([[object()]]), "got dtype object"),
        (np.array([[-1, 5]]), "got -1 to 5"),
        (np.array([[0, 70_000]]), "got 0 to 70000"),
        (np.array([[0.0, 300.0]]), "got 0.0 to 300.0"),
        (np.array([[0.0, np.nan]]), "got nan to nan"),
        (np.array([[-np.inf, 1.0]]), "got -inf to 1.0"),
        (np.broadcast_to(np.uint8(0), (10**6, 10**6)), "got 1,000,000 x 1,000,000"),
    ],
)
def test_arrays_that_are_no_pictures(array, says):
    assert says in refusal(array)


def test_what_is_no_image_at_all(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        None: "got a NoneType",
        7: "got a int",
        str(tmp_path): "got a directory",
        str(tmp_path / "none.png"): "got none of that name",
        str(tmp_path / "pipe.png"): "got a pipe",
        str(tmp_path / "loop"): "image must be readable",
        "/dev/zero": "got a device",
        "a\0b": "image must be readable",
        "x" * 5000: "image must be readable",
        "https://example.org/a.png": "got an address",
        "file:///etc/passwd": "got an address",
        "data:image/png;base64": "without a comma",
        "data:image/png;base64,%%%": "must hold base64",
        "data:image/png;base64,": "got 0 bytes",
        b"": "got 0 bytes",
    }
    for source, says in cases.items():
        message = refusal(source)
        assert says in message, message
        assert len(message) < 500


def test_requests_reach_no_files(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(some_pixels()))
    for source in (path, str(path), "~/a.png", "a.png"):
        assert "must be a data URL, got other text" in refusal(source, allow_paths=False)
    assert np.array_equal(decoded(data_url(path.read_bytes()), allow_paths=False), some_pixels())


def test_limits_are_the_last_that_is_allowed():
    data = encoded(some_pixels(10, 10))
    assert decoded(data, limits=Limits(max_pixels=100, max_bytes=len(data))).shape == (10, 10, 3)
    assert "at most 99 pixels, got 10 x 10 = 100" in refusal(data, limits=Limits(max_pixels=99))
    assert "at most 99 pixels, got 10 x 10" in refusal(some_pixels(10, 10), limits=Limits(max_pixels=99))
    assert "at most 99 pixels" in refusal(Image.new("L", (10, 10)), limits=Limits(max_pixels=99))
    few = Limits(max_bytes=len(data) - 1)
    for source in (data, data_url(data)):
        assert f"at most {len(data) - 1:,} bytes" in refusal(source, limits=few)


def test_a_large_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole; reading it would end the test
    assert f"{path}: an image must be at most 200,000,000 bytes, got 1,099,511,627,776" in refusal(path)


def test_errors_name_what_the_caller_calls_it():
    assert refusal(b"", name="messages[0].content[1]").startswith("messages[0].content[1]: an image must")
