"""What a run is made of, and the architecture it trains."""

from typing import NamedTuple

from gemworks.model.config import TextConfig, five_local_one_global


class Recipe(NamedTuple):
    """What a run is made of: `steps` batches of `batch_tokens` in rows of `row` tokens.

    Every `long_every`-th batch is of `long_tokens` in rows of `long_row` instead, so that far positions are known too.
    """

    seed: int = 0
    steps: int = 2800
    batch_tokens: int = 960
    row: int = 160
    long_tokens: int = 2048
    long_row: int = 1024
    long_every: int = 32
    muon_peak: float = 0.03
    adam_peak: float = 0.01
    warm_up: int = 40


def tiny_config(vocab_size: int) -> TextConfig:
    """The architecture: Gemma 3's, five local layers and a global one."""
    return TextConfig(
        vocab_size=vocab_size,
        model_dim=64,
        ffw_dim=192,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        query_scale=32**-0.5,
        layers=five_local_one_global(6, window=64),
        max_positions=1024,
    )
