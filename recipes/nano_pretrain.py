"""nano: 0.28M parameters, to see the pipeline run in minutes on two cores. Data: gemworks data pack --length 256."""

from gemworks.model.config import TextConfig, five_local_one_global
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule


def recipe() -> Recipe:
    """Rates and batch are ours: Gemma 3's are not disclosed."""
    model = TextConfig(
        vocab_size=512,
        model_dim=64,
        ffw_dim=256,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
        query_scale=32**-0.5,
        layers=five_local_one_global(6, window=64),
        max_positions=256,
    )
    return Recipe(
        model=model,
        steps=2000,
        rows=16,
        tokens=256,
        dtype="float32",
        optimizer=Optimizer(peak=3e-3),
        schedule=Schedule(kind="cosine", warm_up=100),
        execution=Execution(checkpoint_every=500),
    )
