"""What is timed: shapes, batches, and the same numbers for both sides."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from gemworks.model.config import GEMMA3_1B, GEMMA3_270M, TextConfig, five_local_one_global
from gemworks.model.costs import num_parameters
from gemworks.train.speed import flops_per_token

# 11 million parameters.
SMALL = TextConfig(
    vocab_size=8192,
    model_dim=256,
    ffw_dim=768,
    num_heads=4,
    num_kv_heads=1,
    head_dim=64,
    query_scale=64**-0.5,
    layers=five_local_one_global(12, window=128),
    max_positions=1024,
)
CONFIGS = {"small": SMALL, "270m": GEMMA3_270M, "1b": GEMMA3_1B}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and a batch of it. is_alone: 16 bytes a parameter do not fit twice into 24 GB."""

    name: str
    rows: int
    tokens: int
    is_alone: bool = False

    @property
    def config(self) -> TextConfig:
        """The model's."""
        return CONFIGS[self.name]

    @property
    def num_tokens(self) -> int:
        """Of a step."""
        return self.rows * self.tokens

    @property
    def num_parameters(self) -> int:
        """The tied table once."""
        return num_parameters(self.config)

    @property
    def flops_per_token(self) -> float:
        """As train/speed.py counts them, for both systems."""
        return flops_per_token(self.config, self.tokens)

    def changed(self, rows: int | None, tokens: int | None) -> "Shape":
        """With another batch."""
        return replace(self, rows=rows or self.rows, tokens=tokens or self.tokens)

    def to_json(self) -> dict[str, Any]:
        """For a child."""
        return asdict(self)

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids_BT, targets_BT) of one text a row, random."""
        ids = np.random.default_rng(0).integers(3, self.config.vocab_size, (self.rows, self.tokens + 1), dtype=np.int32)
        return ids[:, :-1], ids[:, 1:]


SHAPES = {
    "small": Shape(name="small", rows=4, tokens=512),
    "270m": Shape(name="270m", rows=1, tokens=512, is_alone=True),
    "1b": Shape(name="1b", rows=1, tokens=512, is_alone=True),
}
