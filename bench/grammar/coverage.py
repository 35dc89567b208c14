"""How much of JSON Schema can an answer be held to? Every test of a public suite, fed to its schema's grammar.

    python bench/grammar/coverage.py --suite DIR [--every N] [--wrong] [--tokenizer DIR]

DIR is tests/draft2020-12 of https://github.com/json-schema-org/JSON-Schema-Test-Suite, or maskbench/data of
https://github.com/guidance-ai/jsonschemabench; nothing of either is in this repository. A schema is compiled or refused
with a reason; each instance of one that compiles is written as compact JSON and is accepted or not.

    wrong     invalid instances accepted: what must not be
    narrow    valid instances not accepted: in another order of properties, with properties that nobody named, 1e3
    right     groups (a schema and its instances) with every verdict right, and those refused that nothing satisfies

--wrong lists every wrong instance. --every N takes each N-th file of a folder of many. The last line is one JSON
object.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemworks.errors import RequestError
from gemworks.text import grammar
from gemworks.tokenizer import Tokenizer
from gemworks.weights.hub import TINY

# Share of groups with every verdict right: (Outlines, llama.cpp, XGrammar, Guidance), figure "JSON Schema Test Suite
# Coverage" of JSONSchemaBench (Geng et al. 2025, arXiv:2501.10868; img/Test_Suite_coverage.png of its repository).
# The suite has grown since, so its rows are near ours and not the same.
PUBLISHED_ENGINES = ("Outlines", "llama.cpp", "XGrammar", "Guidance")
PUBLISHED = {
    "additionalProperties": (0.22, 0.56, 0.22, 0.67),
    "allOf": (0.42, 0.17, 0.25, 0.75),
    "anchor": (0.0, 0.0, 0.0, 1.0),
    "anyOf": (0.38, 0.25, 0.5, 1.0),
    "boolean_schema": (0.5, 0.5, 0.5, 1.0),
    "const": (0.33, 0.6, 0.47, 0.6),
    "contains": (0.0, 0.0, 0.14, 0.0),
    "content": (0.0, 0.0, 1.0, 1.0),
    "default": (0.67, 0.67, 0.67, 1.0),
    "defs": (0.0, 0.0, 0.0, 0.0),
    "dependentRequired": (0.0, 0.0, 0.25, 0.0),
    "dependentSchemas": (0.0, 0.0, 0.0, 0.0),
    "dynamicRef": (0.0, 0.0, 0.27, 0.0),
    "enum": (0.5, 0.5, 0.64, 0.64),
    "exclusiveMaximum": (0.0, 0.0, 0.0, 1.0),
    "exclusiveMinimum": (0.0, 0.0, 0.0, 1.0),
    "if-then-else": (0.0, 0.0, 0.4, 0.0),
    "infinite-loop-detection": (0.0, 1.0, 0.0, 1.0),
    "items": (0.1, 0.2, 0.3, 1.0),
    "maxContains": (0.0, 0.0, 0.25, 0.0),
    "maxItems": (0.0, 0.0, 0.0, 0.5),
    "maxLength": (0.0, 0.0, 0.0, 0.0),
    "maxProperties": (0.0, 0.0, 0.0, 0.0),
    "maximum": (0.0, 0.0, 0.0, 1.0),
    "minContains": (0.12, 0.12, 0.25, 0.12),
    "minItems": (0.0, 0.0, 0.0, 0.5),
    "minLength": (0.0, 0.0, 0.0, 0.5),
    "minProperties": (0.0, 0.0, 0.0, 0.0),
    "minimum": (0.0, 0.0, 0.0, 1.0),
    "multipleOf": (0.4, 0.4, 0.4, 0.2),
    "not": (0.22, 0.22, 0.22, 0.22),
    "oneOf": (0.45, 0.45, 0.09, 0.27),
    "pattern": (0.0, 0.0, 0.5, 1.0),
    "patternProperties": (0.0, 0.0, 0.2, 0.0),
    "prefixItems": (0.25, 0.25, 0.5, 1.0),
    "properties": (0.17, 0.17, 0.17, 0.83),
    "propertyNames": (0.0, 0.0, 0.33, 0.0),
    "ref": (0.34, 0.26, 0.14, 0.86),
    "required": (0.4, 0.4, 0.4, 0.8),
    "type": (0.55, 0.91, 0.0, 0.91),
    "unevaluatedItems": (0.15, 0.19, 0.26, 0.07),
    "unevaluatedProperties": (0.25, 0.2, 0.23, 0.12),
    "uniqueItems": (0.17, 0.17, 0.33, 0.0),
}

# Of 11,306 schemas: passing, refused, valid refused, invalid accepted (MaskBench's README, 2025-03-27: llguidance
# 0.7.10, xgrammar 0.1.17, llama-cpp-python 0.3.8, outlines-core 0.2.3).
PUBLISHED_MASKBENCH = {
    "LLGuidance": (8909, 2377, 20, 0),
    "XGrammar": (8122, 90, 1408, 1368),
    "llama.cpp": (6505, 1301, 2850, 649),
    "Outlines": (7050, 1773, 1415, 822),
}
_MASKBENCH_SCHEMAS = 11_306


@dataclass
class Row:
    """What one file of the suite (a folder, of MaskBench) came to. Instances are counted of compiled schemas only."""

    groups: int = 0
    compiled: int = 0
    right: int = 0
    valid: int = 0
    accepted: int = 0
    invalid: int = 0
    rejected: int = 0
    groups_wrong: int = 0
    groups_narrow: int = 0
    reasons: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and print; return the object of the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--wrong", action="store_true")
    parser.add_argument("--tokenizer", type=Path, default=TINY)
    told = parser.parse_args(arguments)
    rows = measure(told.suite, Tokenizer.load(told.tokenizer), every=told.every)
    report(rows)
    if told.wrong:
        for row in rows.values():
            print(*(f"wrong: {one}" for one in row.wrong), sep="\n", end="\n" if row.wrong else "")
    summary = {name: sum(getattr(row, name) for row in rows.values()) for name in _COUNTS}
    print(json.dumps(summary))
    return summary


def measure(suite: Path, tokenizer: Tokenizer, *, every: int = 1) -> dict[str, Row]:
    """Return a row for each file of the suite, or for each folder of one with a schema a file."""
    ends = [tokenizer.end_of_turn_id, tokenizer.eos_id]
    engine = grammar.GrammarEngine(tokenizer, vocab=tokenizer.size, end_ids=[i for i in ends if i is not None])
    rows: dict[str, Row] = {}
    for name, group in groups_of(suite, every):
        check(group, rows.setdefault(name, Row()), engine, tokenizer)
    return rows


def groups_of(suite: Path, every: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name of the row, {"description", "schema", "tests"}) of every `every`-th file below a folder."""
    for path in sorted(suite.rglob("*.json"))[::every]:
        said = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(said, list):
            name = path.relative_to(suite).with_suffix("").as_posix()
            yield from ((name, group) for group in said)
        else:
            folder = path.parent.relative_to(suite).as_posix()
            yield folder if folder != "." else path.stem.split("_")[0], said


def check(group: dict[str, Any], row: Row, engine: grammar.GrammarEngine, tokenizer: Tokenizer) -> None:
    """Add one schema and its instances to a row."""
    tests = group.get("tests", [])
    row.groups += 1
    try:
        constraint = engine.constrain(grammar.json_schema(group["schema"]))
    except RequestError as error:
        row.reasons[reason(str(error))] += 1
        row.right += not any(test["valid"] for test in tests)  # nothing satisfies it: a refusal is the right answer
        return
    row.compiled += 1
    wrong = narrow = False
    for test in tests:
        is_accepted = accepts(constraint.fork(), tokenizer, test["data"])
        if test["valid"]:
            row.valid += 1
            row.accepted += is_accepted
            narrow |= not is_accepted
        else:
            row.invalid += 1
            row.rejected += not is_accepted
            wrong |= is_accepted
            if is_accepted:
                shown = json.dumps(test["data"])[:120]
                row.wrong.append(f"{group.get('description')}: {test.get('description')}: {shown}")
    row.groups_wrong += wrong
    row.groups_narrow += narrow
    row.right += not wrong and not narrow


def accepts(constraint: grammar.Constraint, tokenizer: Tokenizer, data: Any) -> bool:
    """Whether compact JSON of some data is a whole text of the form."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # half of a surrogate pair is no text
        text = json.dumps(data, separators=(",", ":"))
    try:
        return constraint.is_complete(tokenizer.encode(text))
    except RequestError:
        return False


def reason(message: str) -> str:
    """Return a refusal without what differs from schema to schema."""
    told = message.partition(" cannot be followed: ")[2] or message
    told = told.partition("\n")[0]
    return re.sub(r"(?<=: )(?!\[).*", "...", re.sub(r"\d+", "N", told))[:90]


def report(rows: dict[str, Row]) -> None:
    """Print the table, what was refused, and what others publish."""
    columns = ("schemas", "compiled", "valid accepted", "invalid rejected", "right", *PUBLISHED_ENGINES)
    known = any(name in PUBLISHED for name in rows)
    print(f"{'':28}" + "".join(f"{name:>17}" for name in columns[: None if known else 5]))
    for name, row in rows.items():
        told = [row.groups, row.compiled, f"{row.accepted}/{row.valid}", f"{row.rejected}/{row.invalid}"]
        told.append(f"{row.right / max(row.groups, 1):.2f}")
        told += [f"{share:.2f}" for share in PUBLISHED.get(name, ())]
        print(f"{name[:28]:28}" + "".join(f"{one!s:>17}" for one in told))
    reasons = sum((row.reasons for row in rows.values()), Counter())
    print("\nrefused:")
    for told, count in reasons.most_common(40):
        print(f"{count:6}  {told}")
    total = {name: sum(getattr(row, name) for row in rows.values()) for name in _COUNTS}
    print(
        f"\nall: {total['right']} of {total['groups']} right, {total['groups'] - total['compiled']} refused, ", end=""
    )
    print(f"{total['groups_narrow']} with a valid instance not accepted, {total['groups_wrong']} with an invalid one")
    if not known:
        for engine, counts in PUBLISHED_MASKBENCH.items():
            shares = [f"{count / _MASKBENCH_SCHEMAS:.1%}" for count in counts]
            print(f"{engine:12} passing {shares[0]}, refused {shares[1]}, narrow {shares[2]}, wrong {shares[3]}")


_COUNTS = (
    "groups",
    "compiled",
    "right",
    "valid",
    "accepted",
    "invalid",
    "rejected",
    "groups_wrong",
    "groups_narrow",
)

if __name__ == "__main__":
    main()
