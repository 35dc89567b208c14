"""Runs that are killed: nothing is lost but the steps since the last whole checkpoint, and no half of one is loaded."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = Path(__file__).parents[2] / "nano_child.py"
STEPS, EVERY = 40, 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs that the child processes share."""
    return tmp_path_factory.mktemp("programs")


def start(directory: Path, cache: Path, **more) -> subprocess.Popen:
    options = {"settings": {"steps": STEPS, "checkpoint_every": EVERY}} | more
    environment = os.environ | {
        "PYTHONPATH": str(CHILD.parent),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    command = [sys.executable, str(CHILD), str(directory), json.dumps(options)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen) -> list[dict]:
    out, err = child.communicate(timeout=600)
    assert child.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def expected(cache, tmp_path_factory) -> str:
    """The digest of the state after a run that nobody killed."""
    return finish(start(tmp_path_factory.mktemp("whole"), cache))[-1]["digest"]


def kill_some_time_after_it_trains(child: subprocess.Popen, seconds: float) -> int:
    """Return the last step it told of."""
    first = child.stdout.readline()
    assert first, child.stderr.read()
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read()
    child.wait()
    child.stdout.close()
    child.stderr.close()
    lines = [line for line in (first + rest).splitlines() if line.endswith("}")]
    return json.loads(lines[-1]).get("step", STEPS)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("kills", [30])
def test_killed_run_continues_to_the_same_bits(kills, cache, expected, tmp_path):
    rng = random.Random(kills)
    run, reached, last = 0, 0, 0
    for _ in range(kills):
        child = start(tmp_path / str(run), cache)
        last = kill_some_time_after_it_trains(child, rng.uniform(0, 0.6))
        saved = [int(p.name) for p in (tmp_path / str(run) / "checkpoints").iterdir() if p.name.isdecimal()]
        # One checkpoint may be on its way while the steps to the next are made.
        assert last < 2 * EVERY + 1 or max(saved) > last - 2 * EVERY - 1, (last, saved)
        assert last >= reached
        reached = max(saved, default=0)
        if reached == STEPS:  # this one is through: the next kills are another run's
            assert finish(start(tmp_path / str(run), cache))[-1]["digest"] == expected
            run, reached = run + 1, 0
    assert finish(start(tmp_path / str(run), cache))[-1]["digest"] == expected


@pytest.mark.slow
@pytest.mark.exhaustive
def test_disk_that_is_full_in_the_middle_of_a_checkpoint_is_one_sentence(cache, tmp_path, expected):
    """A limit on the size of files stands for the disk: writes fail as they do there, with another number."""
    limited = start(tmp_path, cache, largest_file=20_000)
    out, err = limited.communicate(timeout=600)
    last = json.loads(out.splitlines()[-1])
    assert limited.returncode == 2, err
    assert last["error"] == "StorageError" and "Free some room and run the same command again" in last["message"]
    assert finish(start(tmp_path, cache))[-1]["digest"] == expected
