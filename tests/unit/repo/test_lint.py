"""ruff and pyright are clean."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*command: str) -> None:
    """Run a checker with this interpreter; its own report is the message."""
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; pip install gemworks[dev]")
    # The pyright package asks the registry for a newer pyright unless told not to.
    quiet = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    run("ruff", "check", ".")


def test_files_are_formatted():
    run("ruff", "format", "--check", ".")


@pytest.mark.exhaustive
def test_pyright_finds_nothing():
    """25 to 50 s of one core: a twentieth of what `make test` may take."""
    run("pyright", "--pythonpath", sys.executable)
