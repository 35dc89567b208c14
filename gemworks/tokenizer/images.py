r"""Where images stand in a prompt: ids, and the spans whose embeddings the vision tower supplies (spec 12.2, 12.3).

    an image      "\n\n" <start_of_image> <image_soft_token> x 256 <end_of_image> "\n\n"
    with crops    "Here is the original image " IMAGE " and here are some crops to help you see better " IMAGE " " IMAGE

As in transformers the wording is put into the text before it is tokenized, so newlines merge with their neighbours:
directly after "user\n" stands one token of three newlines. The control tokens are put in as ids; a user who types
`<start_of_image>` has typed sixteen characters.

Not here: pixels (media), soft tokens (model/multimodal.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gemworks.errors import RequestError
from gemworks.tokenizer.chat import Message, Piece, turns

if TYPE_CHECKING:
    from gemworks.tokenizer.tokenizer import Tokenizer

TOKENS_PER_IMAGE = 256

_NAMES = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
_ORIGINAL = "Here is the original image "
_CROPS = " and here are some crops to help you see better "


class ImageSpan(NamedTuple):
    """Positions start .. start + length - 1 of the ids take the soft tokens of `image`.

    `image` counts what is encoded: each picture's whole, then its crops, in the order of the prompt.
    """

    start: int
    length: int
    image: int


class ImagePrompt(NamedTuple):
    """A prompt with images."""

    ids: list[int]
    spans: tuple[ImageSpan, ...]


def render_chat_images(
    tokenizer: "Tokenizer",
    messages: Sequence[Message],
    num_crops: Sequence[int],
    *,
    tokens_per_image: int = TOKENS_PER_IMAGE,
    add_generation_prompt: bool = True,
) -> ImagePrompt:
    """Return the ids of a conversation with images, `<bos>` first, and their spans.

    `num_crops[i]` is the number of Pan & Scan crops of the i-th image part in the order of the messages, 0 for none.
    Without images the ids are those of `render_chat`. Raises RequestError that names the message.
    """
    writer = _Writer(tokenizer, num_crops, tokens_per_image)
    writer.ids.append(tokenizer.bos_id)
    writer.turns(turns(messages, images=[]))
    return writer.finish(add_generation_prompt)


def continue_chat_images(
    tokenizer: "Tokenizer",
    messages: Sequence[Message],
    num_crops: Sequence[int],
    *,
    tokens_per_image: int = TOKENS_PER_IMAGE,
) -> ImagePrompt:
    """Return what to append after an answer's last id, as `continue_chat` does; spans count from the first of them."""
    if messages and messages[0].get("role") == "system":
        raise RequestError("messages[0]: a system message must begin a conversation, got one in the middle.")
    writer = _Writer(tokenizer, num_crops, tokens_per_image)
    writer.ids += [tokenizer.chat_ids[1], *tokenizer.encode("\n")]
    writer.turns(turns(messages, images=[]))
    return writer.finish(True)


def render_plain_images(
    tokenizer: "Tokenizer",
    pieces: Iterable[Piece],
    num_crops: Sequence[int],
    *,
    tokens_per_image: int = TOKENS_PER_IMAGE,
) -> ImagePrompt:
    """Return the ids of a raw prompt of texts and Place.IMAGEs, `<bos>` once. Pre-trained models continue it."""
    writer = _Writer(tokenizer, num_crops, tokens_per_image)
    writer.ids.append(tokenizer.bos_id)
    writer.pieces(pieces)
    return writer.finish(False)


def image_parts(messages: Sequence[Message]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (its place in the messages, the part) of every image, in the order their crops are to be given in."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    turns(messages, images=found)
    return found


def num_image_tokens(num_crops: int, *, tokens_per_image: int = TOKENS_PER_IMAGE) -> int:
    """Return the soft tokens of one image with its crops; the words and borders around them are a few more."""
    return (1 + num_crops) * tokens_per_image


class _Writer:
    """Collects ids and spans. `pending` is text that waits until it is known what follows it."""

    def __init__(self, tokenizer: "Tokenizer", num_crops: Sequence[int], tokens_per_image: int):
        self._tokenizer = tokenizer
        self._num_crops = list(num_crops)
        self._length = tokens_per_image
        self._used = 0
        self.ids: list[int] = []
        self._spans: list[ImageSpan] = []
        self._pending = ""

    def turns(self, said: list[tuple[str, list[Piece]]]) -> None:
        """Add whole turns with their headers and ends."""
        start, end = self._tokenizer.chat_ids
        for name, pieces in said:
            self.ids.append(start)
            self.pieces([f"{name}\n", *pieces])
            self.ids.append(end)
            self.pieces(["\n"])

    def pieces(self, pieces: Iterable[Piece]) -> None:
        """Add texts and images, tokenizing all between two control tokens as one text."""
        for piece in pieces:
            if isinstance(piece, str):
                self._pending += piece
            else:
                self._picture()
        self._flush()

    def finish(self, add_generation_prompt: bool) -> ImagePrompt:
        """Return the prompt. Raises RequestError unless every number of crops found its image."""
        if self._used != len(self._num_crops):
            raise RequestError(
                f"a prompt must have a place for every image, got {self._used} for {len(self._num_crops)} images."
            )
        if add_generation_prompt:
            self.ids.append(self._tokenizer.chat_ids[0])
            self.pieces(["model\n"])
        return ImagePrompt(self.ids, tuple(self._spans))

    def _picture(self) -> None:
        crops = self._num_crops[self._used] if self._used < len(self._num_crops) else 0
        self._used += 1
        if not crops:
            self._image()
            return
        self._pending += _ORIGINAL
        self._image()
        self._pending += _CROPS
        for i in range(crops):
            self._pending += " " if i else ""
            self._image()

    def _image(self) -> None:
        start, soft, end = self._image_ids
        self._pending += "\n\n"
        self._flush()
        self._spans.append(ImageSpan(len(self.ids) + 1, self._length, len(self._spans)))
        self.ids += [start, *[soft] * self._length, end]
        self._pending = "\n\n"

    def _flush(self) -> None:
        self.ids += self._tokenizer.encode(self._pending)
        self._pending = ""

    @property
    def _image_ids(self) -> tuple[int, int, int]:
        start, soft, end = (self._tokenizer.id_of(name) for name in _NAMES)
        if start is None or soft is None or end is None:
            raise RequestError(
                f"an image needs {', '.join(_NAMES)} in the vocabulary, got one without.\n"
                "This model reads text only: 4B, 12B and 27B read images."
            )
        return start, soft, end
