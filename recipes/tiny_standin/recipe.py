"""What a run is made of, and the architecture it trains."""

from typing import NamedTuple

from gemworks.model.config import TextConfig, five_local_one_global


class Recipe(NamedTuple):
    """What a run is made of. `steps` batches of `batch_tokens`, every `long_every`-th in rows of `long_row`."""

    seed: int = 0
    steps: int = 1000
    batch_tokens: int = 4096
    row: int = 256
    long_row: int = 1024
    long_every: int = 8
    muon_peak: float = 0.01
    adam_peak: float = 0.01
    warm_up: int = 40


def tiny_config(vocab_size: int) -> TextConfig:
    """The architecture: Gemma 3's, five local layers and a global one."""
    return TextConfig(
        vocab_size=vocab_size,
        model_dim=96,
        ffw_dim=256,
        num_heads=2,
        num_kv_heads=1,
        head_dim=48,
        query_scale=48**-0.5,
        layers=five_local_one_global(6, window=64),
        max_positions=1024,
    )
