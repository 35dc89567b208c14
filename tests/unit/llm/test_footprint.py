"""What a model is said to take, beside what it took."""

import jax
import pytest
from safetensors.numpy import load_file

from gemworks import LLM
from gemworks.engine.memory import PROGRAM_BYTES, num_programs
from gemworks.errors import GemworksError
from gemworks.llm.footprint import footprint
from gemworks.weights.hub import TINY


@pytest.mark.parametrize("told", [{}, {"quant": "int8", "kv": "int8", "max_sequences": 3, "context": 256}])
def test_weights_and_pools_are_those_of_the_model(told):
    """Within 3 %: files have headers, and what is packed for a machine has padding."""
    llm = LLM("tiny", **told)
    runner = llm._engine._runner
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(runner.model)) + runner.kv_bytes
    sequences = runner.limits.max_sequences
    llm.close()
    said = footprint("tiny", **told) - num_programs(sequences, 0) * PROGRAM_BYTES
    eyes = 0 if "quant" in told else vision_bytes()
    assert said - eyes == pytest.approx(held, rel=0.03)


def vision_bytes() -> int:
    """Of the vision half in the model's file, which is loaded when a picture comes."""
    tensors = load_file(TINY / "model.safetensors")
    return sum(
        tensors[name].nbytes for name in tensors if ".vision_tower." in name or ".multi_modal_projector." in name
    )


def test_more_sequences_take_more_and_nobody_is_an_error():
    assert footprint("tiny", max_sequences=8) > footprint("tiny", max_sequences=1)
    with pytest.raises(GemworksError):
        footprint("nobody/nothing")
