"""Function calls: the right ones, with the right arguments, and none where none fits.

A case file is JSON Lines. Lines with `tool` declare functions in OpenAI's form, once; the others are cases:

    {"tool": {"name": "get_weather", "description": ..., "parameters": {...}}}
    {"id": "w1", "category": "single", "tools": ["get_weather"], "prompt": "Is it raining in Rome?",
     "calls": [{"name": "get_weather", "arguments": {"city": "Rome"},
                "accept": {"city": ["Rome, Italy"], "unit": ["celsius"]}, "optional": ["unit"], "any": ["note"]}]}

A call is right where its name is and every argument has the value given in `arguments` or one of those in `accept`.
Arguments in `optional`, and those that stand in `accept` alone, may be left out; the values of those in `any` are not
looked at; one that stands nowhere is wrong. Texts are compared without regard to case and white space, numbers by
value. Several calls may come in any order. An empty `calls` says that none fits.

Not scored here: what is said beside the calls, and whether calls parse (a begun call is constrained to be valid).
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gemworks.errors import ConfigError
from gemworks.eval.intervals import Figure, share
from gemworks.eval.reading import Table, digest, read_lines

if TYPE_CHECKING:
    from gemworks.tools import Toolbox

_MAX_TOKENS = 256
_ROLES = ("system", "user", "assistant", "tool")


class Wanted(NamedTuple):
    """A call that is right. `accepted`: the values each argument may have, None for any; `optional`: may be missing."""

    name: str
    arguments: dict[str, Any]
    accepted: dict[str, list[Any] | None]
    optional: frozenset[str]

    def is_met_by(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether a call that was made is this one."""
        if name != self.name or any(given not in self.accepted for given in arguments):
            return False
        if any(needed not in arguments for needed in self.accepted if needed not in self.optional):
            return False
        return all(
            values is None or any(is_same(arguments[given], value) for value in values)
            for given, values in self.accepted.items()
            if given in arguments
        )


def is_same(made: Any, wanted: Any) -> bool:
    """Whether two JSON values mean the same: numbers by value, texts without regard to case and white space."""
    if isinstance(made, bool) or isinstance(wanted, bool):
        return made is wanted
    if isinstance(made, int | float) and isinstance(wanted, int | float):
        return math.isclose(made, wanted, rel_tol=1e-9)
    if isinstance(made, str) and isinstance(wanted, str):
        return " ".join(made.casefold().split()) == " ".join(wanted.casefold().split())
    if isinstance(made, list) and isinstance(wanted, list):
        return len(made) == len(wanted) and all(map(is_same, made, wanted))
    if isinstance(made, dict) and isinstance(wanted, dict):
        return made.keys() == wanted.keys() and all(is_same(made[key], wanted[key]) for key in wanted)
    return made is None and wanted is None


def are_met(wanted: Sequence[Wanted], made: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether each wanted call was made and nothing else, in any order: a perfect matching, found by augmenting paths.

    Taking the first that fits could take the one call that another wanted call needs.
    """
    if len(wanted) != len(made):
        return False
    taken_by: dict[int, int] = {}

    def place(one: int, seen: set[int]) -> bool:
        for other, call in enumerate(made):
            if other not in seen and wanted[one].is_met_by(*call):
                seen.add(other)
                if other not in taken_by or place(taken_by[other], seen):
                    taken_by[other] = one
                    return True
        return False

    return all(place(one, set()) for one in range(len(wanted)))


@dataclass
class Calls:
    """A set of cases. style: the prompt's form of tools (LLM's tool_style). execute: functions that are run, both for
    the wanted calls and for those made, where a case uses no others: equal results are right, however written."""

    name: str
    digest: str
    cases: list[dict[str, Any]]
    style: str | None = None
    max_tokens: int = _MAX_TOKENS
    execute: "Toolbox | None" = None
    kind: str = "calls"

    @classmethod
    def of_file(cls, path: Path) -> "Calls":
        """The cases of a file, with default settings."""
        return cls(path.stem, digest({}, path), read_cases(path))

    @classmethod
    def read(cls, name: str, table: Table, folder: Path) -> "Calls":
        """The task of a TOML file."""
        path = folder / table.take("cases", str)
        style, most = table.take("style", str, None), table.number("max_tokens", _MAX_TOKENS, 1)
        return cls(name, digest({"style": style, "max_tokens": most}, path), read_cases(path), style, most)

    def items(self, llm: Any) -> list[dict[str, Any]]:
        """The cases, in the file's order."""
        return self.cases

    def ask(self, llm: Any, item: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begin a case: greedy, with the tools of the case."""
        told = {"tools": item["tools"], "tool_choice": "auto"} | ({"tool_style": self.style} if self.style else {})
        asked = llm.submit(llm.prepare(item["messages"], temperature=0.0, max_tokens=self.max_tokens, **told))
        return lambda: self._scored(item, asked.last())

    def _scored(self, item: Mapping[str, Any], completion: Any) -> dict[str, Any]:
        made = [(call.name, dict(call.arguments)) for call in completion.tool_calls]
        wanted: list[Wanted] = item["wanted"]
        names_right = sorted(one.name for one in wanted) == sorted(name for name, _ in made)
        is_cut = getattr(completion, "partial_call", None) is not None
        return {
            "category": item["category"],
            "wanted": len(wanted),
            "calls": [{"name": name, "arguments": arguments} for name, arguments in made],
            "text": completion.text,
            "names": names_right and not is_cut,
            "right": are_met(wanted, made) and not is_cut,
            "cut": is_cut,
            "executed": self._executed(wanted, made),
        }

    def _executed(self, wanted: Sequence[Wanted], made: Sequence[tuple[str, Mapping[str, Any]]]) -> bool | None:
        """Whether the calls have the results of the wanted ones, in any order; None where they cannot all be run."""
        if self.execute is None or not wanted or any(one.name not in self.execute.tools for one in wanted):
            return None
        if len(wanted) != len(made):
            return False
        ours = [self._result(one.name, one.arguments) for one in wanted]
        left = [self._result(name, arguments) for name, arguments in made]
        for value in ours:
            match = next((i for i, other in enumerate(left) if other and value and is_same(other[0], value[0])), None)
            if match is None:
                return False
            del left[match]
        return True

    def _result(self, name: str, arguments: Mapping[str, Any]) -> tuple[Any] | None:
        from gemworks.tools import Access, Limits, allow

        assert self.execute is not None
        unlimited = Limits(rounds=None, calls=None, repeats=None, wall_s=None)
        result = self.execute.session("eval", Access([allow("*")]), limits=unlimited).call(name, dict(arguments))
        return (result.value,) if result.ok else None

    def figures(self, records: Sequence[Mapping[str, Any]]) -> tuple[list[Figure], dict[str, list[Figure]]]:
        """Shares of all cases, and of each category."""

        def count(name: str, of: Sequence[Mapping[str, Any]], key: str) -> Figure:
            return share(name, sum(record[key] for record in of), len(of))

        with_calls = [record for record in records if record["wanted"]]
        executed = [record for record in records if record["executed"] is not None]
        found = [
            count("right", records, "right"),
            count("names, of cases with calls", with_calls, "names"),
            count("arguments, where the names are right", [r for r in with_calls if r["names"]], "right"),
            count("several calls", [r for r in with_calls if r["wanted"] > 1], "right"),
            count("no call where none fits", [r for r in records if not r["wanted"]], "right"),
        ]
        found += [count("results, executed", executed, "executed")] if executed else []
        groups: dict[str, list[Figure]] = {}
        for category in dict.fromkeys(str(record["category"]) for record in records):
            groups[category] = [count("right", [r for r in records if r["category"] == category], "right")]
        return found, groups


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The cases of a file, each with id, category, tools, messages and wanted. Errors name file and line."""
    tools: dict[str, dict[str, Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    lines = read_lines(path, "case")
    for line in lines:
        declared = line.take("tool", dict, None)
        if declared is not None:
            line.end()
            tool = _tool(declared, line)
            if tool["function"]["name"] in tools:
                raise line.wrong(f"there is a tool {tool['function']['name']} already")
            tools[tool["function"]["name"]] = tool
            continue
        case = _case(line, tools)
        if case["id"] in found:
            raise line.wrong(f"there is a case {case['id']} already; ids must differ")
        found[case["id"]] = case
    if not found:
        raise ConfigError(f"{path}: declares tools and has no case. A case has id, tools, prompt and calls.")
    return list(found.values())


def _tool(declared: Mapping[str, Any], line: Table) -> dict[str, Any]:
    function = declared.get("function", declared)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise line.wrong("a tool must have a name, as in OpenAI's function")
    parameters = function.get("parameters", {"type": "object", "properties": {}})
    if not isinstance(parameters, dict) or not isinstance(parameters.get("properties", {}), dict):
        raise line.wrong(f"the parameters of {function['name']} must be a JSON schema of an object")
    return {"type": "function", "function": {**function, "parameters": parameters}}


def _case(line: Table, tools: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    name = line.take("id", str)
    offered = []
    for one in line.take("tools", list):
        if isinstance(one, dict):
            offered.append(_tool(one, line))
        elif isinstance(one, str) and one in tools:
            offered.append(tools[one])
        else:
            raise line.wrong(f"the tool {json.dumps(one)[:80]} must be declared on a line before")
    by_name = {tool["function"]["name"]: tool["function"] for tool in offered}
    wanted = [_wanted(Table(one, line.where), by_name) for one in line.take("calls", list)]
    category, messages = line.take("category", str, "all"), _messages(line)
    line.end()
    return {"id": name, "category": category, "tools": offered, "messages": messages, "wanted": wanted}


def _messages(line: Table) -> list[dict[str, Any]]:
    prompt, messages = line.take("prompt", str, None), line.take("messages", list, None)
    if (prompt is None) == (messages is None):
        raise line.wrong("must have prompt, a text, or messages, a conversation")
    if prompt is not None:
        return [{"role": "user", "content": prompt}]
    if not messages or not all(isinstance(one, dict) and one.get("role") in _ROLES for one in messages):
        raise line.wrong(f"messages must be objects with role ({', '.join(_ROLES)}) and content")
    return messages


def _wanted(call: Table, functions: Mapping[str, dict[str, Any]]) -> Wanted:
    name, arguments = call.take("name", str), call.take("arguments", dict, {})
    accept, optional, free = call.take("accept", dict, {}), call.texts("optional", []), call.texts("any", [])
    call.end()
    if name not in functions:
        raise call.wrong(f"the wanted call {name} must be one of the case's tools: {', '.join(functions) or 'none'}")
    schema = functions[name]["parameters"]
    known = schema.get("properties", {})
    accepted: dict[str, list[Any] | None] = {argument: [value] for argument, value in arguments.items()}
    for argument, values in accept.items():
        if not isinstance(values, list):
            raise call.wrong(f"accept.{argument} must be a list of values")
        accepted[argument] = [*(accepted.get(argument) or []), *values]
    accepted |= dict.fromkeys(free)
    if unknown := [argument for argument in [*accepted, *optional] if argument not in known]:
        raise call.wrong(f"{name} has no parameter {unknown[0]}; it has {', '.join(known) or 'none'}")
    if missing := [argument for argument in schema.get("required", []) if argument not in accepted]:
        raise call.wrong(f"the wanted call of {name} must say what {missing[0]} is")
    may_miss = {*optional, *(argument for argument in accept if argument not in arguments)}
    return Wanted(name, arguments, accepted, frozenset(may_miss))
