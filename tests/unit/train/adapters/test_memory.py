"""Memory of a compiled step: a quantized base is never whole as floats, and the plan says what is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


def measured(*arguments: str) -> dict:
    """What bench/tune/memory.py prints: a process of its own, whose memory goes with it."""
    command = [sys.executable, str(ROOT / "bench" / "tune" / "memory.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("layers", [1, 3])
def test_memory_of_a_step_is_what_the_plan_says(layers):
    """Of 1B's layers, 1 x 512 tokens; on a quantized base far less than on one in bf16."""
    got = measured("--shape", "1b", "--methods", "lora,qlora", "--layers", str(layers))
    for one in got.values():
        assert one["bytes"] == pytest.approx(one["planned"], rel=0.1), got
    assert got["qlora"]["bytes"] < 0.7 * got["lora"]["bytes"]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_memory_of_a_lora_step_of_1b():
    """1 x 512 tokens, layers computed again for the gradient."""
    assert measured("--shape", "1b", "--methods", "lora")["lora"]["bytes"] <= 9e9
