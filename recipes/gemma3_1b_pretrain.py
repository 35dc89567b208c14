"""Pre-training of the 1B shape on 512 devices, divided as in the report's table 2: 16 data x 16 sequence x 2 replicas.

The report's 1B saw 2T tokens at a context of 32K, distilled from a larger teacher; batch, rates and teacher are not
disclosed, and those below are ours. `--dry-run` shows memory and sharding without any of the devices.
"""

from dataclasses import replace

from gemworks.model.config import GEMMA3_1B
from gemworks.parallel.mesh import MeshShape
from gemworks.train.distill import Distill
from gemworks.train.extension import extended
from gemworks.train.loss import NextToken
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule


def recipe() -> Recipe:
    """From random weights on the next token: 64 rows of 32,768, 2.1M tokens a step."""
    return Recipe(
        model=GEMMA3_1B,
        method=NextToken(z_loss=1e-4),
        steps=950_000,
        rows=64,
        tokens=32_768,
        optimizer=Optimizer(peak=4e-4),
        schedule=Schedule(kind="cosine", warm_up=2000),
        execution=Execution(mesh=MeshShape(replica=2, fsdp=16, seq=16), checkpoint_every=1000),
    )


def distilled() -> Recipe:
    """The same with a teacher beside it: 256 draws a token."""
    return replace(recipe(), method=Distill(z_loss=1e-4))


def extension() -> Recipe:
    """The stage after: positions of global layers divided by 8, rows of 131,072, a short run at a falling rate.

    The report does this with 4B and larger; 1B stays at 32K there. start= names the model of the stage before.
    """
    return replace(
        recipe(),
        model=extended(GEMMA3_1B),
        steps=2000,
        rows=32,
        tokens=131_072,
        optimizer=Optimizer(peak=4e-5),
        schedule=Schedule(kind="linear", warm_up=100, last=0.0),
        execution=Execution(mesh=MeshShape(fsdp=16, seq=32), checkpoint_every=100),
    )
