"""An image from anywhere -> one upright RGB picture, or one RequestError that says what is wrong with it.

    from     a path, bytes, a data URL, a numpy array, a PIL image; never the network
    formats  PNG, JPEG (MPO too), WebP, GIF, BMP, TIFF, PNM, AVIF: known by their content, whatever the name says
    turned   by the EXIF orientation; transparency over white; of an animation the first frame

Pillow reads many more formats; these are the ones people send, and every other decoder is one more that a hostile file
could reach (EPS would start Ghostscript). Sizes are checked before a pixel is decoded.

Memory beside the file, seen at 64 megapixels: 8 bytes a pixel (Pillow keeps RGB in four, and turning or converting
makes a copy), progressive JPEG too; 17 for WebP, whose decoder keeps two canvases: 1.1 GB at the default limits.
"""

import base64
import binascii
import io
import math
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from gemworks.errors import RequestError
from gemworks.media.arrays import array_image
from gemworks.media.files import regular_file, shown_path
from gemworks.media.rgb import to_rgb, upright

# First bytes -> Pillow's name of the format. A file is what it begins with, not what it is called.
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    *((b"P%d" % kind, "PPM") for kind in range(1, 7)),
)
_FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, PNM or AVIF"

# What people send by mistake, with what to do about it.
_KNOWN_OTHERS = (
    (b"%PDF", "a PDF document", "Render its pages to PNG."),
    (b"%!PS", "a PostScript document", "Render it to PNG."),
    (b"<svg", "an SVG drawing", "Render it to PNG."),
    (b"<?xml", "an XML document", "If it is an SVG drawing, render it to PNG."),
    (b"<!DOCTYPE", "a web page", "The download went wrong: fetch the image itself."),
    (b"<html", "a web page", "The download went wrong: fetch the image itself."),
    (b"PK\x03\x04", "a ZIP archive", "Unpack it."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it."),
    (b"8BPS", "a Photoshop file", "Save it as PNG."),
    (b"\x00\x00\x01\x00", "a Windows icon", "Save it as PNG."),
    (b"version https://git-lfs", "a Git LFS pointer", "Fetch the file itself with `git lfs pull`."),
)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_VIDEO_BRANDS = {b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"M4V ", b"qt  "}
_MAGIC_BYTES = 64

SCHEMES = ("http://", "https://", "ftp://", "file://", "s3://", "gs://")


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one image may cost. 64 megapixels is above every camera but a few phones' special modes."""

    max_pixels: int = 64_000_000
    max_bytes: int = 200_000_000  # of the file; a 64-megapixel PNG of noise has 192 MB


DEFAULT_LIMITS = Limits()


def decode_image(
    source: Any, *, name: str | None = None, allow_paths: bool = True, limits: Limits = DEFAULT_LIMITS
) -> Image.Image:
    """Return the image as an upright RGB picture, which may be `source` itself; `source` is not changed.

    `name` is what errors call it (default: its path, else "image"). With allow_paths=False text must be a data URL, so
    that no request reaches this machine's files. Raises RequestError.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, name or "image", limits)
    if isinstance(source, np.ndarray):
        return array_image(source, name or "image", limits.max_pixels)
    if isinstance(source, str) and source[:5].lower() == "data:":
        data = _from_data_url(source, name or "image", limits)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, (str, os.PathLike)):
        name = name or shown_path(source)
        data = _read(source, name, limits, allow_paths)
    else:
        raise RequestError(
            f"{name or 'image'}: an image must be a path, bytes, a data URL, a numpy array or a PIL image, "
            f"got a {type(source).__name__}."
        )
    name = name or "image"
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(name, len(data), limits)
    kind = _kind_of(data, name)
    # Image.open would warn of large pictures before we refuse them, so the format's own reader is called.
    Image.init()
    if kind not in Image.OPEN:
        raise RequestError(
            f"{name}: an image must be of a format that this Pillow reads, got {kind}.\nSave it as PNG or JPEG."
        )
    try:
        opened = Image.OPEN[kind][0](io.BytesIO(data), "")
    except Image.DecompressionBombError as error:  # of a frame that is larger than the GIF says it is
        raise RequestError(f"{name}: an image must have at most {limits.max_pixels:,} pixels, got more.") from error
    except Exception as error:  # whatever a parser stumbles over in a hostile file
        raise _damaged(name, kind, data, error) from error
    with opened:
        return _decoded(opened, name, limits, kind=kind, data=data)


def _decoded(image: Image.Image, name: str, limits: Limits, *, kind: str = "", data: bytes = b"") -> Image.Image:
    """The opened image decoded, turned and in RGB, with its size looked at first."""
    _check_size(image, name, limits)
    try:
        image.load()
        _check_size(image, name, limits)  # a first GIF frame may be larger than its screen
        return to_rgb(upright(image), name)
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError and others
        raise _damaged(name, kind or "PIL image", data, error) from error


def _check_size(image: Image.Image, name: str, limits: Limits) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise RequestError(f"{name}: an image must have at least one pixel, got {width} x {height}.")
    # A TIFF tile is decoded whole, however little of it the picture shows.
    tags = getattr(image, "tag_v2", None) or {}
    tile = [tags.get(tag) for tag in (322, 323)]
    pixels = max(width * height, math.prod(tile) if all(isinstance(side, int) for side in tile) else 0)  # type: ignore[arg-type]
    if pixels > limits.max_pixels:
        raise RequestError(
            f"{name}: an image must have at most {limits.max_pixels:,} pixels, got {width:,} x {height:,} "
            f"= {pixels:,}.\nScale it down: the model sees 896 x 896 pixels of it, or of each crop."
            if pixels == width * height
            else f"{name}: a TIFF's tiles must have at most {limits.max_pixels:,} pixels, got {pixels:,}.\n"
            "The file is damaged or made to harm: save it again."
        )


def _read(source: str | os.PathLike[str], name: str, limits: Limits, allow_paths: bool) -> bytes:
    """The bytes of a regular file that is not too large."""
    text = os.fspath(source)
    if isinstance(text, str) and text[:8].lower().startswith(SCHEMES):
        raise RequestError(
            f"{name}: an image must be given itself, got an address.\n"
            "Nothing is fetched from the network: download it, then give its path or a data URL."
        )
    if not allow_paths:
        raise RequestError(
            f"{name}: an image in a request must be a data URL, got other text.\n"
            'Send it as "data:image/png;base64,...".'
        )
    with regular_file(text, name, "an image") as (file, size):
        if size > limits.max_bytes:
            raise _too_many_bytes(name, size, limits)
        return file.read(limits.max_bytes + 1)


def _from_data_url(url: str, name: str, limits: Limits) -> bytes:
    """The bytes of data:[type][;base64],... The type is not looked at: the bytes say what they are."""
    head, comma, body = url.partition(",")
    if not comma:
        raise RequestError(f'{name}: a data URL must be "data:image/png;base64,...", got one without a comma.')
    if len(body) > limits.max_bytes * 4 // 3 + 4:
        raise _too_many_bytes(name, len(body) * 3 // 4, limits)
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    body = "".join(body.split())
    if "%" in body:
        body = unquote_to_bytes(body).decode("ascii", "replace")
    body = body.replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"{name}: a data URL must hold base64, got {len(body):,} characters with {error}.\nEncode the file again."
        ) from error


def _kind_of(data: bytes, name: str) -> str:
    """Pillow's name of the format the bytes begin as; RequestError for anything else."""
    head = data[:_MAGIC_BYTES]
    if not head:
        raise RequestError(f"{name}: an image must have content, got 0 bytes.\nFetch or save it again.")
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    got, hint = "bytes that begin as none of them", "The file is damaged or something else: save it again."
    if head[4:8] == b"ftyp":
        if head[8:12] in _AVIF_BRANDS:
            return "AVIF"
        if head[8:12] in _HEIF_BRANDS:
            got, hint = "HEIC", "Save it as JPEG; phones do so when they share a photograph."
        elif head[8:12] in _VIDEO_BRANDS:
            got, hint = "a video", "Give a picture of it."
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, words, advice in _KNOWN_OTHERS:
        if start[: len(magic)].lower() == magic.lower():
            got, hint = words, advice
            break
    else:
        if not any(head):
            got, hint = (
                f"{len(data):,} bytes that begin with zeros",
                "The file was not written: fetch or save it again.",
            )
    raise RequestError(f"{name}: an image must be {_FORMATS}, got {got}.\n{hint}")


def _damaged(name: str, kind: str, data: bytes, error: Exception) -> RequestError:
    reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    size = f" of {len(data):,} bytes" if data else ""
    return RequestError(
        f"{name}: an image must be whole, got {kind}{size} with: {reason}.\n"
        "The file is cut off or damaged: fetch or save it again."
    )


def _too_many_bytes(name: str, size: int, limits: Limits) -> RequestError:
    return RequestError(
        f"{name}: an image must be at most {limits.max_bytes:,} bytes, got {size:,}.\nScale it down or save it as JPEG."
    )
