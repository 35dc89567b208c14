"""What differs between the released sizes, as data. No code asks a model its name.

A `TextConfig` is one literal per size with one `LayerSpec` per layer; parsers of published files
(weights/config_json.py, weights/config_gguf.py) produce the same type.
"""

from dataclasses import dataclass

from gemworks.errors import ConfigError

# Embedding rows the tokenizer never produces start here; the 4B and larger checkpoints have 64 of them
# (one image placeholder and 63 rows of noise), so sampling masks them. Spec 3.5.
TEXT_VOCAB_SIZE = 262_144


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """How one layer attends. window=None is a global layer; a window of W is W keys, the query's own included."""

    window: int | None
    rope_base: float
    rope_scale: float = 1.0  # positions are divided by this (linear interpolation)

    @property
    def is_local(self) -> bool:
        """True where the layer keeps only a window of keys."""
        return self.window is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """A Gemma 3 text decoder. Sizes are in elements; `query_scale` multiplies q.k before the softmax."""

    vocab_size: int
    model_dim: int
    ffw_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # never model_dim / num_heads: no released size has that
    query_scale: float
    layers: tuple[LayerSpec, ...]
    max_positions: int
    norm_eps: float = 1e-6
    tied_head: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "model_dim", "ffw_dim", "num_heads", "num_kv_heads", "head_dim", "max_positions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.layers:
            raise ConfigError("a model needs at least one layer, got 0.")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads} and {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even (RoPE turns pairs), got {self.head_dim}.")
        if any(spec.window is not None and spec.window < 1 for spec in self.layers):
            raise ConfigError("a local layer's window must be at least 1.")
        if len({spec for spec in self.layers if spec.is_local}) > 1:
            raise ConfigError("all local layers must share one window and one RoPE base.")
        if len({spec for spec in self.layers if not spec.is_local}) > 1:
            raise ConfigError("all global layers must share one RoPE base and scale.")

    @property
    def local_spec(self) -> LayerSpec | None:
        """The one spec all local layers share, or None if there are none."""
        return next((spec for spec in self.layers if spec.is_local), None)

    @property
    def global_spec(self) -> LayerSpec | None:
        """The one spec all global layers share, or None if there are none."""
        return next((spec for spec in self.layers if not spec.is_local), None)


def five_local_one_global(
    num_layers: int, *, window: int, global_scale: float = 1.0, local_base: float = 10_000.0, global_base: float = 1e6
) -> tuple[LayerSpec, ...]:
    """Gemma 3's pattern: layer i is global where (i + 1) % 6 == 0; it starts local and may be cut short."""
    local = LayerSpec(window=window, rope_base=local_base)
    global_ = LayerSpec(window=None, rope_base=global_base, rope_scale=global_scale)
    return tuple(global_ if (i + 1) % 6 == 0 else local for i in range(num_layers))


GEMMA3_270M = TextConfig(
    vocab_size=262_144,
    model_dim=640,
    ffw_dim=2048,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    query_scale=256**-0.5,
    layers=five_local_one_global(18, window=512),
    max_positions=32_768,
)

GEMMA3_1B = TextConfig(
    vocab_size=262_144,
    model_dim=1152,
    ffw_dim=6912,
    num_heads=4,
    num_kv_heads=1,
    head_dim=256,
    query_scale=256**-0.5,
    layers=five_local_one_global(26, window=512),
    max_positions=32_768,
)

# 4B and larger: 64 more embedding rows, and global layers divide positions by 8 (128K context).
GEMMA3_4B = TextConfig(
    vocab_size=262_208,
    model_dim=2560,
    ffw_dim=10_240,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    query_scale=256**-0.5,
    layers=five_local_one_global(34, window=1024, global_scale=8.0),
    max_positions=131_072,
)

GEMMA3_12B = TextConfig(
    vocab_size=262_208,
    model_dim=3840,
    ffw_dim=15_360,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    query_scale=256**-0.5,
    layers=five_local_one_global(48, window=1024, global_scale=8.0),
    max_positions=131_072,
)

GEMMA3_27B = TextConfig(
    vocab_size=262_208,
    model_dim=5376,
    ffw_dim=21_504,
    num_heads=32,
    num_kv_heads=16,
    head_dim=128,
    # 1/sqrt(5376/32), not 1/sqrt(head_dim): the only size where the two differ.
    query_scale=168**-0.5,
    layers=five_local_one_global(62, window=1024, global_scale=8.0),
    max_positions=131_072,
)

RELEASED = {
    "270m": GEMMA3_270M,
    "1b": GEMMA3_1B,
    "4b": GEMMA3_4B,
    "12b": GEMMA3_12B,
    "27b": GEMMA3_27B,
}
