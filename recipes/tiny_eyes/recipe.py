"""What a run is made of, and the eyes it trains."""

from typing import NamedTuple

from gemworks.model.vision_config import VisionConfig
from recipes.tiny_standin.recipe import Recipe

EYES = VisionConfig(
    image_size=64, patch_size=8, model_dim=64, ffw_dim=192, num_layers=4, num_heads=4, tokens_per_image=16
)


class TowerRecipe(NamedTuple):
    """Stage 1: `steps` batches of `batch` scenes out of `album`."""

    seed: int = 0
    album: int = 40_000
    steps: int = 3000
    batch: int = 32
    muon_peak: float = 0.02
    adam_peak: float = 0.003
    warm_up: int = 50


class EyesRecipe(NamedTuple):
    """Stage 2 is the text recipe as it is, its tokenizer too. Stage 3 goes on from it.

    Every batch of stage 3 has rows of text, so that what the decoder knew stays, and `picture_rows` with pictures.
    """

    seed: int = 0
    eyes: VisionConfig = EYES
    tower: TowerRecipe = TowerRecipe()
    text: Recipe = Recipe()
    talk: Recipe = Recipe(steps=4000, row=224, batch_tokens=2 * 224, muon_peak=0.02, adam_peak=0.006)
    picture_rows: int = 6
    held_scenes: int = 1000  # of each kind of question, asked in the end

    def seeded(self, seed: int) -> "EyesRecipe":
        """The same run from another seed."""
        return self._replace(
            seed=seed,
            tower=self.tower._replace(seed=seed),
            text=self.text._replace(seed=seed),
            talk=self.talk._replace(seed=seed),
        )


def nano_recipe() -> EyesRecipe:
    """The same run at a size for tests: it shows that every stage runs, and learns nothing."""
    eyes = VisionConfig(
        image_size=32, patch_size=8, model_dim=16, ffw_dim=32, num_layers=1, num_heads=2, tokens_per_image=16
    )
    small = Recipe(steps=3, row=224, batch_tokens=2 * 224, warm_up=1, long_every=100)
    return EyesRecipe(
        eyes=eyes,
        tower=TowerRecipe(album=24, steps=3, batch=8, warm_up=1),
        text=small,
        talk=small,
        picture_rows=2,
        held_scenes=2,
    )
