"""What XLA plans for a step with an adapter, beside our own plan: compiled for this device, never run.

    python bench/tune/memory.py [--shape 1b] [--methods lora,qlora] [--rows 1] [--tokens 512] [--layers N]

The last line is one JSON object: bytes of the arguments, temporaries and outputs that share no buffer with an argument.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp
import numpy as np

from bench.train.shapes import CONFIGS
from gemworks.model.config import TextConfig
from gemworks.model.gemma3 import build
from gemworks.ops.train.stored import Held, Stored
from gemworks.ops.weight import QuantWeight, code_shapes
from gemworks.train.adapters.base import Base
from gemworks.train.adapters.kinds import Adapter, LoRA, PromptTuning, base_plan, targeted
from gemworks.train.adapters.memory import plan_adapter_memory
from gemworks.train.forward import Rows
from gemworks.train.recipe import Recipe
from gemworks.train.state import state_shapes
from gemworks.train.step import make_step
from gemworks.train.trained import Frozen

METHODS: dict[str, Adapter] = {
    "lora": LoRA(rank=16),
    "dora": LoRA(rank=16, dora=True),
    "qlora": LoRA(rank=16, base="int4-b32,embed=int8"),
    "qdora": LoRA(rank=16, dora=True, base="int4-b32,embed=int8"),
    "prompt": PromptTuning(tokens=20),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b", choices=list(CONFIGS))
    parser.add_argument("--methods", default="lora,qlora")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, help="the first N layers only")
    told = parser.parse_args()
    config = CONFIGS[told.shape]
    if told.layers:
        config = replace(config, layers=config.layers[: told.layers])
    names = told.methods.split(",")
    print(json.dumps({name: measured(config, METHODS[name], told.rows, told.tokens) for name in names}))


def measured(config: TextConfig, adapter: Adapter, rows: int, tokens: int) -> dict[str, Any]:
    """Compile a step and return its bytes, and the plan's."""
    recipe = Recipe(model=config, adapter=adapter, rows=rows, tokens=tokens)
    ints: Any = jax.ShapeDtypeStruct((1, rows, tokens), jnp.int32)
    floats: Any = jax.ShapeDtypeStruct((1, rows, tokens), jnp.float32)
    batch = Rows(ints, ints, floats, ints, ints)
    begun = time.perf_counter()
    number: Any = jax.ShapeDtypeStruct((), jnp.int32)
    step: Any = make_step(recipe)
    planned = step.lower(state_shapes(recipe), number, batch, Frozen(base_shapes(recipe), None)).compile()
    found = planned.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    plan = plan_adapter_memory(recipe)
    return {
        "bytes": found.argument_size_in_bytes + found.temp_size_in_bytes + outputs,
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "outputs": outputs,
        "planned": plan.total,
        "plan": plan._asdict(),
        "compile_s": round(time.perf_counter() - begun, 1),
    }


def base_shapes(recipe: Recipe) -> Base:
    """Return the base with shapes for arrays."""
    adapter = recipe.adapter
    assert adapter is not None
    plan, dtype = base_plan(adapter), jnp.dtype(recipe.dtype)

    def leaf(name: str, shape: tuple[int, ...]) -> Any:
        is_table = name in ("embed.weight", "head.weight")
        format = None if plan is None else plan.format_of(name, shape)
        if format is None and is_table and recipe.dtype == "bfloat16":
            format = "bf16"
        if format is not None:
            codes, scales = (jax.ShapeDtypeStruct(*one) for one in code_shapes(format, *shape))
            return Stored(QuantWeight(codes, scales, format, shape), np.dtype(dtype))  # type: ignore[arg-type]
        array = jax.ShapeDtypeStruct(shape, dtype if len(shape) == 2 else jnp.float32)
        return Held(array) if is_table else array  # type: ignore[arg-type]

    model = build(recipe.model, leaf)
    squares = {}
    if isinstance(adapter, LoRA) and adapter.dora:
        shapes = state_shapes(recipe).params
        names = targeted(adapter, recipe.model)
        squares = {name: jax.ShapeDtypeStruct(shapes[f"{name}.b"].shape[:1], jnp.float32) for name in names}
    return Base(model, squares)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
