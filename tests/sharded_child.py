"""Work on several simulated devices, for a process of its own: python sharded_child.py TASK ... -> one JSON object.

gradients MESH              relative differences from one device's loss and gradients
bytes MESH                  bytes of the state on each device, in all, and as planned
run DIRECTORY MESH UNTIL    a run's losses up to a step, continued from what the directory holds
step_memory MESH LAYERS     bytes a compiled step of the 1B shape needs on each device, and as planned
"""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from nano_runs import RandomRows, nano_recipe

from gemworks.model.config import GEMMA3_1B
from gemworks.parallel.mesh import parse_mesh
from gemworks.parallel.plan import ROWS, state_shardings
from gemworks.train import metrics
from gemworks.train.feed import put_batch
from gemworks.train.forward import Rows
from gemworks.train.loop import Run, begin, make_layout, train
from gemworks.train.memory import plan_memory
from gemworks.train.state import state_shapes
from gemworks.train.step import gradient, make_step


def run_on(mesh: str, **settings) -> Run:
    recipe = nano_recipe(parse_mesh(mesh), **settings)
    return Run(recipe, RandomRows(recipe))


def gradients(mesh: str) -> dict:
    found = {}
    for name in ("", mesh):
        run = run_on(name, tokens=64, accumulate=1)
        layout = make_layout(run.recipe)
        state = begin(run, None, layout)
        batch = put_batch(run.source.batch(0), run.recipe, layout)
        compute = jax.jit(lambda state, batch, run=run, layout=layout: gradient(run.recipe, state, batch, None, layout))
        compiled = compute.lower(state, batch).compile()
        grads, terms = jax.block_until_ready(compiled(state, batch))
        found[name] = jax.device_get(grads), float(terms.total / terms.weight), compiled.as_text()
    (one, loss, _), (many, loss_of_many, text) = found[""], found[mesh]
    return {
        "loss": abs(loss - loss_of_many) / loss,
        "gradients": {name: float(np.abs(many[name] - g).max() / np.abs(g).max()) for name, g in one.items()},
        "sizes": {name: float(np.abs(g).max()) for name, g in one.items()},
        "seq": parse_mesh(mesh).seq,
        "halo": "collective-permute" in text,
    }


def bytes_of(mesh: str) -> dict:
    run = run_on(mesh)
    layout = make_layout(run.recipe)
    state = begin(run, None, layout)
    count: Counter[int] = Counter()
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            count[shard.device.id] += shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {"devices": list(count.values()), "whole": whole, "planned": layout.plan.bytes_per_device(16)}


def run_until(directory: str, mesh: str, until: str) -> dict:
    run = run_on(mesh, checkpoint_every=1)
    seen: list[int] = [0]

    def look(record) -> None:
        seen[0] = record["step"]

    train(run, Path(directory), observe=[look], should_stop=lambda: seen[0] >= int(until), measure_peak=False)
    return {"losses": [record["loss"] for record in metrics.read(Path(directory) / "metrics.jsonl")]}


def step_memory(mesh: str, layers: str) -> dict:
    """Of the compiled program: its arguments (state and batch) and its temporaries, which hold gradients too."""
    config = replace(GEMMA3_1B, layers=GEMMA3_1B.layers[: int(layers)])
    recipe = nano_recipe(parse_mesh(mesh), steps=100, rows=8, tokens=1024, dtype="bfloat16", ema=0.0)
    recipe = replace(recipe, model=config)
    layout = make_layout(recipe)
    shapes = state_shapes(recipe)
    shardings = state_shardings(layout.plan, layout.mesh, shapes)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    placed = NamedSharding(layout.mesh, PartitionSpec(None, *ROWS))
    shape = (recipe.accumulate, recipe.rows // recipe.accumulate, recipe.tokens)
    dtypes = Rows(np.int32, np.int32, np.float32, np.int32, np.int32)
    batch = Rows(*(jax.ShapeDtypeStruct(shape, dtype, sharding=placed) for dtype in dtypes))
    number = jax.ShapeDtypeStruct((), np.int32)
    compiled = make_step(recipe, layout).lower(state, number, batch, None).compile()
    found = compiled.memory_analysis()
    plan = plan_memory(recipe, layout.plan)
    return {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "reused": found.alias_size_in_bytes,
        "plan": plan._asdict(),
        "planned": plan.total,
    }


TASKS = {"gradients": gradients, "bytes": bytes_of, "run": run_until, "step_memory": step_memory}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
