"""Work on several simulated devices, for a process of its own: python sharded_child.py TASK ... -> one JSON object.

gradients MESH              relative differences from one device's loss and gradients
bytes MESH                  bytes of the state on each device, in all, and as planned
run DIRECTORY MESH UNTIL    a run's losses up to a step, continued from what the directory holds
step_memory MESH            bytes a compiled step of the 1B shape needs on each device, and as planned
"""

import json
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from nano_runs import RandomRows, nano_recipe

from gemworks.parallel.mesh import parse_mesh
from gemworks.train import metrics
from gemworks.train.loop import Run, begin, make_layout, train
from gemworks.train.step import gradient, put_batch


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


TASKS = {"gradients": gradients, "bytes": bytes_of, "run": run_until}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](*sys.argv[2:])))
