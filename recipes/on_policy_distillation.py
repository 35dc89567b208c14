"""On-policy distillation: a trained student goes on with its own texts, which a larger model judges token by token.

    gemworks train on_policy_distillation data=packed start=runs/nano/model teacher=MODEL --out runs/own

Student and teacher have one tokenizer; data are rows of 256 (gemworks data pack --length 256), of which the first 32
tokens are prompts. A quarter of the steps sees the data's own continuations: without any, a student that drifts has
nothing that holds it. Rates are ours; the paper (arXiv 2306.13649) finds the best divergence and share by task.
"""

from dataclasses import replace
from pathlib import Path

from gemworks.train.assemble import find_recipe
from gemworks.train.on_policy import OnPolicy
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule


def recipe() -> Recipe:
    """The student and rows of nano_pretrain.py; `start` must have its sizes, the teacher only the vocabulary."""
    return replace(
        find_recipe("nano_pretrain", Path(__file__).parent),
        method=OnPolicy(divergence="jsd", beta=0.5, on_policy=0.75, prompt=32),
        steps=500,
        optimizer=Optimizer(peak=3e-4),
        schedule=Schedule(kind="cosine", warm_up=20),
        execution=Execution(checkpoint_every=100),
    )
