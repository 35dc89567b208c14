"""One message and the right code, whatever goes wrong; and nothing heavy at start-up."""

import os
import subprocess
import sys

import pytest

import gemworks
from gemworks.cli import list_, main
from gemworks.errors import CheckpointError


def run_in_process(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ | variables, check=True
    )


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "--help"], ["--version"], ["rm", "nothing"]])
def test_start_up_imports_neither_jax_nor_the_hub(arguments, repo_root):
    heavy = {"jax", "numpy", "huggingface_hub", "tokenizers", "equinox"}
    program = f"""
import sys
from gemworks.cli.main import run_command
run_command({arguments!r})
print("HEAVY", sorted({heavy!r} & set(sys.modules)))
"""
    done = run_in_process(program, PYTHONPATH=str(repo_root))
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_version(run_command):
    assert run_command("--version") == (0, f"gemworks {gemworks.__version__}\n", "")


def test_without_arguments_the_help_is_shown(run_command):
    code, out, err = run_command()
    assert code == 0 and err == ""
    assert "Run, make and look after Gemma 3 models." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lsit"], "Error: No such command 'lsit'. Did you mean 'list'?\nSee: gemworks --help\n"),
        (["run", "tiny", "--temprature", "1"], "--temperature"),
        (["run"], "Error: Missing argument"),
        (["show", "gemma4"], 'Error: no model named "gemma4". Did you mean "gemma3"?\n'),
    ],
)
def test_a_wrong_command_line_is_one_message_and_code_2(run_command, arguments, message):
    code, out, err = run_command(*arguments)
    assert (code, out) == (2, "")
    assert message in err and err.count("Error:") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (CheckpointError("x.gguf is cut off.\nFetch it again."), 2, "Error: x.gguf is cut off.\nFetch it again.\n"),
        (PermissionError(13, "Permission denied", "/etc/x"), 2, "Error: /etc/x cannot be used: Permission denied.\n"),
        (OSError(28, "No space left on device"), 2, "Error: a file cannot be used: No space left on device.\n"),
        (MemoryError(), 2, "Error: this machine has too little memory for that. See: gemworks plan MODEL\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_errors_become_one_message_and_a_code(monkeypatch, capsys, raised, code, message):
    def fail(_arguments):
        raise raised

    monkeypatch.setattr(main, "app", lambda **options: fail(options))
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert main.run_command(["list"]) == code
    assert capsys.readouterr().err == message


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def fail(**_options):
        raise ZeroDivisionError

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(ZeroDivisionError):
        main.run_command(["list"])


def test_a_reader_that_goes_away_is_not_an_error(repo_root, home):
    program = f"cd {repo_root} && {sys.executable} -m gemworks --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "1")


def test_warnings_of_the_loader_are_shown_and_those_of_libraries_are_not(monkeypatch, capsys):
    import warnings

    from gemworks.errors import GemworksWarning

    def warn(**_options):
        warnings.simplefilter("always")
        warnings.warn("tensor x holds NaN.", GemworksWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(main, "app", warn)
    assert main.run_command([]) == 0
    assert capsys.readouterr().err == "Warning: tensor x holds NaN.\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (61, "a minute ago"), (600, "10 minutes ago"), (7200, "2 hours ago"), (200_000, "2 days ago")],
)
def test_ages_are_told_as_people_do(seconds, text):
    assert list_._age(seconds) == text
