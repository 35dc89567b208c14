r"""Pictures on the command line and in what people type: a path in a message is the picture, as Ollama's users write.

    what is on "my photo.png"?          quoted
    what is on /tmp/my\ photo.png?      with escaped spaces, as terminals write a file that is dropped on them
    compare /tmp/a b.png and ~/c.jpg    spaces as they are, where the file is there
    file:///tmp/my%20photo.png          as file managers drag

A word counts where the file exists and its name ends as a picture's does, or it is written as a path and its content
is a picture's. All other words stay words.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gemworks.cli import console
from gemworks.llm.eyes import Eyes
from gemworks.llm.videos import frames_of
from gemworks.media import PanAndScan, Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
SUFFIXES += (".pbm", ".pgm", ".ppm", ".pnm", ".avif")

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")

# A word may be followed by these, and a name seldom ends with them.
_PUNCTUATION = ".,;:!?)]}>\"'"

# Characters, as systems have it.
_LONGEST_NAME = 4096

# Words of one path with spaces that nobody escaped.
_MOST_WORDS = 12

# Where a name may begin: after white space or an opening bracket.
_BEGIN = re.compile(r"(?<=[\s(\[{<])\S")

_WORD = re.compile(r"\S+")
_IS_WINDOWS = sys.platform == "win32"
_ESCAPED_WORD = re.compile(r"\S+" if _IS_WINDOWS else r"(?:\\.|[^\s\\])+")
_ROOTED = re.compile(r"(?:/|~|\.{1,2}/" + (r"|[A-Za-z]:\\|\.{1,2}\\)" if _IS_WINDOWS else ")"))


def split_paths(text: str) -> list[str | Path]:
    """Return a message in pieces: its texts, and the picture files that it names, in order."""
    pieces: list[str | Path] = []
    begin = at = 0
    while at < len(text):
        found = _path_at(text, at)
        if found is None:
            following = _BEGIN.search(text, at + 1)
            at = following.start() if following else len(text)
            continue
        path, end = found
        pieces += [text[begin:at], path]
        begin = at = end
    pieces.append(text[begin:])
    return [piece for piece in pieces if isinstance(piece, Path) or piece.strip()]


def files_of(typed: str) -> list[Path | str]:
    """Return the files of a line that holds nothing else: one as it is, quoted or escaped, or several.

    What is no file comes back as it was typed.
    """
    typed = typed.strip()
    for written, end in [(typed, len(typed)), *(_candidates(typed, 0) if typed else ())]:
        if end == len(typed) and _is_file(path := _expanded(written)):
            return [path]
    pieces = split_paths(typed)
    found = [piece for piece in pieces if isinstance(piece, Path)]
    return [*found] if found and len(found) == len(pieces) else [typed]


def image_part(eyes: Eyes, path: Path | str, pan_and_scan: PanAndScan | None) -> dict[str, Any]:
    """Return a picture as a part of a message, decoded and resized now. Raises RequestError that names the file."""
    [picture] = eyes.prepare([(str(path), {"type": "image", "path": str(path)})], pan_and_scan=pan_and_scan)
    return {"type": "image", "image": picture}


def video_parts(
    eyes: Eyes, path: str, options: Mapping[str, Any], pan_and_scan: PanAndScan | None
) -> list[dict[str, Any]]:
    """Return a video's frames with their times as parts of a message, decoded and resized now.

    options: max_frames and sampling of media.read_frames.
    """
    parts = frames_of({"type": "video", "video": path, **options}, path)
    for part in parts:
        if part["type"] == "image":
            [part["image"]] = eyes.prepare([(path, part)], pan_and_scan=pan_and_scan)
    return parts


def told(part: dict[str, Any], eyes: Eyes, name: str) -> str:
    """A line about a picture that was taken."""
    picture: Picture = part["image"]
    crops = f" with {picture.num_crops} crops" if picture.num_crops else ""
    tokens = len(picture.tiles) * eyes.config.tokens_per_image
    return f"[{name}: {picture.width:,} x {picture.height:,} pixels{crops}, {tokens:,} tokens]"


def with_pictures(text: str, eyes: Eyes, pan_and_scan: PanAndScan | None) -> str | list[dict[str, Any]]:
    """Return a typed message: itself, or as parts where it names pictures. Raises RequestError for a damaged one."""
    pieces = split_paths(text)
    for name in [name for piece in pieces if isinstance(piece, str) for name in _missing(piece)]:
        console.note(f"[there is no file {name}; the model is told its name only]")
    if not any(isinstance(piece, Path) for piece in pieces):
        return text
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append({"type": "text", "text": piece})
            continue
        parts.append(image_part(eyes, piece, pan_and_scan))
        console.note(told(parts[-1], eyes, str(piece)))
    return parts


def _missing(text: str) -> list[str]:
    """Words of a text that can only be meant as pictures: a path's root before them, a picture's suffix behind."""
    words = (word.lstrip("([{<'\"").rstrip(_PUNCTUATION) for word in text.split())
    return [word for word in words if _ROOTED.match(word) and word.lower().endswith(SUFFIXES)]


def _path_at(text: str, at: int) -> tuple[Path, int] | None:
    """(the picture file whose name begins here, where its name ends), or None."""
    for written, end in _candidates(text, at):
        is_named = written.lower().endswith(SUFFIXES)
        if not is_named and "/" not in written and not _ROOTED.match(written):
            continue
        path = _expanded(written)
        if _is_file(path) and (is_named or _begins_as_picture(path)):
            return path, end
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, not ours to look at, or with a zero byte
        return False


def _begins_as_picture(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_MAGIC) or (head[:4], head[8:]) == (b"RIFF", b"WEBP") or head[4:] == b"ftypavif"


def _candidates(text: str, at: int) -> Iterator[tuple[str, int]]:
    """Every (name, end) that the text from `at` on may mean, the most literal first."""
    if text[at] in "\"'":
        end = text.find(text[at], at + 1, at + _LONGEST_NAME)
        if end > at + 1:
            yield text[at + 1 : end], end + 1
        return
    word = _ESCAPED_WORD.match(text, at, at + _LONGEST_NAME)
    if word is None:
        return
    for end in _ends(text, at, word.end()):
        written = text[at:end]
        yield written, end
        if "\\" in written and not _IS_WINDOWS:
            yield re.sub(r"\\(.)", r"\1", written), end
    if _ROOTED.match(text, at):
        for more in islice(_WORD.finditer(text, at, at + _LONGEST_NAME), 1, _MOST_WORDS):
            # Only a picture's suffix ends a name with spaces in it: no file of another name is looked for.
            yield from ((text[at:end], end) for end in _ends(text, at, more.end()) if _is_named(text, end))


def _is_named(text: str, end: int) -> bool:
    return text[max(0, end - 5) : end].lower().endswith(SUFFIXES)


def _ends(text: str, at: int, end: int) -> Iterator[int]:
    """The end of a word, and without the punctuation that follows it."""
    yield end
    while end > at + 1 and text[end - 1] in _PUNCTUATION:
        end -= 1
        yield end


def _expanded(written: str) -> Path:
    """A path as it was written, of this machine's file:// addresses the path."""
    if written[:7].lower() == "file://":
        try:
            address = urlsplit(written)
        except ValueError:  # as for file://[
            return Path(written)
        if address.netloc in ("", "localhost"):
            return Path(unquote(address.path))
    try:
        return Path(written).expanduser()
    except RuntimeError:  # ~nobody
        return Path(written)
