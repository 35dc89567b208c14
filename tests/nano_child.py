"""A training run in a process of its own, to be killed, or to have 8 devices: python nano_child.py DIRECTORY '{...}'.

The object has `mesh` and `settings` of the recipe, and perhaps `largest_file`, in bytes. Every record is printed as a
line of JSON, and at the end the loss of every step and a digest of the state.
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
from gemworks.parallel.mesh import parse_mesh
from gemworks.train.loop import Run, train


def digest(state) -> str:
    leaves = [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state))]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


def say(record) -> None:
    print(json.dumps(dict(record)), flush=True)


def main() -> None:
    directory, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    if limit := options.get("largest_file"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    recipe = nano_recipe(parse_mesh(options.get("mesh", "")), **options.get("settings", {}))
    try:
        result = train(Run(recipe, RandomRows(recipe)), directory, observe=[say], measure_peak=False)
    except GemworksError as error:
        say({"error": type(error).__name__, "message": str(error)})
        sys.exit(2)
    say({"done": int(result.state.step), "digest": digest(result.state)})


if __name__ == "__main__":
    main()
