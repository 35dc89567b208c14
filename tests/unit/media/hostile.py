"""More than two hundred files that are no whole picture within the limits, each with what its error must say.

Not here: LZW codes of zeros in a TIFF; they are refused as the others, and libtiff writes a line of its own.
"""

import io
import struct
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image


class Hostile(NamedTuple):
    """`name` ends as a picture's file does, whatever is in it; `says` is a part of the error."""

    name: str
    data: bytes
    says: str


WHOLE = "an image must be whole"
PIXELS = "an image must have at most"
FORMAT = "an image must be PNG, JPEG"

_KINDS = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 90},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "gif": {"format": "GIF"},
    "webp": {"format": "WEBP", "quality": 80},
    "lossless.webp": {"format": "WEBP", "lossless": True},
    "bmp": {"format": "BMP"},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "jpeg.tif": {"format": "TIFF", "compression": "jpeg"},
    "ppm": {"format": "PPM"},
    "avif": {"format": "AVIF"},
}


def healthy(kind: str, width: int = 160, height: int = 120) -> bytes:
    """A picture of noise, so that every byte of the file matters."""
    pixels = np.random.default_rng(len(kind)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, **_KINDS[kind])
    return data.getvalue()


def kinds() -> list[str]:
    """The formats that this Pillow writes."""
    Image.init()
    return [kind for kind, options in _KINDS.items() if str(options["format"]) in Image.SAVE]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IEND", b"")


def truncated() -> list[Hostile]:
    """Every format cut at nine places, from within its header to just before its end."""
    found = []
    for kind in kinds():
        data = healthy(kind)
        for part in (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9):
            end = max(13, int(len(data) * part))
            found.append(Hostile(f"cut at {part}.{kind}", data[:end], ""))
    return found


def damaged() -> list[Hostile]:
    """Pictures with bytes in their headers or tables overwritten."""
    found = []
    for kind in kinds():
        data = healthy(kind)
        zeros = data[:12] + bytes(len(data) - 12)
        found.append(Hostile(f"zeros after 12 bytes.{kind}", zeros, ""))
        rng = np.random.default_rng(1)
        noise = data[:12] + rng.integers(0, 256, len(data) - 12, dtype=np.uint8).tobytes()
        found.append(Hostile(f"noise after 12 bytes.{kind}", noise, ""))
    good = healthy("png")
    broken = bytearray(good)
    broken[len(good) // 2] ^= 0xFF
    found.append(Hostile("wrong sum.png", bytes(broken), WHOLE))
    found.append(Hostile("no pixels.png", png(50, 50), WHOLE))
    found.append(Hostile("half a stream.png", png(50, 50, png_chunk(b"IDAT", zlib.compress(bytes(7550))[:20])), WHOLE))
    found.append(Hostile("zero width.png", png(0, 50, png_chunk(b"IDAT", zlib.compress(b"\0"))), ""))
    found.append(Hostile("zero height.png", png(50, 0, png_chunk(b"IDAT", zlib.compress(b"\0"))), ""))
    found.append(Hostile("unknown depth.png", png(5, 5, depth=7), ""))
    return found


def mislabelled() -> list[Hostile]:
    """Other things under a picture's name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.jpg", healthy("jpg"))
    others = {
        "empty": (b"", "0 bytes"),
        "one byte": (b"\x89", FORMAT),
        "text": (b"This is a description of a cat.\n", FORMAT),
        "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "got a web page"),
        "web page, lower": (b"\n\n<html><body>404</body></html>", "got a web page"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "got an SVG drawing"),
        "xml": (b'<?xml version="1.0"?><svg/>', "got an XML document"),
        "pdf": (b"%PDF-1.7\n%...", "got a PDF document"),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "got a PostScript document"),
        "zip": (archive.getvalue(), "got a ZIP archive"),
        "gzip": (b"\x1f\x8b\x08\0" + bytes(20), "got a gzip archive"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "got HEIC"),
        "video": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "got a video"),
        "psd": (b"8BPS\0\x01" + bytes(20), "got a Photoshop file"),
        "ico": (b"\0\0\x01\0\x01\0\x10\x10" + bytes(20), "got a Windows icon"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "got a Git LFS pointer"),
        "zeros": (bytes(5000), "begin with zeros"),
        "noise": (np.random.default_rng(0).integers(128, 256, 4000, dtype=np.uint8).tobytes(), FORMAT),
        "elf": (b"\x7fELF" + bytes(60), FORMAT),
        "json": (b'{"image": "..."}', FORMAT),
        "safetensors": (struct.pack("<Q", 2) + b"{}", FORMAT),
        "tga": (struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 4, 4, 24, 0) + bytes(48), FORMAT),
        "riff": (b"RIFF\x10\0\0\0WAVEfmt ", FORMAT),
    }
    return [Hostile(f"{what}.{suffix}", *entry) for what, entry in others.items() for suffix in ("png", "jpg")]


def bmp_header(width: int, height: int, bits: int = 24) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size."""
    data = healthy("jpg")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def tiff(**tags: int) -> bytes:
    """A TIFF header of LONG tags by number, such as t256=width, without any pixels."""
    entries = sorted((int(name[1:]), value) for name, value in tags.items())
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + bytes(4 + 64)


def oversized() -> list[Hostile]:
    """Small files that say they are large pictures, some of which really unpack to that."""
    grey_bomb = png(30_000, 30_000, png_chunk(b"IDAT", zlib.compress(bytes(40_000_000), 9)), depth=1, colour=0)
    found = [Hostile("bomb.png", grey_bomb, PIXELS)]
    for width, height in ((8001, 8000), (12_000, 9_000), (20_000, 20_000), (65_000, 65_000), (1, 64_000_001)):
        found.append(Hostile(f"{width} x {height}.png", png(width, height), PIXELS))
    for width, height in ((8001, 8000), (20_000, 20_000), (2_000_000, 2_000_000), (10, 2_000_000_000)):
        found.append(Hostile(f"{width} x {height}.bmp", bmp_header(width, height), PIXELS))
        found.append(Hostile(f"{width} x {height}.ppm", b"P6\n%d %d\n255\n" % (width, height), PIXELS))
    for width, height in ((9000, 9000), (65_535, 65_535)):
        found.append(Hostile(f"{width} x {height}.jpg", jpeg_of(width, height), PIXELS))
        screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
        frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02D\x01\0;"
        found.append(Hostile(f"{width} x {height}.gif", screen + frame, PIXELS))
        small = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0)
        found.append(Hostile(f"frame of {width} x {height}.gif", small + frame, PIXELS))
        canvas = b"VP8X\x0a\0\0\0\0\0\0\0" + struct.pack("<I", min(width, 16_384) - 1)[:3] * 2
        webp = b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas
        found.append(Hostile(f"{width} x {height}.webp", webp, ""))
    rgb = dict(t258=8, t259=1, t262=1, t273=8, t277=1, t278=1, t279=1)
    found.append(Hostile("50000 x 50000.tif", tiff(t256=50_000, t257=50_000, **rgb), PIXELS))
    tiles = dict(t258=8, t259=5, t262=1, t277=1, t322=60_000, t323=60_000, t324=8, t325=60)
    found.append(Hostile("tile of 60000 x 60000.tif", tiff(t256=10, t257=10, **tiles), "a TIFF's tiles"))
    return found


def malformed() -> list[Hostile]:
    """Files whose parts contradict each other: lengths, offsets and kinds that cannot be."""
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(50 * 151)))
    good, jpeg = png(50, 50, pixels), healthy("jpg")
    header, scan = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    parts = {
        "header of 12 bytes.png": good[:8] + png_chunk(b"IHDR", bytes(12)) + good[33:],
        "unknown colours.png": png(50, 50, pixels, colour=9),
        "pixels are no stream.png": png(50, 50, png_chunk(b"IDAT", bytes(200))),
        "unknown filter.png": png(50, 50, png_chunk(b"IDAT", zlib.compress(b"\x09" * 50 * 151))),
        "interlaced, too short.png": good[:28] + b"\x01" + good[29:],
        "text that unpacks to 64 MB.png": png(
            50, 50, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64_000_000), 9)), pixels
        ),
        "start and end.jpg": b"\xff\xd8\xff\xd9",
        "no frame header.jpg": jpeg[:header] + jpeg[scan:],
        "no scan.jpg": jpeg[:scan] + b"\xff\xd9",
        "no tables.jpg": jpeg[:20] + jpeg[header : header + 19] + jpeg[scan:],
        "16 components.jpg": jpeg[: header + 9] + b"\x10" + jpeg[header + 10 :],
        "zero high.jpg": jpeg_of(160, 0),
        "zero wide.jpg": jpeg_of(0, 120),
        "9 bits.jpg": jpeg[: header + 4] + b"\x09" + jpeg[header + 5 :],
        "segment beyond the end.jpg": jpeg[:2] + b"\xff\xe1\xff\xff" + jpeg[2:40],
        "no frames.gif": b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b";",
        "zero wide.gif": b"GIF89a" + struct.pack("<HHBBB", 0, 10, 0, 0, 0) + b"," + bytes(9) + b"\x02\x02D\x01\0;",
        "7 bits.bmp": bmp_header(10, 10, 7) + bytes(400),
        "zero wide.bmp": bmp_header(0, 10) + bytes(400),
        "header of 9 bytes.bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<I", 9) + bytes(60),
        "pixels beyond the end.bmp": b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 1 << 30)
        + bmp_header(10, 10)[14:]
        + bytes(9),
        "unknown compression.bmp": bmp_header(10, 10)[:30] + b"\x63" + bmp_header(10, 10)[31:] + bytes(400),
        "only a canvas.webp": b"RIFF\x12\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(10),
        "wrong signature.webp": b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0" + b"\x2e" + bytes(19),
        "lossy of zeros.webp": b"RIFF\x20\0\0\0WEBPVP8 \x14\0\0\0" + bytes(20),
        "only a brand.avif": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
        "no items.avif": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + struct.pack(">I", 12) + b"meta" + bytes(4),
    }
    return [Hostile(name, data, "") for name, data in parts.items()]


def malformed_tables() -> list[Hostile]:
    """Text headers and directories of tags with values that cannot be."""
    ppm = {
        "no size": b"P6\n",
        "words": b"P6\nwide high\n255\n" + bytes(90),
        "negative": b"P6\n-5 6\n255\n" + bytes(90),
        "levels of 0": b"P6\n5 6\n0\n" + bytes(90),
        "levels of 70000": b"P6\n5 6\n70000\n" + bytes(180),
        "long number": b"P6\n" + b"9" * 40 + b" 6\n255\n",
        "zero wide": b"P6\n0 6\n255\n",
        "letters as pixels": b"P3\n5 6\n255\n" + b"x " * 90,
        "pixels above the levels": b"P3\n5 6\n9\n" + b"10 " * 90,
    }
    rgb = dict(t256=4, t257=4, t258=8, t262=1, t277=1, t278=4)
    tiffs = {
        "strip beyond the end": tiff(**rgb, t259=1, t273=1 << 30, t279=16),
        "unknown compression": tiff(**rgb, t259=999, t273=8, t279=16),
        "99 bits": tiff(**{**rgb, "t258": 99}, t259=1, t273=8, t279=16),
        "no strips": tiff(**rgb, t259=1),
        "no size": tiff(t258=8, t259=1, t262=1, t273=8, t277=1, t279=1),
        "zero wide": tiff(**{**rgb, "t256": 0}, t259=1, t273=8, t279=16),
        "zero samples": tiff(**{**rgb, "t277": 0}, t259=1, t273=8, t279=16),
        "directory beyond the end": b"II*\0" + struct.pack("<I", 1 << 30) + bytes(40),
        "directory of 65535": b"II*\0" + struct.pack("<IH", 8, 65_535) + bytes(40),
        "directory is the header": b"II*\0" + struct.pack("<I", 0) + bytes(40),
    }
    found = [Hostile(f"{what}.ppm", data, "") for what, data in ppm.items()]
    return found + [Hostile(f"{what}.tif", data, "") for what, data in tiffs.items()]


def all_hostile() -> list[Hostile]:
    """More than two hundred, without those that differ in their name alone."""
    return [*truncated(), *damaged(), *mislabelled(), *oversized(), *malformed(), *malformed_tables()]


def some_hostile() -> list[Hostile]:
    """A quarter of them, some of every kind."""
    kinds = (truncated(), damaged(), mislabelled(), oversized(), malformed(), malformed_tables())
    return [one for kind in kinds for one in kind[::4]]
