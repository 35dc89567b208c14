"""A video in a conversation is some of its frames, each after the time it is from.

{"type": "video", "video": PATH, "max_frames": 8, "sampling": "uniform"}
    -> "Frame at 0.0 s:" IMAGE "Frame at 2.5 s:" IMAGE ...

Gemma 3 was shown frames as images and knows no other form of video. Which frames are taken: media/video.py.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from gemworks.errors import RequestError

_KNOWN = {"type", "video", "max_frames", "sampling", "detail"}


def is_video(part: Any) -> bool:
    """Whether a part of a message is a video."""
    return isinstance(part, Mapping) and part.get("type") == "video"


def with_frames(content: Sequence[Any], where: str) -> list[Any]:
    """Return the parts with each video as texts and images; `where` is the content's place in errors."""
    told: list[Any] = []
    for j, part in enumerate(content):
        told += frames_of(part, f"{where}[{j}]") if is_video(part) else [part]
    return told


def frames_of(part: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the texts and images of one video. Raises RequestError, BackendError where PyAV is not installed."""
    from gemworks.media import read_frames

    if unknown := sorted(set(part) - _KNOWN):
        raise RequestError(f"{where}: a video part must have {', '.join(sorted(_KNOWN))}, got {unknown[0]}.")
    if part.get("video") is None:
        raise RequestError(f'{where}: a video part must have "video", a path or bytes, got none.')
    options = {name: part[name] for name in ("max_frames", "sampling") if part.get(name) is not None}
    detail = {"detail": part["detail"]} if part.get("detail") is not None else {}
    source = part["video"]
    name = None if isinstance(source, (str, os.PathLike)) else where  # a path names itself
    parts: list[dict[str, Any]] = []
    for frame in read_frames(source, name=name, **options):
        parts.append({"type": "text", "text": f"Frame at {frame.seconds:.1f} s:"})
        parts.append({"type": "image", "image": frame.image, **detail})
    return parts
