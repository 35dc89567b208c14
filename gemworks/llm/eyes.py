"""The eyes of a loaded model: pictures as a prompt needs them, and the vision tower behind its image tokens.

    parts of messages  --prepare-->  tiles in bytes, a key each  --spans-->  SoftSpans of the engine's request

The tower is not touched before the engine computes a span that its encoder cache does not have: a text never maps it, a
second turn about a picture does not run it. `free` gives its memory back, and the next new picture loads it again.

Not here: where image tokens stand in a prompt (prompts.py), what is kept of encoded images (engine/encoder_cache.py).
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gemworks.engine.types import SoftSpan
from gemworks.errors import RequestError
from gemworks.memory import give_back_freed_memory
from gemworks.model.vision_config import VisionConfig
from gemworks.tokenizer.images import ImagePrompt

if TYPE_CHECKING:
    from gemworks.media import PanAndScan, Picture

# What decodes pictures is imported when the first one comes: 29 ms of a start that texts do without.


class EncodeCost:
    """Seconds in the tower, and soft tokens that it made, for one request; the engine's thread adds to it."""

    def __init__(self):
        self.seconds = 0.0
        self.tokens = 0


class Eyes:
    """Reads pictures for one model.

    path: what the text half was loaded from. dtype: as of LLM. Safe to share between threads. `num_encoded` counts the
    tiles that went through the tower.
    """

    def __init__(self, path: str | Path, config: VisionConfig, *, dtype: str = "auto"):
        from gemworks.weights.vision import LazyVision

        self.config = config
        self.num_encoded = 0
        told: Any = dtype
        self._vision = LazyVision(path, dtype=told)

    @property
    def is_loaded(self) -> bool:
        """Whether the tower is in memory."""
        return self._vision.is_loaded

    def prepare(
        self, parts: Sequence[tuple[str, Mapping[str, Any]]], *, pan_and_scan: "PanAndScan | None" = None
    ) -> "list[Picture]":
        """Return the pictures of `image_parts(messages)`, decoded and resized, in their order.

        `pan_and_scan` crops every picture; a part with "detail": "high" is cropped by the report's rule without it. A
        Picture in the place of an image passes as it is. Raises RequestError that names the part or its file.
        """
        return [self._prepare(where, part, pan_and_scan) for where, part in parts]

    def spans(
        self, prompt: ImagePrompt, pictures: "Sequence[Picture]", cost: EncodeCost | None = None
    ) -> tuple[SoftSpan, ...]:
        """Return the spans of a prompt that was rendered with these pictures' numbers of crops.

        Equal tiles have equal keys. `cost` is told what the encoder did for this prompt, and what it did not need to.
        """
        tiles = [(tile, key) for picture in pictures for tile, key in zip(picture.tiles, picture.keys, strict=True)]
        return tuple(
            SoftSpan(
                start=span.start,
                length=span.length,
                key=tiles[span.image][1],
                embed=partial(self._encode, tiles[span.image][0], cost or EncodeCost()),
            )
            for span in prompt.spans
        )

    def free(self) -> None:
        """Give the tower's memory back; embeddings that were made stay in the engine's cache."""
        self._vision.free()
        give_back_freed_memory()

    def _prepare(self, where: str, part: Mapping[str, Any], pan_and_scan: "PanAndScan | None") -> "Picture":
        from gemworks.media import PanAndScan, Picture, image_request, prepare_picture

        request = image_request(part, where)
        source = request.source
        if isinstance(source, Picture):
            return source
        is_path = isinstance(source, os.PathLike) or (isinstance(source, str) and source[:5].lower() != "data:")
        return prepare_picture(
            source,
            pan_and_scan=pan_and_scan or (PanAndScan() if request.wants_crops else None),
            name=None if is_path else where,  # a path names itself
            tile_size=self.config.image_size,
        )

    def _encode(self, tile: np.ndarray, cost: EncodeCost) -> np.ndarray:
        """Return soft_SD, fp32, of one tile; loads the tower where it is not there."""
        import jax.numpy as jnp

        from gemworks.media import tower_input

        begun = time.perf_counter()
        soft_SD = np.asarray(self._vision.get()(jnp.asarray(tower_input([tile])[0])))
        self.num_encoded += 1
        cost.seconds += time.perf_counter() - begun
        cost.tokens += len(soft_SD)
        return soft_SD


def open_eyes(path: str | Path, *, dtype: str = "auto") -> Eyes | None:
    """Return the eyes of the model at `path`, None where it reads text only; opens no weights.

    Raises CheckpointError for a vision half that is not Gemma 3's, StorageError where a file cannot be read.
    """
    from gemworks.weights.vision_source import vision_config_of

    config = vision_config_of(path)
    return None if config is None else Eyes(path, config, dtype=dtype)


def no_eyes(where: str, name: str, what: str = "an image") -> RequestError:
    """Return the error of a text model that is shown `what` at `where`."""
    return RequestError(
        f"{where}: {name} reads text only, got {what}.\n"
        "gemma3:4b, gemma3:12b and gemma3:27b read images; a GGUF file does with its mmproj file beside it."
    )


Opener = Callable[[], Eyes | None]
