"""Videos of flat colours and shapes for the tests, made with PyAV; importing this needs it."""

import io
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction

import av
import numpy as np

av.logging.set_level(av.logging.PANIC)  # encoders greet on the terminal

PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}
# format -> codecs of it that every PyAV wheel encodes
KINDS = {
    "mp4": ("libx264", "mpeg4"),
    "mov": ("libx264", "mjpeg"),
    "matroska": ("libx264",),
    "webm": ("libvpx-vp9",),
    "avi": ("mpeg4",),
    "mpegts": ("libx264",),
    "mpeg": ("mpeg2video",),
    "flv": ("libx264",),
    "asf": ("wmv2",),
    "gif": ("gif",),
    "h264": ("libx264",),
}


def flat(value: int, size=(64, 48)) -> np.ndarray:
    """A grey picture; `size` is width and height."""
    return np.full((size[1], size[0], 3), value, np.uint8)


def levels(count: int) -> list[np.ndarray]:
    """Pictures whose grey says which they are: `level_of` reads it back after lossy encoding."""
    return [flat(20 + round(200 * i / max(1, count - 1))) for i in range(count)]


def level_of(image, count: int) -> int:
    return round((np.asarray(image).mean() - 20) / 200 * max(1, count - 1))


def encode(
    pictures: Sequence[np.ndarray] | Iterator[np.ndarray],
    kind: str = "mp4",
    codec: str | None = None,
    *,
    rate: int = 10,
    times: Sequence[float] | None = None,
    codec_options: dict | None = None,
    options: dict | None = None,
    audio_s: float = 0.0,
    aspect: Fraction | None = None,
    path=None,
) -> bytes:
    """Return the file's bytes. times: seconds of each frame (milliseconds are kept), else they are 1 / rate apart."""
    codec = codec or KINDS[kind][0]
    target = path or io.BytesIO()
    with av.open(target, "w", format=kind, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        sound = container.add_stream("aac", rate=8000) if audio_s else None
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        stream.options = codec_options or {}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            if not i:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _sing(container, sound, audio_s)
    return target.getvalue() if path is None else b""


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Return an MP4 with the upper left of its display matrix (tkhd) set; rows of (a, b) and (c, d)."""
    a, b, c, d = (value << 16 for value in matrix)
    at = data.index(b"tkhd") + 4
    at += (24 if data[at] == 0 else 36) + 16  # version and flags, times, id, duration; layer, volume
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def song(*, cover: bool = False) -> bytes:
    """Sound only, with a picture of the album where `cover` is set."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(flat(90), format="rgb24")))
            container.mux(picture.encode())
        _sing(container, sound, 2.0)
    return target.getvalue()


def _sing(container, sound, seconds: float) -> None:
    for start in range(0, int(seconds * 8000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
        container.mux(sound.encode(frame))
    container.mux(sound.encode())
