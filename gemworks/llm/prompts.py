"""What callers ask, as token ids: texts, conversations, and either with pictures and videos among the words.

    "text"                                        continued as it is, after <bos>
    [1, 2, 3]                                     ids as they are
    [{"role": "user", "content": ...}, ...]       a conversation; content is a text or OpenAI-style parts
    ["text", picture, "more text"]                continued as it is; a picture is a pathlib.Path, bytes, an array, a
                                                  PIL image, or a part of a message

Everything that is wrong with a prompt is found here, in the caller's thread, before the engine hears of it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gemworks.engine.types import SoftSpan
from gemworks.errors import RequestError
from gemworks.llm.calling import Calling
from gemworks.llm.eyes import EncodeCost, Eyes, Opener, no_eyes
from gemworks.llm.videos import is_video, with_frames
from gemworks.tokenizer.chat import Piece, Place, render_chat, render_plain
from gemworks.tokenizer.images import ImagePrompt, image_parts, render_chat_images, render_plain_images
from gemworks.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gemworks.media import PanAndScan

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What the engine is asked. `cost` learns what its images cost when they are encoded."""

    ids: list[int]
    spans: tuple[SoftSpan, ...] = ()
    cost: EncodeCost = field(default_factory=EncodeCost)

    @property
    def image_tokens(self) -> int:
        """Soft tokens; the words and borders around images are not counted."""
        return sum(span.length for span in self.spans)


class Prompter:
    """Renders prompts for the model `name`.

    open_eyes: called for the first picture. opening: messages that every conversation begins with, None for a model
    without a chat form.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, open_eyes: Opener, *, opening: Sequence[Message] | None):
        self._tokenizer = tokenizer
        self._name = name
        self._open_eyes = open_eyes
        self._opening = opening

    def render(
        self,
        prompt: str | Sequence,
        *,
        pan_and_scan: "bool | PanAndScan | None" = None,
        calling: Calling | None = None,
    ) -> Prompt:
        """Return the prompt as ids and spans; `calling` says what a conversation tells of functions. RequestError."""
        crops = _pan_and_scan(pan_and_scan)
        is_chat = not isinstance(prompt, str) and isinstance(prompt, Sequence) and _is_message(prompt)
        if calling is not None and calling.toolset is not None and not is_chat:
            raise RequestError("tools need a conversation of messages, got a prompt without turns.")
        if isinstance(prompt, str):
            return Prompt(ids=render_plain(self._tokenizer, prompt))
        if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
            raise _unknown(prompt)
        if is_chat:
            return self._chat(prompt, crops, calling or Calling("python"))
        if all(isinstance(i, (int, np.integer)) for i in prompt):
            return Prompt(ids=[int(i) for i in prompt])
        if not any(_is_picture(piece) or _is_part(piece) for piece in prompt):
            raise _unknown(prompt)
        return self._plain(prompt, crops)

    def _chat(self, messages: Sequence[Message], crops: "PanAndScan | None", calling: Calling) -> Prompt:
        if self._opening is None:
            raise RequestError(
                f"{self._name} is a pre-trained model without a chat form; it continues text.\n"
                "Use generate(text), or load the instruction-tuned model of the same size (its name ends in -it)."
            )
        messages = _without_pictures_of_the_system(messages)
        own = self._opening
        if messages[0].get("role") == "system":  # the caller's replaces the model's
            own = [messages[0], *(turn for turn in own if turn["role"] != "system")]
            messages = messages[1:]
        if (ids := calling.control_ids(self._tokenizer, [*own, *messages])) is not None:
            return Prompt(ids=ids)
        said = self._with_frames(calling.plain([*own, *messages]))
        parts = image_parts(said)
        if not parts:
            return Prompt(ids=render_chat(self._tokenizer, said))
        eyes = self._eyes(parts[0][0], "an image")
        pictures = eyes.prepare(parts, pan_and_scan=crops)
        num_crops = [picture.num_crops for picture in pictures]
        tokens = eyes.config.tokens_per_image
        return self._prompt(
            eyes, render_chat_images(self._tokenizer, said, num_crops, tokens_per_image=tokens), pictures
        )

    def _plain(self, pieces: Sequence, crops: "PanAndScan | None") -> Prompt:
        """The prompt of texts and pictures; texts are not trimmed."""
        parts = [_part(piece, f"prompt[{i}]") for i, piece in enumerate(pieces)]
        [expanded] = self._with_frames([{"role": "user", "content": parts}], at="prompt")
        places: list[Piece] = []
        images: list[tuple[str, Mapping[str, Any]]] = []
        for i, part in enumerate(expanded["content"]):
            places.append(part["text"] if part["type"] == "text" else Place.IMAGE)
            if part["type"] != "text":
                images.append((f"prompt[{i}]", part))
        if not images:
            return Prompt(ids=render_plain(self._tokenizer, "".join(part["text"] for part in parts)))
        eyes = self._eyes(images[0][0], "an image")
        pictures = eyes.prepare(images, pan_and_scan=crops)
        num_crops = [picture.num_crops for picture in pictures]
        tokens = eyes.config.tokens_per_image
        return self._prompt(
            eyes, render_plain_images(self._tokenizer, places, num_crops, tokens_per_image=tokens), pictures
        )

    def _prompt(self, eyes: Eyes, rendered: ImagePrompt, pictures: Sequence) -> Prompt:
        cost = EncodeCost()
        return Prompt(ids=rendered.ids, spans=eyes.spans(rendered, pictures, cost), cost=cost)

    def _with_frames(self, messages: Sequence[Message], at: str | None = None) -> list[Message]:
        """The messages with every video as its frames."""
        told = []
        for i, message in enumerate(messages):
            content = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(content, Sequence) and (videos := [j for j, part in enumerate(content) if is_video(part)]):
                where = at or f"messages[{i}].content"
                self._eyes(f"{where}[{videos[0]}]", "a video")
                message = {**message, "content": with_frames(content, where)}
            told.append(message)
        return told

    def _eyes(self, where: str, what: str) -> Eyes:
        eyes = self._open_eyes()
        if eyes is None:
            raise no_eyes(where, self._name, what)
        return eyes


def _part(piece: Any, where: str) -> Mapping[str, Any]:
    """A piece of a raw prompt as a part of a message."""
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    if _is_part(piece):
        return piece
    if _is_picture(piece):
        return {"type": "image", "image": piece}
    raise RequestError(
        f"{where}: a piece of a prompt must be a text, or a picture as a pathlib.Path, bytes, an array, a PIL image "
        f"or a part of a message, got a {type(piece).__name__}."
    )


def _is_message(prompt: Sequence) -> bool:
    return len(prompt) > 0 and isinstance(prompt[0], Mapping) and "role" in prompt[0]


def _is_part(piece: Any) -> bool:
    if not isinstance(piece, Mapping):
        return False
    if piece.get("type") == "text":
        return isinstance(piece.get("text"), str)
    return is_video(piece) or _is_image(piece)


def _is_image(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and "image" in kind


def _is_picture(piece: Any) -> bool:
    from PIL.Image import Image

    from gemworks.media import Picture

    return isinstance(piece, (os.PathLike, bytes, bytearray, memoryview, np.ndarray, Image, Picture))


def _without_pictures_of_the_system(messages: Iterable[Message]) -> list[Message]:
    """The messages as a list; a picture in the system message would be lost silently, so it is refused."""
    found = list(messages)
    content = found[0].get("content") if found[0].get("role") == "system" else None
    if isinstance(content, Sequence) and not isinstance(content, str):
        for j, part in enumerate(content):
            if _is_image(part) or is_video(part):
                raise RequestError(
                    f"messages[0].content[{j}]: a system message must be text, got a part of type {part['type']!r}.\n"
                    "Show it in the first user message."
                )
    return found


def _pan_and_scan(value: Any) -> "PanAndScan | None":
    if value is None or value is False:
        return None
    from gemworks.media import PanAndScan

    if value is True:
        return PanAndScan()
    if isinstance(value, PanAndScan):
        return value
    raise RequestError(f"pan_and_scan must be True, False or a PanAndScan, got {value!r:.80}.")


def _unknown(prompt: Any) -> RequestError:
    return RequestError(
        "a prompt is a text, a list of token ids or a list of messages with role and content, or has pictures among "
        f"texts; got {prompt!r:.80}."
    )
