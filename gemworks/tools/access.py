"""Who may call which tool with which arguments. What no rule allows is denied.

    [[rule]]                          allow("search_*", roles="assistant")
    effect = "allow"                  allow("read", when={"path": below("~/notes")})
    tools = "search_*"                ask("send_mail")
    roles = "assistant"               deny("*", roles="guest")

The order of rules does not matter: a deny that matches wins over every ask, an ask over every allow. A condition that
fails to compute counts against the call: its deny applies, its allow does not.
"""

import copy
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, cast

from gemworks.errors import ConfigError, StorageError

Effect = Literal["allow", "ask", "deny"]
Condition = Callable[[Any], bool]
_STRICTNESS: dict[str, int] = {"allow": 0, "ask": 1, "deny": 2}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: an effect for the roles and tools whose names match, where all conditions on arguments hold.

    `roles` and `tools` are patterns (`*`, `?`, `[ab]`). `when` maps an argument's name to a condition on its value,
    or is one condition on all arguments; an argument that is not given fails every condition on it.
    """

    effect: Effect
    tools: tuple[str, ...] = ("*",)
    roles: tuple[str, ...] = ("*",)
    when: Mapping[str, Condition] | Condition | None = None
    reason: str = ""

    def __post_init__(self):
        if self.effect not in _STRICTNESS:
            raise ConfigError(f"a rule's effect must be allow, ask or deny, got {self.effect!r}.")

    def concerns(self, role: str, tool: str) -> bool:
        """Whether the rule is about this role and tool, whatever the arguments."""
        return any(fnmatchcase(role, p) for p in self.roles) and any(fnmatchcase(tool, p) for p in self.tools)

    def matches(self, role: str, tool: str, arguments: Mapping[str, Any]) -> bool:
        """Whether the rule applies to a call."""
        if not self.concerns(role, tool):
            return False
        if self.when is None:
            return True
        try:
            # A condition gets a copy of its own: what it does to it changes neither the call nor other conditions.
            if callable(self.when):
                return _truth(self.when(copy.deepcopy(dict(arguments))))
            return all(
                name in arguments and _truth(condition(copy.deepcopy(arguments[name])))
                for name, condition in self.when.items()
            )
        except Exception:
            return self.effect != "allow"


def _truth(answer: object) -> bool:
    """Only True is yes: a condition that forgets to return, or returns a coroutine, is an error."""
    if answer is True or answer is False:
        return bool(answer)
    raise TypeError("a condition must return True or False")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rules say of a call, and why."""

    effect: Effect
    reason: str


class Access:
    """A set of rules. `otherwise` is for calls that no rule matches: "deny", or "ask" to ask first for everything."""

    def __init__(self, rules: Iterable[Rule] = (), *, otherwise: Literal["deny", "ask"] = "deny"):
        if otherwise not in ("deny", "ask"):
            raise ConfigError(f'what no rule matches can be "deny" or "ask", got {otherwise!r}.')
        self.rules = tuple(rules)
        self._otherwise: Effect = otherwise

    def decide(self, role: str, tool: str, arguments: Mapping[str, Any]) -> Verdict:
        """The verdict on one call by one role."""
        matching = [rule for rule in self.rules if rule.matches(role, tool, arguments)]
        if not matching:
            return Verdict(self._otherwise, f"no rule allows {tool} for {role} with these arguments")
        rule = max(matching, key=lambda one: _STRICTNESS[one.effect])
        return Verdict(rule.effect, rule.reason or f"rule: {rule.effect} {', '.join(rule.tools)} for {_who(rule)}")

    def may_ever(self, role: str, tool: str) -> bool:
        """Whether some arguments could pass: tools for which none can need not be told to the model."""
        about = [rule for rule in self.rules if rule.concerns(role, tool)]
        if any(rule.effect == "deny" and rule.when is None for rule in about):
            return False
        return self._otherwise == "ask" or any(rule.effect != "deny" for rule in about)


def strictest(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several verdicts on one call, the one that counts."""
    return max(verdicts, key=lambda verdict: _STRICTNESS[verdict.effect])


def _who(rule: Rule) -> str:
    return "everybody" if rule.roles == ("*",) else ", ".join(rule.roles)


def _names(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def allow(tools: str | Iterable[str], *, roles: str | Iterable[str] = "*", when: Any = None, reason: str = "") -> Rule:
    """A rule that lets calls run."""
    return Rule("allow", _names(tools), _names(roles), when, reason)


def ask(tools: str | Iterable[str], *, roles: str | Iterable[str] = "*", when: Any = None, reason: str = "") -> Rule:
    """A rule that lets calls run when a person agrees to each."""
    return Rule("ask", _names(tools), _names(roles), when, reason)


def deny(tools: str | Iterable[str], *, roles: str | Iterable[str] = "*", when: Any = None, reason: str = "") -> Rule:
    """A rule that stops calls, whatever other rules say."""
    return Rule("deny", _names(tools), _names(roles), when, reason)


def one_of(*values: Any) -> Condition:
    """The argument is one of these values, of the same type: True is not 1."""
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def at_most(bound: float) -> Condition:
    """The argument is a number not above `bound`."""
    return lambda value: _number(value) <= bound


def at_least(bound: float) -> Condition:
    """The argument is a number not below `bound`."""
    return lambda value: _number(value) >= bound


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise TypeError("not a number")
    return value


def matches(pattern: str) -> Condition:
    """The whole argument matches a regular expression."""
    compiled = re.compile(pattern)
    return lambda value: compiled.fullmatch(value) is not None


def below(folder: str | os.PathLike[str]) -> Condition:
    """The argument is a path inside `folder`, links followed; a relative one is taken from there."""
    root = Path(folder).expanduser().resolve()

    def condition(value: Any) -> bool:
        return (root / Path(value).expanduser()).resolve().is_relative_to(root)

    return condition


_CONDITIONS: dict[str, Callable[[Any], Condition]] = {
    "one_of": lambda values: one_of(*values),
    "at_most": at_most,
    "at_least": at_least,
    "matches": matches,
    "below": below,
}


def read_rules(path: str | os.PathLike[str]) -> Access:
    """Rules from a TOML file: [[rule]] tables of effect, tools, roles, reason and when.ARGUMENT.CONDITION = VALUE."""
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path}: the rules cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: rules must be TOML: {error}.") from error
    if unknown := sorted(set(content) - {"rule", "otherwise"}):
        raise ConfigError(f"{path}: rules are [[rule]] tables and otherwise, got {', '.join(unknown)}.")
    if not isinstance(content.get("rule", []), list):
        raise ConfigError(f"{path}: rules are [[rule]] tables, got rule = {content['rule']!r}.")
    rules = [_rule_of(table, f"{path}: rule {number}") for number, table in enumerate(content.get("rule", []), 1)]
    return Access(rules, otherwise=content.get("otherwise", "deny"))


def _rule_of(table: Any, where: str) -> Rule:
    known = {"effect", "tools", "roles", "reason", "when"}
    if not isinstance(table, dict) or "effect" not in table or set(table) - known:
        raise ConfigError(f"{where}: needs effect and may have {', '.join(sorted(known - {'effect'}))}, got {table}.")
    when: dict[str, Condition] = {}
    for argument, conditions in table.get("when", {}).items():
        if not isinstance(conditions, dict) or not conditions or set(conditions) - set(_CONDITIONS):
            raise ConfigError(f"{where}: when.{argument} takes {', '.join(_CONDITIONS)}, got {conditions!r}.")
        try:
            parts = [_CONDITIONS[name](value) for name, value in conditions.items()]
        except (TypeError, re.error) as error:
            raise ConfigError(f"{where}: when.{argument}: {error}.") from error
        when[argument] = lambda value, parts=parts: all(part(value) for part in parts)
    names = {key: _names(table.get(key, "*")) for key in ("tools", "roles")}
    return Rule(cast("Effect", table["effect"]), names["tools"], names["roles"], when or None, table.get("reason", ""))
