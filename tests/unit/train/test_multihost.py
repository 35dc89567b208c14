"""Two processes on this machine train as one does: the same losses, each reading its rows; what ends one ends both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gemworks as gemworks_package
from gemworks.errors import ConfigError
from gemworks.parallel import multihost
from gemworks.train import metrics

CHILD = Path(__file__).parents[2] / "nano_child.py"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(directory: Path, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(CHILD.parent)}
    command = [sys.executable, str(CHILD), str(directory), json.dumps(options)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def start_two(directory: Path, *, each=({}, {}), **options) -> list[subprocess.Popen]:
    coordinator = f"localhost:{free_port()}"
    return [start(directory, peers=[coordinator, 2, i], **options, **each[i]) for i in range(2)]


def finish(child: subprocess.Popen, code: int = 0) -> list[dict]:
    out, err = child.communicate(timeout=900)
    assert child.returncode == code, err
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def losses(directory: Path) -> list[float]:
    return [record["loss"] for record in metrics.read(directory / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[float]:
    """Losses of eight steps in one process, on one device."""
    directory = tmp_path_factory.mktemp("alone")
    finish(start(directory))
    return losses(directory)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("mesh", "accumulate", "asked"),
    [
        ("fsdp=2", 2, [[0, 0, 2], [0, 4, 6]]),  # of each micro-batch of 4 the first 2 rows
        ("seq=2", 1, [[0, 0, 8]]),  # tokens are divided: both need every row
        ("tensor=2", 1, [[0, 0, 8]]),
    ],
)
def test_two_processes_have_the_losses_of_one(mesh, accumulate, asked, alone, tmp_path):
    children = start_two(tmp_path, mesh=mesh, settings={"accumulate": accumulate})
    first, second = (finish(child) for child in children)
    assert first[-1]["asked"][: len(asked)] == asked
    assert [line.get("step") for line in second] == [None], "only the first speaks"
    assert first[-1]["digest"] == second[-1]["digest"]
    assert len(losses(tmp_path)) == 8
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_either_process_stops_both_and_one_goes_on_alone(alone, tmp_path):
    children = start_two(tmp_path, mesh="fsdp=2", each=({}, {"stop_after": 3}))
    done = {finish(child)[-1]["done"] for child in children}
    assert done == {3}
    assert finish(start(tmp_path))[-1]["done"] == 8
    assert losses(tmp_path) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_recipe_of_another_process_is_compared(tmp_path):
    children = start_two(tmp_path, mesh="fsdp=2", each=({"settings": {"seed": 0}}, {"settings": {"seed": 1}}))
    said = [finish(child, code=2)[-1]["message"] for child in children]
    assert all("was started with another recipe than process 0:\n  seed   0 -> 1" in one for one in said), said
    assert said[0].startswith("process 1 of 2: ")


@pytest.mark.slow
@pytest.mark.exhaustive
def test_loss_that_is_not_finite_stops_both_with_the_state_before_it(tmp_path):
    children = start_two(tmp_path, mesh="fsdp=2", poisoned=3)
    said = [finish(child, code=2)[-1] for child in children]
    assert [one["error"] for one in said] == ["NotFinite"] * 2
    assert "step 4: loss nan" in said[0]["message"]
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["3"]


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_other_and_a_checkpoint_is_left(victim, tmp_path):
    """By the command, whose watching process has the last word where jax ends the other from within."""
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "text.txt").write_text("Nothing is lost but the steps since the last whole checkpoint. " * 400)
    gemworks("data", "pack", "text.txt", "--out", "packed", "--tokenizer", TINY, "--length", "32", cwd=tmp_path)
    train = ("train", "recipe.py", "data=packed", "--out", "run")
    peers = ("execution.mesh=fsdp=2", "--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process")
    children = [begin(*train, *peers, str(i), cwd=tmp_path) for i in range(2)]
    checkpoints = tmp_path / "run" / "checkpoints"
    while not (checkpoints / "10").is_dir():
        assert [child.poll() for child in children] == [None, None]
        time.sleep(0.1)
    watcher = children[victim].pid
    (computing,) = Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()
    os.kill(int(computing), signal.SIGKILL)
    said = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [2, 2]
    assert "this process of the run was ended by SIGKILL" in said[victim]
    assert "another process of this run is gone" in said[1 - victim]
    assert "Traceback" not in said[1 - victim] and "stack trace" not in said[1 - victim]
    gemworks(*train, cwd=tmp_path)  # alone, to the end
    assert len(losses(tmp_path / "run")) == STEPS


STEPS, TINY = 120, str(Path(gemworks_package.__file__).parent / "assets" / "tiny")
RECIPE = f"""
from dataclasses import replace
from nano_runs import nano_recipe

def recipe():
    made = nano_recipe(checkpoint_every=10, steps={STEPS})
    return replace(made, model=replace(made.model, vocab_size=8192))
"""


def begin(*arguments: str, cwd: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(CHILD.parent)}
    command = [sys.executable, "-m", "gemworks", *arguments]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def gemworks(*arguments: str, cwd: Path) -> None:
    child = begin(*arguments, cwd=cwd)
    _, err = child.communicate(timeout=900)
    assert child.returncode == 0, err


@pytest.mark.parametrize(
    ("peers", "message"),
    [
        (("here", 2, 0), 'written as HOST:PORT, or auto; got "here"'),
        (("here:1", None, 0), "needs the number of processes and which of them this is"),
        (("here:1", 2, 2), "process must be one of 0 to 1, got 2"),
    ],
)
def test_wrong_peers_are_explained(peers, message):
    with pytest.raises(ConfigError, match=message):
        multihost.connect(*peers)
