"""Many devices change nothing: loss, gradients and bytes on 8 simulated devices, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jax.sharding import PartitionSpec as P

from gemworks.errors import ConfigError
from gemworks.model.config import GEMMA3_1B
from gemworks.parallel.mesh import MeshShape, parse_mesh
from gemworks.parallel.plan import check_batch, make_plan
from gemworks.train.forward import parameter_shapes

CHILD = Path(__file__).parents[2] / "sharded_child.py"


def child(*arguments: str, devices: int = 8) -> dict:
    """Run the child and return the last line of its output, an object."""
    environment = os.environ | {
        "PYTHONPATH": str(CHILD.parent),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run([sys.executable, str(CHILD), *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


MESHES = ("fsdp=8", "fsdp=4,tensor=2", "fsdp=2,seq=4", "replica=2,fsdp=4", "fsdp=2,seq=2,tensor=2")


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_are_those_of_one_device(mesh):
    """And local layers fetch a neighbour's block where tokens are divided, which is a collective-permute."""
    got = child("gradients", mesh)
    assert got["loss"] <= 1e-5
    assert max(got["gradients"].values()) <= 1e-5, got["gradients"]
    assert min(got["sizes"].values()) > 1e-3, "gradients that are zero prove nothing"
    assert got["halo"] == (got["seq"] > 1)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_parameters_and_optimizer_state_take_an_eighth_on_each_of_eight_devices():
    got = child("bytes", "fsdp=8")
    assert max(got["devices"]) <= got["whole"] * (1 / 8 + 0.02)
    assert max(got["devices"]) <= got["planned"] * 1.02


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("mesh", "layers"), [("fsdp=8", 26), ("fsdp=8", 6), ("fsdp=4,tensor=2", 1)])
def test_memory_of_a_step_of_1b_is_what_the_plan_says(mesh, layers):
    """Of the compiled program, which nothing runs: its arguments and its temporaries."""
    got = child("step_memory", mesh, str(layers))
    needed = got["arguments"] + got["temporaries"]
    assert needed == pytest.approx(got["planned"], rel=0.1), got
    assert got["reused"] > 0.99 * got["outputs"], "the state is used up, not copied"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_checkpoint_of_eight_devices_continues_on_four_and_one(tmp_path):
    """Three legs of a run, each on another mesh, against the same steps on one device."""
    legs = [("fsdp=4,tensor=2", 8, 3), ("fsdp=2,seq=2", 4, 6), ("", 1, 8)]
    for mesh, devices, until in legs:
        got = child("run", str(tmp_path / "legs"), mesh, str(until), devices=devices)
    alone = child("run", str(tmp_path / "alone"), "", "8", devices=1)
    assert len(got["losses"]) == len(alone["losses"]) == 8
    assert got["losses"] == pytest.approx(alone["losses"], rel=1e-5)


def test_plan_divides_every_parameter_of_1b_by_eight():
    shapes = parameter_shapes(GEMMA3_1B)
    plan = make_plan(GEMMA3_1B, shapes, MeshShape(fsdp=8))
    assert {plan.divided(plan.placements[name].stored) for name in shapes} == {8}
    table = plan.table()
    assert len(table) == 15, "equal layers are one row"
    assert ("layers.*.attn.q.weight", "1024 x 1152", "whole, fsdp", "8") in table


def test_tensor_axis_divides_heads_and_columns_and_leaves_few_kv_heads_whole():
    plan = make_plan(GEMMA3_1B, parameter_shapes(GEMMA3_1B), MeshShape(fsdp=2, tensor=4))
    places = {name: plan.placements[f"layers.3.{name}.weight"] for name in ("attn.q", "attn.k", "ffw.down")}
    assert places["attn.q"].stored == P("tensor", "fsdp") and places["attn.q"].used == P("tensor", None)
    assert places["attn.k"].stored == P(None, "fsdp")
    assert places["ffw.down"].stored == P("fsdp", "tensor")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp=x", 'got "fsdp=x"'),
        ("data=8", "with the axes replica, fsdp, seq, tensor"),
        ("fsdp=0", "at least 1 device, got 0 on fsdp"),
    ],
)
def test_wrong_mesh_is_explained(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_mesh(text)


def test_mesh_that_does_not_divide_is_explained():
    with pytest.raises(ConfigError, match="the tensor axis must divide num_heads, got tensor=3 and num_heads=4"):
        make_plan(GEMMA3_1B, parameter_shapes(GEMMA3_1B), MeshShape(tensor=3))
    with pytest.raises(ConfigError, match="multiple of replica x fsdp, got 6 rows and 1 x 4 devices"):
        check_batch(MeshShape(fsdp=4), rows=6, tokens=128)
    with pytest.raises(ConfigError, match="multiple of the seq axis, got 100 and seq=8"):
        check_batch(MeshShape(seq=8), rows=8, tokens=100)
