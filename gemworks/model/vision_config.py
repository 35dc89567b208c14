"""Sizes of the vision tower and its projector, as data; one literal serves 4B, 12B, 27B and ShieldGemma 2."""

from dataclasses import dataclass

from gemworks.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """A SigLIP tower (Zhai et al. 2023, arXiv 2303.15343) and what follows it. Sizes are in elements and pixels."""

    image_size: int
    patch_size: int
    model_dim: int
    ffw_dim: int
    num_layers: int
    num_heads: int
    tokens_per_image: int  # soft tokens, after the average pool
    num_channels: int = 3
    norm_eps: float = 1e-6

    def __post_init__(self):
        for name in ("image_size", "patch_size", "model_dim", "ffw_dim", "num_layers", "num_heads", "num_channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"vision: {name} must be at least 1, got {getattr(self, name)}.")
        if self.model_dim % self.num_heads:
            raise ConfigError(
                f"vision: model_dim must be a multiple of num_heads, got {self.model_dim} and {self.num_heads}."
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"vision: image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}."
            )
        side = self.tokens_per_side
        if side < 1 or side * side != self.tokens_per_image or self.patches_per_side % side:
            raise ConfigError(
                f"vision: tokens_per_image must be the square of a divisor of {self.patches_per_side} patches a side, "
                f"got {self.tokens_per_image}."
            )

    @property
    def head_dim(self) -> int:
        """Width of a head; 72 in the released models."""
        return self.model_dim // self.num_heads

    @property
    def patches_per_side(self) -> int:
        """Patches of a row or column; 64 in the released models."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of an image, and positions of the tower; 4,096 in the released models."""
        return self.patches_per_side**2

    @property
    def tokens_per_side(self) -> int:
        """Soft tokens of a row or column; 16 in the released models."""
        return round(max(self.tokens_per_image, 0) ** 0.5)

    @property
    def pool(self) -> int:
        """Patches of a row that one soft token averages; 4 in the released models."""
        return self.patches_per_side // self.tokens_per_side


SIGLIP_SO400M_896 = VisionConfig(
    image_size=896,
    patch_size=14,
    model_dim=1152,
    ffw_dim=4304,
    num_layers=27,
    num_heads=16,
    tokens_per_image=256,
)
