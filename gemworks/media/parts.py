"""Which image a part of a message means, in the forms that clients write.

{"type": "image_url", "image_url": {"url": "data:image/png;base64,...", "detail": "high"}}      OpenAI
{"type": "input_image", "image_url": "data:...", "detail": "low"}                               OpenAI, Responses
{"type": "image", "image": PATH | bytes | array | PIL image}                                    transformers
{"type": "image", "path": ...}  "url"  "base64"                                                 transformers
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gemworks.errors import RequestError

_FIELDS = ("image", "image_url", "url", "path", "base64", "data")
_DETAILS = ("auto", "low", "high")


class ImageRequest(NamedTuple):
    """What a part asks for: anything `decode_image` takes, and whether it asks for Pan & Scan ("detail": "high")."""

    source: Any
    wants_crops: bool


def image_request(part: Mapping[str, Any], where: str) -> ImageRequest:
    """Read an image part; `where` is its place in the messages. Raises RequestError."""
    given = [field for field in _FIELDS if part.get(field) is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise RequestError(
            f'{where}: an image part must have one of "image", "image_url", "url", "path" and "base64", got {got}.'
        )
    field = given[0]
    source, detail = part[field], part.get("detail")
    if isinstance(source, Mapping):
        detail = source.get("detail", detail)
        source = source.get("url")
        if source is None:
            raise RequestError(f'{where}: image_url must have a "url", got none.')
    if detail is not None and detail not in _DETAILS:
        raise RequestError(f'{where}: detail must be "auto", "low" or "high", got {detail!r:.80}.')
    if field in ("base64", "data") and isinstance(source, str) and not source.startswith("data:"):
        source = f"data:;base64,{source}"
    return ImageRequest(source, detail == "high")
