"""Size caps, file names and characters of the source, and that the checks can fail."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("gemworks", "csrc", "tests", "tools", "recipes", "bench")
SUFFIXES = {".py", ".cc", ".h"}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
# Names that collect whatever has no home.
BANNED_STEMS = {"utils", "util", "common", "helpers", "helper", "misc", "manager", "v2"}


def sources() -> list[Path]:
    return sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)


def long_file(text: str) -> list[str]:
    lines = text.count("\n")
    return [f"{lines} lines, at most {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []


def long_functions(text: str) -> list[str]:
    """Python functions past the cap, counted from `def` to the last line, docstring included."""
    return [
        f"{node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def not_ascii(text: str) -> list[str]:
    return [f"line {i}: {line.strip()[:60]!a}" for i, line in enumerate(text.split("\n"), 1) if not line.isascii()]


def banned_name(path: Path) -> list[str]:
    return [f"{part} is a name for anything" for part in (*path.parts[:-1], path.stem) if part in BANNED_STEMS]


def complaints(check) -> str:
    found = []
    for path in sources():
        if check is long_functions and path.suffix != ".py":
            continue
        local = path.relative_to(ROOT)
        subject = local if check is banned_name else path.read_text(encoding="utf-8")
        found += [f"{local}: {complaint}" for complaint in check(subject)]
    return "\n".join(found)


@pytest.mark.parametrize("check", [long_file, long_functions, not_ascii, banned_name], ids=lambda check: check.__name__)
def test_source_keeps_to(check):
    assert not (found := complaints(check)), found


def test_sources_are_found():
    """The caps would hold of an empty list, too."""
    names = {path.name for path in sources()}
    assert {"config.py", "cpu_features.cc", "cpu_features.h", "test_sizes.py"} <= names


def test_a_file_past_the_cap_is_reported():
    assert long_file("x\n" * MAX_FILE_LINES) == []
    assert long_file("x\n" * (MAX_FILE_LINES + 1)) == ["501 lines, at most 500"]


def test_a_function_past_the_cap_is_reported():
    body = "    pass\n" * (MAX_FUNCTION_LINES - 1)
    assert long_functions(f"def f():\n{body}") == []
    assert long_functions(f"class A:\n  async def f():\n{body}    pass\n") == ["f has 61 lines, at most 60"]


def test_a_character_outside_ascii_is_reported_with_its_line():
    assert not_ascii("plain\ncaf\u00e9\n") == ["line 2: 'caf\\xe9'"]


def test_a_name_for_anything_is_reported():
    assert banned_name(Path("gemworks/text/utils.py")) == ["utils is a name for anything"]
    assert banned_name(Path("gemworks/common/x.py")) == ["common is a name for anything"]
    assert banned_name(Path("gemworks/text/stops.py")) == []
