"""LoRA on Gemma 3 1B with conversations of your own: 13M of 1,000M parameters are trained, the rest stays as it is.

    gemworks pull gemma3:1b
    gemworks data inspect mine.jsonl --tokenizer gemma3:1b                        what is learned of each conversation
    gemworks tune gemma3:1b mine.jsonl --recipe gemma3_1b_lora --epochs 3
    gemworks run gemma3:1b --adapter runs/mine-lora/adapter "Hello"

mine.jsonl has a conversation a line: {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", ...}]};
docs/tune.md says all of it. Without --recipe the same command chooses rows, rates and steps from the data and the
memory. Rates and rank are ours, near those of open trainers; `--set optimizer.peak=1e-4` changes one.

`qlora` holds the frozen model in 4 bits: 0.7 GB of weights instead of 2.0.
"""

from dataclasses import replace

from gemworks.model.config import GEMMA3_1B
from gemworks.train.adapters.kinds import LoRA
from gemworks.train.loss import NextToken
from gemworks.train.recipe import Execution, Optimizer, Recipe, Schedule


def recipe() -> Recipe:
    """Rank 16 on all matrices, 8 rows of 1,024 tokens a step, one row at a time."""
    return Recipe(
        model=GEMMA3_1B,
        method=NextToken(),
        adapter=LoRA(rank=16, alpha=32.0),
        steps=1000,
        rows=8,
        tokens=1024,
        accumulate=8,
        optimizer=Optimizer(peak=2e-4, b2=0.999, weight_decay=0.0),
        schedule=Schedule(kind="cosine", warm_up=10),
        execution=Execution(checkpoint_every=50, examine_every=50),
    )


def qlora() -> Recipe:
    """The same beside a base of 4-bit blocks, its table in 8 bits: --recipe gemma3_1b_lora:qlora."""
    return replace(recipe(), adapter=LoRA(rank=16, alpha=32.0, base="int4-b32,embed=int8-b32"))


def dora() -> Recipe:
    """The same with trained lengths of rows (DoRA), which helps at small ranks: --recipe gemma3_1b_lora:dora."""
    return replace(recipe(), adapter=LoRA(rank=8, alpha=16.0, dora=True))
