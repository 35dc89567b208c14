"""Training on an accelerator: the benchmark of a step runs there and says which part of the peak it reaches."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.device
@pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator; this machine has none")
@pytest.mark.parametrize(("shape", "rows", "tokens", "least"), [("1b", 8, 2048, 0.45), ("270m", 16, 2048, 0.2)])
def test_share_of_the_matmul_peak(shape, rows, tokens, least):
    command = [sys.executable, str(ROOT / "bench" / "train" / "run.py"), "--ours", "--shapes", shape]
    command += ["--dtypes", "bfloat16", "--rounds", "1", "--steps", "5", "--rows", str(rows), "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert row["mfu"] >= least, row
