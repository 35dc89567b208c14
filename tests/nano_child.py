"""A training run in a process of its own, to be killed, or to have 8 devices: python nano_child.py DIRECTORY '{...}'.

The object has `mesh` and `settings` of the recipe, and perhaps `largest_file`, in bytes, `peers`, the arguments of
multihost.connect, `stop_after`, a number of batches, and `poisoned`, a step whose loss is not a number. Every record is
printed as a line of JSON, and at the end the step and a digest of the state, or the error.
"""

import hashlib
import json
import resource
import sys
from pathlib import Path

import jax
import numpy as np
from nano_runs import RandomRows, nano_recipe

from gemworks.errors import GemworksError
from gemworks.parallel import multihost
from gemworks.parallel.mesh import parse_mesh
from gemworks.train.loop import Run, train


def digest(state) -> str:
    leaves = [multihost.whole(x) for x in jax.tree.leaves(state)]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


def say(record) -> None:
    print(json.dumps(dict(record)), flush=True)


def main() -> None:
    directory, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    if limit := options.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    if peers := options.get("peers"):
        multihost.connect(*peers)
    recipe = nano_recipe(parse_mesh(options.get("mesh", "")), **options.get("settings", {}))
    source = CountedRows(recipe, options.get("poisoned"))
    stop_after = options.get("stop_after", 10**9)
    try:
        result = train(
            Run(recipe, source),
            directory,
            observe=[say],
            should_stop=lambda: len(source.asked) >= stop_after,
            measure_peak=False,
        )
    except GemworksError as error:
        say({"error": type(error).__name__, "message": str(error)})
        multihost.leave(2)
    say({"done": int(result.state.step), "digest": digest(result.state), "asked": source.asked})
    multihost.part()


class CountedRows(RandomRows):
    """Notes which rows were asked for; the masks of one step are infinite."""

    def __init__(self, recipe, poisoned: int | None):
        super().__init__(recipe)
        self.poisoned = poisoned
        self.asked: list[list[int]] = []

    def batch(self, step, rows=None):
        self.asked.append([step, *([rows.start, rows.stop] if rows else [])])
        batch = super().batch(step, rows)
        return batch._replace(loss_mask_BT=np.full_like(batch.loss_mask_BT, np.inf)) if step == self.poisoned else batch


if __name__ == "__main__":
    main()
