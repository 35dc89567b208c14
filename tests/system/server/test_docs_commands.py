"""The pages about serving: their commands are run as they stand, but for what only another machine can do.

    gemworks serve ...   with --dry-run: every option and settings file is read
    gemworks ...         in this process, with a home and a directory of its own
    curl ...             against the real server, its address and the model's name put in
    python               with the openai client, the same

Containers, clusters, package installs and services of the system are not run; ELSEWHERE lists their programs, and a
command of none of these kinds fails the test.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gemworks.cli.main import run_command

ROOT = Path(__file__).parents[3]
PAGES = ("serve-laptop", "serve-gpu", "serve-nginx", "serve-kubernetes", "serve-ray", "from-vllm", "from-ollama")
# Other pages, whose curl lines alone are for a server; their other commands have tests of their own.
ASKED = (*PAGES, "README")
ELSEWHERE = {"pip", "docker", "kubectl", "sudo", "ray", "serve"}
NEEDS_NETWORK = {"pull"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r"https?://(127\.0\.0\.1|localhost|llm\.example\.com)(:\d+)?")


def blocks(page: str, language: str) -> list[str]:
    folder = ROOT if page == "README" else ROOT / "docs"
    text = (folder / f"{page}.md").read_text(encoding="utf-8")
    return [body for name, body in FENCE.findall(text) if name == language]


def commands(block: str) -> list[list[str]]:
    """The commands of a block as words; a command may have quotes and backslashes over several lines."""
    found, rest = [], ""
    for line in block.splitlines(keepends=True):
        rest += line
        if rest.rstrip("\n").endswith("\\"):
            continue
        try:
            words = shlex.split(rest.replace("\\\n", " "), comments=True)
        except ValueError:  # a quote is open
            continue
        if words:
            found.append(words)
        rest = ""
    assert not rest.strip(), f"a quote is not closed: {rest!r:.80}"
    return found


def adapted(text: str, url: str) -> str:
    """A command or program for the server of these tests."""
    return re.sub(r"gemma3:\w+", "tiny", ADDRESS.sub(url, text))


def run_gemworks(words: list[str]) -> int:
    return run_command([*words, "--dry-run"] if words[0] == "serve" and "--dry-run" not in words else words)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the repository's deploy/ in it, and a home."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMWORKS_HOME", str(tmp_path / "home"))
    return tmp_path


def test_commands_are_read_as_a_shell_reads_them():
    block = "gemworks list   # names\ncurl -d '{\n  \"a\": 1}' x\ndocker run \\\n  --rm y\n\n"
    assert commands(block) == [
        ["gemworks", "list"],
        ["curl", "-d", '{\n  "a": 1}', "x"],
        ["docker", "run", "--rm", "y"],
    ]


def test_a_block_with_an_open_quote_is_noticed():
    with pytest.raises(AssertionError, match="not closed"):
        commands("curl -d '{\n")


@pytest.mark.parametrize("page", PAGES)
def test_the_gemworks_commands_of_a_page_run(page, place):
    """Every one leaves with 0; a page whose commands are all for elsewhere has none here."""
    for block in blocks(page, "sh"):
        for words in commands(block):
            if words[0] == "gemworks" and words[1] not in NEEDS_NETWORK:
                assert run_gemworks(words[1:]) == 0, words
            else:
                assert words[0] in {*ELSEWHERE, "curl", "gemworks"}, f"nobody runs {words[0]}"


def test_a_wrong_option_of_serve_is_noticed(place):
    assert run_gemworks(["serve", "tiny", "--sideways"]) == 2


@pytest.mark.parametrize("page", [page for page in ASKED if any("curl" in block for block in blocks(page, "sh"))])
def test_the_curl_commands_of_a_page_are_answered(page, server):
    url = getattr(server, "url", server)
    asked = [words for block in blocks(page, "sh") for words in commands(block) if words[0] == "curl"]
    assert asked
    for words in asked:
        command = ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "60"]
        command += [adapted(word, url) for word in words[1:]]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        assert done.stdout.strip(), words


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_programs_of_a_page_print_an_answer(page, server, capsys):
    for block in blocks(page, "python"):
        for client in re.findall(r"^(?:from|import) (openai|ollama)\b", block, re.M):
            pytest.importorskip(client)
        names: dict[str, Any] = {}
        exec(compile(adapted(block, getattr(server, "url", server)), page, "exec"), names)
        for value in names.values():  # a client keeps its connection, which a later test would be blamed for
            if not isinstance(value, type) and callable(close := getattr(value, "close", None)):
                close()
        assert capsys.readouterr().out.strip(), block
