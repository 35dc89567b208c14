"""The import rules of DESIGN.md section 4, on the syntax tree of every module; and that the rules can fail."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Package or module directly below gemworks -> what it may import there besides itself. A new one needs a line here and
# in DESIGN.md.
_BASE = {"errors", "env", "memory", "machine"}
_MODEL = _BASE | {"ops", "model"}
_WEIGHTS = _MODEL | {"quant", "parallel", "weights"}
_TEXT = _BASE | {"tokenizer", "media", "text"}
ALLOWED = {
    "errors": set(),
    "env": {"errors"},
    "memory": set(),
    "machine": set(),
    "ops": _BASE,
    "model": {"errors", "ops"},
    "quant": _MODEL,
    "parallel": _MODEL,
    "weights": _WEIGHTS | {"tokenizer"},  # a converted model carries its vocabulary and chat template
    "engine": _WEIGHTS,
    "train": _WEIGHTS | _TEXT | {"data"},
    "tokenizer": _BASE,
    "media": _BASE,
    "text": _TEXT,
    "safety": _BASE | {"tokenizer"},
    "tools": _BASE,
    "llm": _WEIGHTS | _TEXT | {"engine", "safety"},
    "server": _WEIGHTS | _TEXT | {"engine", "llm", "__init__"},  # __init__: the version
    "rl": _WEIGHTS | _TEXT | {"engine", "train", "data", "llm"},
    "data": _TEXT,
    "bench": _WEIGHTS | _TEXT | {"engine", "llm"},
    "eval": _BASE | {"tools", "data"},
}
# The package itself and the command line stand above everything.
TOP = {"__init__", "__main__", "cli"}

_ENGINE = tuple(
    f"engine.{name}"
    for name in (
        *("types", "plan", "pages", "rings", "sequence", "prefix", "allocator", "queues", "composer", "fairness"),
        *("cost", "scheduler", "handle", "worker", "shapes", "memory", "host"),
    )
)
NO_JAX = ("data", "tokenizer", "media", "text", "safety", "server", "tools", "eval", *_ENGINE)
JAX = {"jax", "jaxlib", "equinox", "optax", "orbax", "flax"}
BACKENDS = ("gemworks.ops.cpu", "gemworks.ops.gpu")
# Import name -> the declared dependency that brings it, where the two differ.
BROUGHT_BY = {
    **{"PIL": "pillow", "ml_dtypes": "jax", "jaxlib": "jax", "click": "typer", "httpx": "huggingface_hub"},
    **{"starlette": "fastapi", "prometheus_client": "prometheus-client", "pydantic_core": "pydantic"},
}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, its line, whether inside a function, whether for the type checker only."""

    name: str
    line: int
    is_lazy: bool
    is_typing: bool


def modules(package: Path) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of every module of a package, the package's own name first in each."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


@cache
def tree() -> dict[str, ast.Module]:
    return modules(ROOT / "gemworks")


def imports(module: str, node: ast.Module, known: frozenset[str], packages: frozenset[str]) -> Iterator[Import]:
    """Every import of a module. `from a import b` is a.b where that is a module, else a."""

    def visit(parent: ast.AST, is_lazy: bool, is_typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, ast.Import):
                yield from (Import(a.name, child.lineno, is_lazy, is_typing) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = absolute(module, child, module in packages)
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    yield Import(full if full in known else base, child.lineno, is_lazy, is_typing)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                yield from visit(child, is_lazy, True)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from visit(child, is_lazy or inside, is_typing)

    yield from visit(node, False, False)


def absolute(module: str, node: ast.ImportFrom, is_package: bool) -> str:
    """The absolute name of what a `from` statement imports from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def all_imports(trees: dict[str, ast.Module]) -> dict[str, list[Import]]:
    known = frozenset(trees)
    packages = frozenset(name.rpartition(".")[0] for name in trees)
    # One entry a line: `from a import b, c` often is a twice.
    return {name: list(dict.fromkeys(imports(name, node, known, packages))) for name, node in trees.items()}


def unit(module: str) -> str:
    """What stands directly below gemworks: `gemworks.model.rope` -> `model`, `gemworks` -> `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer_violations(trees: dict[str, ast.Module]) -> list[str]:
    wrong = []
    for module, found in all_imports(trees).items():
        own = unit(module)
        if own in TOP:
            continue
        if own not in ALLOWED:
            wrong.append(f"{module}: {own} has no line in ALLOWED; decide what it may import")
            continue
        for item in found:
            if item.name.split(".")[0] == "gemworks" and unit(item.name) not in ALLOWED[own] | {own}:
                wrong.append(f"{module}:{item.line} imports {item.name}; {own} may import {sorted(ALLOWED[own])}")
    return wrong


def backend_violations(trees: dict[str, ast.Module]) -> list[str]:
    wrong = []
    for module, found in all_imports(trees).items():
        for item in found:
            backend = next((b for b in BACKENDS if (item.name + ".").startswith(b + ".")), None)
            if backend and not (module + ".").startswith(backend + "."):
                if module != "gemworks.ops.select":
                    wrong.append(f"{module}:{item.line} imports {item.name}; only ops/select.py may")
                elif not item.is_lazy:
                    wrong.append(
                        f"{module}:{item.line} imports {item.name} at import time; import it inside a function"
                    )
            if (item.name + ".").startswith("gemworks.ops.xla.") and not module.startswith("gemworks.ops"):
                wrong.append(f"{module}:{item.line} imports {item.name}; call gemworks.ops")
            if item.name == "importlib" and module not in {"gemworks", "gemworks.ops.select"}:
                wrong.append(f"{module}:{item.line} imports by name at run time; only ops/select.py may")
    return wrong


def jax_violations(trees: dict[str, ast.Module]) -> list[str]:
    """Modules of NO_JAX from which jax is reached, with the way. A package's __init__ runs before its modules."""
    found = all_imports(trees)

    def nexts(module: str) -> list[str]:
        parents = [module.rsplit(".", i)[0] for i in range(1, module.count(".") + 1)]
        # What a parent package imports lazily is its own business; what the module imports lazily is reached too.
        own = [i.name for i in found[module] if not i.is_typing]
        return own + [i.name for p in parents for i in found.get(p, []) if not i.is_typing and not i.is_lazy]

    def way_to_jax(start: str) -> list[str] | None:
        """The shortest one: breadth first, each module once."""
        came_from: dict[str, str | None] = {start: None}
        for module in (queue := [start]):
            if module.split(".")[0] in JAX:
                way = [module]
                while (before := came_from[way[0]]) is not None:
                    way.insert(0, before)
                return way
            for name in nexts(module) if module in found else ():
                if name not in came_from:
                    came_from[name] = module
                    queue.append(name)
        return None

    starts = [m for m in found if any((m + ".").startswith(f"gemworks.{free}.") for free in NO_JAX)]
    ways = (way_to_jax(start) for start in starts)
    return [f"jax is reached: {' -> '.join(way)}" for way in ways if way]


def environ_violations(trees: dict[str, ast.Module]) -> list[str]:
    wrong = []
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for module, node in trees.items():
        if module == "gemworks.env":
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and part.attr in names and getattr(part.value, "id", "") == "os":
                wrong.append(f"{module}:{part.lineno} uses os.{part.attr}; add a function to env.py")
            if isinstance(part, ast.ImportFrom) and part.module == "os":
                wrong += [f"{module}:{part.lineno} imports os.{a.name}" for a in part.names if a.name in names]
    return wrong


def print_violations(trees: dict[str, ast.Module]) -> list[str]:
    return [
        f"{module}:{part.lineno} prints; only cli/ does"
        for module, node in trees.items()
        if unit(module) != "cli"
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and part.id == "print"
    ]


def root_name(node: ast.AST) -> str | None:
    """`a` of a.b[0](c).d, or None."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def side_effect_violations(trees: dict[str, ast.Module]) -> list[str]:
    """Statements at module level that call or change something the module did not make itself."""
    wrong = []
    for module, node in trees.items():
        own = {t.id for s in node.body for t in assigned(s) if isinstance(t, ast.Name)}
        for statement in node.body:
            for part in effects(statement):
                if root_name(part) not in own:
                    wrong.append(
                        f"{module}:{part.lineno} changes something outside the module: {ast.unparse(part)[:60]}"
                    )
    return wrong


def assigned(statement: ast.stmt) -> list[ast.expr]:
    if isinstance(statement, ast.Assign):
        return statement.targets
    return [statement.target] if isinstance(statement, ast.AnnAssign | ast.AugAssign) else []


def effects(statement: ast.stmt) -> Iterator[ast.expr]:
    """The expressions of a module-level statement that act on an object, methods of imported ones as decorators too."""
    if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
        yield statement.value
    yield from (t for t in assigned(statement) if isinstance(t, ast.Attribute | ast.Subscript))
    if isinstance(statement, ast.Delete):
        yield from statement.targets
    if isinstance(statement, ast.If | ast.Try | ast.With | ast.For | ast.While):
        test = ast.unparse(statement.test) if isinstance(statement, ast.If) else ""
        if "__name__" not in test:
            for part in ast.iter_child_nodes(statement):
                body = part.body if isinstance(part, ast.ExceptHandler) else [part]
                for inner in body:
                    if isinstance(inner, ast.stmt):
                        yield from effects(inner)
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        registering = {"command", "callback", "register", "register_class", "add_typer", "get", "post", "route"}
        for decorator in statement.decorator_list:
            target = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(target, ast.Attribute) and target.attr in registering:
                yield decorator


# Extras that a part of the package, or a module, is nothing without: only whoever installed them imports it.
NEEDS = {"server": ("serve",), "gemworks.server.ray_router": ("serve", "ray")}


def dependency_violations(trees: dict[str, ast.Module], declared: set[str], extras: dict[str, set[str]]) -> list[str]:
    """Imports of packages that the core does not declare. What extras bring is imported lazily, inside a function."""

    def may_import(module: str) -> set[str]:
        needed = NEEDS.get(module, NEEDS.get(unit(module), ()))
        return declared.union(*(extras.get(name, set()) for name in needed))

    return [
        f"{module}:{item.line} imports {top}, which the core dependencies do not declare"
        for module, found in all_imports(trees).items()
        for item in found
        if not item.is_lazy and not item.is_typing
        for top in [item.name.split(".")[0]]
        if top not in sys.stdlib_module_names | {"gemworks"}
        and BROUGHT_BY.get(top, top).lower() not in may_import(module)
    ]


# Modules that run rivals, or write files for them.
MEASURED = {"gemworks.bench.rivals_llama", "gemworks.bench.vision_systems", "gemworks.bench.vision_files"}


def oracle_violations(trees: dict[str, ast.Module]) -> list[str]:
    """Imports, even lazy ones, of what only the parity tests may use."""
    return [
        f"{module}:{item.line} imports {item.name}; only tests/oracle may"
        for module, found in all_imports(trees).items()
        for item in found
        if item.name.split(".")[0] in {"torch", "transformers", "peft", "llama_cpp", "gguf"}
        and module not in MEASURED  # there, beside ours
    ]


@cache
def declared() -> tuple[set[str], dict[str, set[str]]]:
    """The packages of the core, and of every extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in lines}

    extras = {extra: names(lines) for extra, lines in project["optional-dependencies"].items()}
    return names(project["dependencies"]), extras


RULES = {
    "layers": layer_violations,
    "backends": backend_violations,
    "jax": jax_violations,
    "environ": environ_violations,
    "print": print_violations,
    "side effects": side_effect_violations,
    "dependencies": lambda trees: dependency_violations(trees, *declared()),
    "oracle": oracle_violations,
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(rule):
    assert not (wrong := RULES[rule](tree())), "\n".join(wrong)


# rule, module, its source, and what the complaint must name. The other modules are fixed: see `planted`.
BROKEN = [
    ("layers", "gemworks.model.bad", "from gemworks.weights import names", "gemworks.weights"),
    ("layers", "gemworks.model.bad", "from gemworks import env", "gemworks.env"),
    ("layers", "gemworks.model.bad", "from ..engine.types import Timings", "gemworks.engine.types"),
    ("layers", "gemworks.engine.bad", "def f():\n    from gemworks.tokenizer import x", "gemworks.tokenizer"),
    ("layers", "gemworks.errors", "import gemworks.env", "gemworks.env"),
    ("layers", "gemworks.weights.bad", "import gemworks.cli.main", "gemworks.cli.main"),
    ("layers", "gemworks.novel.bad", "", "novel has no line"),
    ("backends", "gemworks.model.bad", "def f():\n    import gemworks.ops.cpu", "only ops/select.py"),
    ("backends", "gemworks.ops.select", "from gemworks.ops.cpu import linear", "at import time"),
    ("backends", "gemworks.model.bad", "from gemworks.ops.xla import basic", "call gemworks.ops"),
    ("backends", "gemworks.llm", "import importlib", "by name at run time"),
    ("jax", "gemworks.text.bad", "import jax.numpy as jnp", "gemworks.text.bad -> jax.numpy"),
    ("jax", "gemworks.text.bad", "def f():\n    import jax", "gemworks.text.bad -> jax"),
    ("jax", "gemworks.engine.pages", "from gemworks.model import gemma3", "-> gemworks.model.gemma3 -> equinox"),
    ("jax", "gemworks.tokenizer", "from gemworks import ops", "gemworks.tokenizer -> gemworks.ops -> jax"),
    ("environ", "gemworks.weights.bad", "import os\nx = os.environ.get('A')", "os.environ"),
    ("environ", "gemworks.weights.bad", "from os import getenv", "os.getenv"),
    ("print", "gemworks.weights.bad", "def f(log=print): ...", "prints"),
    ("side effects", "gemworks.llm", "import jax\njax.config.update('a', 1)", "jax.config.update"),
    ("side effects", "gemworks.llm", "import sys\nsys.path[0] = 'x'", "sys.path[0]"),
    ("side effects", "gemworks.llm", "import os\nif True:\n    os.chdir('/')", "os.chdir"),
    ("side effects", "gemworks.llm", "import os\ntry:\n    pass\nexcept OSError:\n    os.chdir('/')", "os.chdir"),
    ("side effects", "gemworks.llm", "from gemworks.cli import app\n@app.command()\ndef f(): ...", "app.command"),
    ("dependencies", "gemworks.llm", "import requests", "requests"),
    ("oracle", "gemworks.llm", "def f():\n    import torch", "torch"),
]


def planted(module: str, source: str) -> dict[str, ast.Module]:
    """A small healthy package with one module of it replaced or added."""
    sources = {
        "gemworks": "",
        "gemworks.errors": "",
        "gemworks.env": "import os\nfrom gemworks import errors\nhome = os.environ.get('HOME')",
        "gemworks.ops": "import jax",
        "gemworks.ops.select": "import importlib\ndef f():\n    import gemworks.ops.cpu",
        "gemworks.ops.cpu": "import gemworks.ops.cpu.linear",
        "gemworks.ops.cpu.linear": "",
        "gemworks.model": "",
        "gemworks.model.gemma3": "import equinox\nfrom gemworks import ops\nfrom gemworks.errors import ConfigError",
        "gemworks.engine": "",
        "gemworks.engine.types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import jax",
        "gemworks.tokenizer": "",
        "gemworks.text": "TABLE = {}\nTABLE['a'] = 1\nif __name__ == '__main__':\n    TABLE.update(b=2)",
        "gemworks.cli": "import typer\napp = typer.Typer()\n@app.command()\ndef run():\n    print(1)",
    }
    # The package file of a planted module is itself `name/__init__.py` here, like all of the above.
    return {name: ast.parse(text) for name, text in {**sources, module: source}.items()}


@pytest.mark.parametrize("rule", RULES)
def test_rule_accepts_a_healthy_package(rule):
    assert RULES[rule](planted("gemworks.errors", "")) == []


@pytest.mark.parametrize(("rule", "module", "source", "named"), BROKEN)
def test_rule_names_what_breaks_it(rule, module, source, named):
    wrong = RULES[rule](planted(module, source))
    assert len(wrong) == 1
    assert module in wrong[0]
    assert named in wrong[0]


def run_python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


# Ray imports it, in its own processes; the extra that brings Ray is not among those of development.
ONLY_WITH_RAY = {"gemworks.server.ray_router"}


def test_jax_free_modules_load_without_jax():
    """What the syntax trees promise, seen: none of these modules brings jax in."""
    modules = set(tree()) - ONLY_WITH_RAY
    free = sorted(m for m in modules if any((m + ".").startswith(f"gemworks.{name}.") for name in NO_JAX))
    assert free
    code = f"import importlib, sys\nfor name in {free}:\n    importlib.import_module(name)\n"
    run_python(code + f"assert not (found := {JAX} & set(sys.modules)), found")


def test_importing_every_module_changes_nothing_outside():
    """Environment, paths, warnings, logging, signals, hooks and jax's configuration are as before."""
    modules = {name: found for name, found in tree().items() if name not in ONLY_WITH_RAY}
    outside = sorted(
        {i.name for found in all_imports(modules).values() for i in found if not i.is_lazy and not i.is_typing}
        - modules.keys()
    )
    own = [name for name in modules if not name.endswith("__main__")]
    run_python(f"""
import importlib, logging, os, signal, sys, warnings
for name in {[name for name in outside if not name.startswith("gemworks")]}:
    importlib.import_module(name)
import jax
def state():
    return {{
        "environ": dict(os.environ), "cwd": os.getcwd(), "path": list(sys.path), "warnings": list(warnings.filters),
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook), "meta_path": list(sys.meta_path),
        "handlers": list(logging.root.handlers), "level": logging.root.level, "recursion": sys.getrecursionlimit(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "jax": dict(jax.config.values),
    }}
before = state()
for name in {own}:
    importlib.import_module(name)
changed = [key for key, value in state().items() if value != before[key]]
assert not changed, changed
""")
