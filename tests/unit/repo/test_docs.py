"""README and docs say what is so: tables, links, commands, options and Python names; and the checks can fail."""

import ast
import importlib
import re
import runpy
import shlex
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer.main

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(text) if name == language]


def anchors(text: str) -> set[str]:
    """Names that headings get on a code hosting site: lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere. Addresses of other sites are not looked at."""
    broken = []
    for target in LINK.findall(FENCE.sub("", text)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        own = text if file == page else text_of(file) if file.suffix == ".md" and file.is_file() else ""
        if (
            not (file == page or file.exists())
            or not file.is_relative_to(ROOT)
            or (anchor and anchor not in anchors(own))
        ):
            broken.append(target)
    return broken


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))


@cache
def commands() -> dict[str, frozenset[str]]:
    """Command -> its options, from the command line itself."""
    from gemworks.cli.main import app

    verbs = getattr(typer.main.get_command(app), "commands")  # noqa: B009 - a group has them, its type does not say so
    for group in [name for name, verb in verbs.items() if hasattr(verb, "commands")]:
        verbs = verbs | {f"{group} {name}": verb for name, verb in verbs[group].commands.items()}
    return {
        name: frozenset(option for parameter in verb.params for option in (*parameter.opts, *parameter.secondary_opts))
        for name, verb in verbs.items()
    }


def wrong_commands(text: str) -> list[str]:
    """Lines of sh blocks that call a make target, a command or an option that does not exist."""
    wrong = []
    for line in shell_lines("".join(blocks(text, "sh"))):
        for words in pipeline(line):
            if words[:1] == ["make"]:
                wrong += [f"make {w}" for w in words[1:] if "=" not in w and w not in make_targets()]
            elif words[:1] == ["gemworks"]:
                wrong += wrong_words(words[1:])
    return wrong


def shell_lines(text: str) -> list[str]:
    """Commands of a shell text: lines, joined where a backslash or an open quote goes on in the next."""
    found, open_ = [], ""
    for line in text.splitlines():
        line = open_ + line
        if line.endswith("\\"):
            open_ = line[:-1] + " "
            continue
        try:
            shlex.split(line, comments=True)
        except ValueError:  # a quote is open
            open_ = line + "\n"
            continue
        found.append(line)
        open_ = ""
    return [*found, open_] if open_ else found


def pipeline(line: str) -> list[list[str]]:
    """The commands of a shell line, without comments."""
    found: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "|":
            found.append([])
        else:
            found[-1].append(word)
    return found


def wrong_words(words: list[str]) -> list[str]:
    verb = words[0] if words else ""
    if any(name.startswith(f"{verb} ") for name in commands()):
        verb = " ".join(words[:2])
    if verb not in commands():
        return [f"gemworks {verb}"]
    options = commands()[verb] | {"--help", "-h"}
    given = [word.partition("=")[0] for word in words[1:] if word.startswith("-") and word != "-"]
    return [f"gemworks {verb} {option}" for option in given if option not in options]


def wrong_python(text: str) -> list[str]:
    """What python blocks import from gemworks and does not exist, and methods of LLM that it has not."""
    wrong = []
    for block in blocks(text, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gemworks":
                module = importlib.import_module(node.module or "")
                wrong += [f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)]
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "llm":
                import gemworks

                if not hasattr(gemworks.LLM, node.attr):
                    wrong.append(f"LLM.{node.attr}")
    return wrong


@cache
def generator() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "readme_table.py")))


def test_pages_are_found():
    assert {"README.md", "DESIGN.md", "CONTRIBUTING.md", "run.md", "0000-template.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_tells_the_truth(page):
    """Its links lead somewhere, and the commands, options and names in its code blocks exist."""
    text = text_of(page)
    assert broken_links(page, text) == []
    assert wrong_commands(text) == []
    assert wrong_python(text) == []


def test_options_table_of_run_exists():
    """docs/run.md names options in a table, outside code blocks."""
    named = set(re.findall(r"`(--[a-z-]+)", text_of(ROOT / "docs" / "run.md")))
    assert named
    assert named - {"--help"} <= commands()["run"]


def test_readme_tables_are_up_to_date():
    readme = text_of(ROOT / "README.md")
    assert "<!-- generated: sizes -->" in readme
    assert generator().filled(readme) == readme, "run: make docs"


def test_the_table_states_what_the_spec_says():
    """Published figures, not the code's own: parameters of the text models, and the context of each."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in generator().sizes().splitlines()[2:]]
    table = {row[0]: row for row in rows}
    published = {
        "270m": 268_098_176,
        "1b": 999_885_952,
        "4b": 3_880_263_168,
        "12b": 11_766_034_176,
        "27b": 27_009_346_304,
    }
    assert {name: row[1] for name, row in table.items()} == {
        f"`gemma3:{size}`": f"{count / 1e6:,.0f} M" for size, count in published.items()
    }
    assert table["`gemma3:1b`"][6] == "32,768"
    assert table["`gemma3:4b`"][6] == "131,072"
    # 4 kv heads x 256 x keys and values x 2 bytes = 4 KiB a layer and token; 29 windows of 1024 and 5 whole layers.
    assert table["`gemma3:4b`"][4] == f"{4096 * (29 * 1024 + 5 * 8192) / 1e9:.2f} GB"
    assert table["`gemma3:4b`"][5] == f"{4096 * 34 * 8192 / 1e9:.2f} GB"


def test_a_changed_table_is_noticed():
    readme = text_of(ROOT / "README.md")
    changed = readme.replace("| `gemma3:1b` | ", "| `gemma3:1b` | 9")
    assert changed != readme
    assert generator().filled(changed) == readme


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](docs/none.md)", ["docs/none.md"]),
        ("[a](README.md#no-such-heading)", ["README.md#no-such-heading"]),
        ("[a](../outside.md)", ["../outside.md"]),
        ("# Here it is\n[a](#here-it-is) [b](README.md#sizes) [c](docs) [d](https://example.org/x)", []),
    ],
)
def test_a_broken_link_is_named(text, wrong):
    assert broken_links(ROOT / "PAGE.md", text) == wrong


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("make run PROMPT=x", []),
        ("make walk", ["make walk"]),
        ("gemworks fly gemma3:1b", ["gemworks fly"]),
        ("gemworks convert IN OUT --sideways", ["gemworks convert --sideways"]),
        ("gemworks bench cpu --models 1b --sideways", ["gemworks bench cpu --sideways"]),
        ("gemworks bench moon", ["gemworks bench moon"]),
        ("cat a | gemworks convert - b --force  # --not-an-option", []),
    ],
)
def test_a_wrong_command_is_named(line, wrong):
    assert wrong_commands(f"```sh\n{line}\n```\n") == wrong


def test_a_wrong_name_is_named():
    text = "```python\nfrom gemworks import LLM, Nothing\nllm = LLM('tiny')\nllm.dance()\nllm.chat([])\n```\n"
    assert wrong_python(text) == ["gemworks.Nothing", "LLM.dance"]
