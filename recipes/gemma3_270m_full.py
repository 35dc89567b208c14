"""All parameters of Gemma 3 270M, tuned on conversations of your own: the model that is made for one task.

    gemworks pull gemma3:270m
    gemworks data inspect mine.jsonl --tokenizer gemma3:270m
    gemworks tune gemma3:270m mine.jsonl --method full --recipe gemma3_270m_full --epochs 3
    gemworks run runs/mine-full/model "Hello"
    gemworks quantize runs/mine-full/model --format int4-b32 -o mine-int4

mine.jsonl has a conversation a line (docs/tune.md). A step needs about 16 bytes a parameter (fp32 parameters, two
moments, gradient), 4.3 GB, and the activations of a row; where that is too much, tune with --method lora.
Rate and batch are ours: Gemma 3's own are not disclosed.
"""

from gemworks.model.config import GEMMA3_270M
from gemworks.train.loss import NextToken
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule


def recipe() -> Recipe:
    """8 rows of 1,024 tokens a step, two rows at a time."""
    return Recipe(
        model=GEMMA3_270M,
        method=NextToken(),
        steps=1000,
        rows=8,
        tokens=1024,
        accumulate=4,
        optimizer=Optimizer(peak=5e-5, b2=0.999, weight_decay=0.0),
        schedule=Schedule(kind="cosine", warm_up=10),
        execution=Execution(checkpoint_every=50, examine_every=50, keep=2),
    )
