"""What images add to a plan: their tokens, the vision tower, and what is kept of them once they were encoded."""

from math import prod
from pathlib import Path
from typing import Any

from gemworks.cli import console
from gemworks.errors import ConfigError
from gemworks.model.config import TextConfig
from gemworks.model.vision_config import SIGLIP_SO400M_896, VisionConfig

_SEEING = ("4b", "12b", "27b")

# As the engine keeps them (engine.ENCODINGS_BYTES), which imports more than a plan needs.
_KEPT_BYTES = 256 << 20


def vision_config(size: str | None, path: Path | None) -> VisionConfig | None:
    """Return the vision half's sizes of a model on this machine, or of a released size; None for text models."""
    if path is None:
        return SIGLIP_SO400M_896 if size in _SEEING else None
    from gemworks.weights.vision_source import vision_config_of

    return vision_config_of(path)


def tower_bytes(config: TextConfig, vision: VisionConfig) -> int:
    """Return the bytes of tower and projector in bf16."""
    from gemworks.weights.names import expected_vision_shapes

    return 2 * sum(map(prod, expected_vision_shapes(vision, config.model_dim).values()))


def plan_images(
    model: str, config: TextConfig, vision: VisionConfig | None, *, images: int, pan_and_scan: bool
) -> dict[str, Any]:
    """Return what `images` pictures in one prompt take, as `--json` prints it.

    With Pan & Scan a picture has as many crops as its shape asks for; the most are counted. Raises ConfigError for a
    text model.
    """
    from gemworks.media import PanAndScan

    if vision is None:
        raise ConfigError(
            f"--images: {model} reads text only.\ngemma3:4b, gemma3:12b and gemma3:27b read images; a GGUF file does "
            "with its mmproj file beside it."
        )
    tiles = images * (1 + PanAndScan().max_crops if pan_and_scan else 1)
    tokens = tiles * vision.tokens_per_image
    return {
        "images": images,
        "pan_and_scan": pan_and_scan,
        "image_size": vision.image_size,
        "tokens_per_image": vision.tokens_per_image,
        "tiles": tiles,
        "tokens": tokens,
        "tower_bytes": tower_bytes(config, vision),
        "embedding_bytes": min(_KEPT_BYTES, tokens * config.model_dim * 4),
    }


def added_bytes(facts: dict[str, Any]) -> int:
    """Return what the images of a plan add to its totals."""
    return facts["tower_bytes"] + facts["embedding_bytes"]


def rows(facts: dict[str, Any], context: int) -> list[tuple[str, str]]:
    """The images' part of the table."""
    most = facts["tiles"] // facts["images"] - 1
    crops = f", each with up to {most} crops" if facts["pan_and_scan"] else ""
    share = f"{facts['tokens']:,} of the {context:,} tokens{' at most' if most else ''}"
    full = "" if facts["tokens"] < context else ": they do not fit the context"
    return [
        ("images", f"{facts['images']:,}{crops}: {share}{full}"),
        ("vision tower", f"at most {console.size(facts['tower_bytes'])} (bf16), loaded when the first image comes"),
        ("embeddings", f"{console.size(facts['embedding_bytes'])} kept, so that a second turn does not encode again"),
    ]
