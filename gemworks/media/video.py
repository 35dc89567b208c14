"""A few frames of a video as pictures with their times; what the model is shown of it.

    uniform    the middles of equal parts: 4 of 20 s are at 2.5, 7.5, 12.5 and 17.5 s
    scenes     the frames that differ most from each other: a cut is seen however short, a still shot takes one place

How scenes are chosen: every frame (of a video longer than a minute: every key frame, which encoders also put where a
scene begins) becomes 32 x 32 means. The difference of two is the mean of |a - b| over these 3,072 bytes. The first
frame chosen is the middle one; each next is the one whose least difference to those chosen is greatest (farthest-point
sampling, Gonzalez 1985), while that is at least 5 of 255. So no two of the result are alike, and what comes back after
a cut is not shown twice.

PyAV (the extra "video") is imported when the first video is read. Not here: what a prompt says about a frame.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from gemworks.errors import RequestError
from gemworks.media.decode import DEFAULT_LIMITS, SCHEMES, Limits
from gemworks.media.files import regular_file, shown_path
from gemworks.media.video_file import VideoFile, import_av

MAX_FRAMES = 128  # 32,768 tokens of images, a quarter of the longest context
SAMPLINGS = ("uniform", "scenes")

# Pixels of all pictures of one call together are at most Limits.max_pixels (8 frames at the default: 8 megapixels
# each, 4K nearly whole), but a frame has at least those that the model sees of it.
_LEAST_PIXELS = 896 * 896

_SIDE = 32  # of the means that frames are compared by
# A still shot with noise of 25 levels in H.264 (crf 23) differs from itself by 3.0 at most, with noise of 12 by 1.5.
_LEAST_DIFFERENCE = 5.0
_LONG_S = 60.0
_MOST_COMPARED = 2048  # frames; 6 MB of means

# Pictures by their first bytes, that somebody might give as a video.
_PICTURES = ((b"\x89PNG", "a PNG picture"), (b"\xff\xd8\xff", "a JPEG picture"), (b"BM", "a BMP picture"))


class Frame(NamedTuple):
    """One frame: seconds from the start of the video, and the picture, upright and RGB."""

    seconds: float
    image: Image.Image


def read_frames(
    source: Any,
    *,
    max_frames: int = 8,
    sampling: str = "uniform",
    name: str | None = None,
    allow_paths: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Frame]:
    """Return at most `max_frames` frames of a video, a path or its bytes, in the order of time.

    Fewer where the video has fewer, or with "scenes" where fewer differ. `name` is what errors call it (default: its
    path, else "video"). With allow_paths=False only bytes are read. Of `limits`, max_pixels is for a frame. Raises
    RequestError, and BackendError where PyAV is not installed.
    """
    if type(max_frames) is not int or not 1 <= max_frames <= MAX_FRAMES:
        raise RequestError(f"max_frames must be a whole number from 1 to {MAX_FRAMES}, got {max_frames!r:.80}.")
    if sampling not in SAMPLINGS:
        raise RequestError(f'sampling must be "uniform" or "scenes", got {sampling!r:.80}.')
    import_av()
    with _opened(source, name, allow_paths) as (file, name):
        _check_head(file, name)
        with VideoFile(file, name, limits) as video:
            wanted = _middles(video.seconds, max_frames) if sampling == "uniform" else _scenes(video, max_frames)
            most = max(limits.max_pixels / max_frames, _LEAST_PIXELS)
            frames = [Frame(seconds, video.picture(frame, most)) for seconds, frame in video.shown_at(wanted)]
    if not frames:
        raise RequestError(f"{name}: a video must have a frame that can be decoded, got none.\nFetch or save it again.")
    return frames


@contextmanager
def _opened(source: Any, name: str | None, allow_paths: bool) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source), name or "video"
        return
    if not isinstance(source, (str, os.PathLike)):
        got = type(source).__name__
        raise RequestError(f"{name or 'video'}: a video must be a path or bytes, got a {got}.")
    name = name or shown_path(source)
    if not allow_paths:
        raise RequestError(f"{name}: a video in a request must be its bytes, got text.")
    if str(source)[:8].lower().startswith(SCHEMES):
        raise RequestError(
            f"{name}: a video must be given itself, got an address.\n"
            "Nothing is fetched from the network: download it, then give its path."
        )
    with regular_file(source, name, "a video") as (file, _):
        yield file, name


def _check_head(file: BinaryIO, name: str) -> None:
    head = file.read(16)
    if not head:
        raise RequestError(f"{name}: a video must have content, got 0 bytes.\nFetch or save it again.")
    for magic, words in _PICTURES:
        if head.startswith(magic):
            raise RequestError(f"{name}: a video must have frames, got {words}.\nGive it as an image.")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        raise RequestError(f"{name}: a video must have frames, got a WebP picture.\nGive it as an image.")


def _middles(seconds: float, count: int) -> list[float]:
    return [(i + 0.5) * seconds / count for i in range(count)]


def _scenes(video: VideoFile, count: int) -> list[float]:
    """Times of the frames that differ most, ascending."""
    is_long = video.seconds > _LONG_S
    times, means = _compared(video, keys_only=is_long)
    if is_long and len(times) < 2 * count:  # few key frames: some encoders write one in minutes
        times, means = _compared(video, keys_only=False)
    return sorted(times[i] for i in most_different(means, count)) if times else []


def _compared(video: VideoFile, *, keys_only: bool) -> tuple[list[float], np.ndarray]:
    """Times and means [N, 3072] of the frames, of a video with very many those that are evenly apart."""
    apart = video.seconds / _MOST_COMPARED
    times: list[float] = []
    means = []
    for seconds, frame in video.every(keys_only=keys_only):
        if not times or seconds - times[-1] >= apart:
            times.append(seconds)
            means.append(video.thumbnail(frame, _SIDE).reshape(-1))
    return times, np.stack(means) if means else np.zeros((0, 3 * _SIDE**2), np.uint8)


def most_different(means: np.ndarray, count: int) -> list[int]:
    """Return the rows of uint8 [N, M] that farthest-point sampling from the middle one chooses, at most `count`."""
    chosen = [len(means) // 2]
    least = np.full(len(means), np.inf)
    while len(chosen) < count:
        least = np.minimum(least, np.abs(means.astype(np.int16) - means[chosen[-1]]).mean(axis=1))
        best = int(least.argmax())
        if least[best] < _LEAST_DIFFERENCE:
            break
        chosen.append(best)
    return chosen
