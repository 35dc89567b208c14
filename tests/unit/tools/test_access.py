"""Access rules: what is denied never runs, whatever the rules, and the log tells every call."""

import json
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemworks.errors import ConfigError
from gemworks.tools import (
    Access,
    AuditLog,
    Limits,
    Toolbox,
    allow,
    ask,
    at_least,
    at_most,
    below,
    deny,
    matches,
    one_of,
)
from gemworks.tools.access import Rule, read_rules

NAMES = ("read", "write", "send")
ROLES = ("user", "guest")
RAN: list[tuple[str, int]] = []


def read(value: int) -> int:
    """Read."""
    RAN.append(("read", value))
    return value


def write(value: int) -> int:
    """Write."""
    RAN.append(("write", value))
    return value


def send(value: int) -> int:
    """Send."""
    RAN.append(("send", value))
    return value


def toolbox() -> Toolbox:
    return Toolbox([read, write, send], sandbox=None)


# (effect, tools, roles, lowest value or None): plain data, from which the test below decides by itself.
rules = st.lists(
    st.tuples(
        st.sampled_from(("allow", "ask", "deny")),
        st.sampled_from(("*", "read", "write", "w*", "[rs]*", "nothing")),
        st.sampled_from(("*", "user", "guest")),
        st.none() | st.integers(0, 9),
    ),
    max_size=6,
)
calls = st.lists(
    st.tuples(st.sampled_from((*NAMES, "other")), st.sampled_from(ROLES), st.integers(-2, 12)), min_size=1, max_size=8
)


def expected(policy, tool: str, role: str, value: int) -> str:
    """The verdict, computed another way: the set of effects that apply."""
    applying = {
        effect
        for effect, tools, roles, least in policy
        if fnmatchcase(tool, tools) and roles in ("*", role) and (least is None or value >= least)
    }
    return next((effect for effect in ("deny", "ask", "allow") if effect in applying), "deny")


@settings(max_examples=60)
@given(rules, calls, st.booleans())
def test_no_denied_call_ever_runs(tmp_path_factory, policy, wanted, agrees):
    folder = tmp_path_factory.mktemp("audit")
    log = AuditLog(folder / "audit.jsonl")
    access = Access(
        [Rule(e, (t,), (r,), None if least is None else {"value": at_least(least)}) for e, t, r, least in policy]
    )
    box = toolbox()
    sessions = {
        role: box.session(role, access, ask=lambda _: agrees, limits=Limits(repeats=None), audit=log) for role in ROLES
    }
    RAN.clear()
    should_run = []
    for tool, role, value in wanted:
        result = sessions[role].call(tool, {"value": value})
        verdict = expected(policy, tool, role, value)
        runs = tool in NAMES and (verdict == "allow" or (verdict == "ask" and agrees))
        should_run += [(tool, value)] if runs else []
        assert result.ok == runs
    assert should_run == RAN
    records = [json.loads(line) for line in log.path.read_text().splitlines()]
    told = [(one["tool"], one["who"]) for one in records if one["verdict"] not in ("allowed", "agreed")]
    assert told == [(tool, role) for tool, role, _ in wanted]
    assert log.verify().is_sound


@pytest.mark.parametrize(
    ("condition", "yes", "no"),
    [
        (one_of(1, "a"), [1, "a"], [True, 2, "b", None]),
        (at_most(3), [3, -1, 2.5], [3.1, True, "1", None, float("nan")]),
        (at_least(3), [3, 4.5], [2, "9", float("nan")]),
        (matches(r"[a-z]+"), ["abc"], ["abc1", "", 5, "abc\n"]),
    ],
)
def test_conditions(condition, yes, no):
    rule = allow("*", when={"x": condition})
    assert [rule.matches("r", "t", {"x": value}) for value in yes] == [True] * len(yes)
    assert [rule.matches("r", "t", {"x": value}) for value in no] == [False] * len(no)


def test_below_follows_links(tmp_path):
    inside = tmp_path / "notes"
    inside.mkdir()
    (inside / "out").symlink_to(tmp_path)
    rule = allow("*", when={"path": below(inside)})
    good = ["a.md", str(inside / "b" / "c"), "."]
    bad = ["../x", str(tmp_path), "out/secret", "/etc/passwd", "~", 3, None, "a\0b"]
    assert all(rule.matches("r", "t", {"path": path}) for path in good)
    assert not any(rule.matches("r", "t", {"path": path}) for path in bad)


def test_a_condition_that_fails_counts_against_the_call():
    def broken(_):
        raise ZeroDivisionError

    access = Access([allow("*"), deny("*", when={"x": broken})])
    assert access.decide("r", "t", {"x": 1}).effect == "deny"
    assert Access([allow("*", when={"x": broken})]).decide("r", "t", {"x": 1}).effect == "deny"
    assert Access([allow("*", when=lambda _: "yes")]).decide("r", "t", {}).effect == "deny"
    assert Access([allow("*", when={"x": at_most(1)})]).decide("r", "t", {}).effect == "deny"


def test_a_condition_cannot_change_the_call():
    box = toolbox()

    def meddle(arguments):
        arguments["value"] = 666
        return True

    assert box.session("r", Access([allow("read", when=meddle)])).call("read", {"value": 1}).value == 1


def test_asking_first():
    asked = []
    session = toolbox().session(
        "user", Access(otherwise="ask"), ask=lambda q: asked.append(q.shown()) or len(asked) < 2
    )
    assert session.call("read", {"value": 1}).ok
    refused = session.call("read", {"value": 2})
    assert asked == ["read(value=1)", "read(value=2)"]
    assert refused.text == "error: read: the person who was asked did not agree"
    nobody = toolbox().session("user", Access([ask("*")])).call("read", {"value": 1})
    assert (nobody.status, nobody.text.endswith("and nobody can be asked")) == ("denied", True)


@pytest.mark.parametrize("answer", [1, "yes", None, SimpleNamespace()])
def test_only_true_is_agreement(answer):
    assert (
        toolbox().session("u", Access([ask("*")]), ask=lambda _: answer).call("read", {"value": 1}).status == "denied"
    )


def test_a_question_shows_no_control_characters():
    asked = []
    session = toolbox().session("u", Access(otherwise="ask"), ask=lambda q: asked.append(q.shown()) or False)
    session.call("read", {"value": 1, "x\x1b[2J": "\u202e\r"})  # refused by the schema: nobody is asked
    assert asked == []
    box = Toolbox(sandbox=None)

    def say(text: str) -> str:
        """Say."""
        return text

    box.add(say)
    box.session("u", Access(otherwise="ask"), ask=lambda q: asked.append(q.shown()) or False).call(
        "say", {"text": "a\x1b[2J\u202e"}
    )
    assert asked == ['say(text="a\\\\x1b[2J\\\\u202e")']


def test_only_tools_that_could_be_called_are_told():
    def told(*rules, otherwise="deny"):
        session = toolbox().session("user", Access(rules, otherwise=otherwise))
        return [one["function"]["name"] for one in session.schemas()]

    assert told() == []
    assert told(otherwise="ask") == list(NAMES)
    assert told(allow("*"), deny("send")) == ["read", "write"]
    assert told(allow("*"), deny("send", when={"value": at_least(3)})) == list(NAMES)
    assert told(allow("read", roles="guest")) == []


def test_nested_sessions_can_only_be_narrower():
    outer = toolbox().session("user", Access([allow("read")]), limits=Limits(calls=3, depth=1))
    inner = outer.nested("agent", Access([allow("*")]))
    assert inner.call("write", {"value": 1}).status == "denied"
    assert inner.call("read", {"value": 1}).ok
    assert outer.call("read", {"value": 2}).ok
    assert inner.call("read", {"value": 3}).status == "limit"  # they share what is left
    with pytest.raises(ConfigError, match="1 deep"):
        inner.nested("deeper")


def test_rules_from_a_file(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(
        '[[rule]]\neffect = "allow"\ntools = ["read", "w*"]\nwhen.value = { at_most = 5, at_least = 1 }\n'
        '[[rule]]\neffect = "deny"\nroles = "guest"\nreason = "guests only look"\n'
    )
    access = read_rules(file)
    assert [access.decide("user", "write", {"value": v}).effect for v in (0, 1, 5, 6)] == [
        "deny",
        "allow",
        "allow",
        "deny",
    ]
    assert access.decide("guest", "read", {"value": 2}).reason == "guests only look"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rule = 3", "tables, got rule = 3"),
        ('[[rule]]\neffect = "permit"', "must be allow, ask or deny"),
        ('[[rule]]\neffect = "allow"\ntool = "x"', "needs effect and may have"),
        ('[[rule]]\neffect = "allow"\nwhen.x = { above = 3 }', "takes one_of, at_most"),
        ('[[rule]]\neffect = "allow"\nwhen.x = { matches = "(" }', "when.x"),
        ('otherwise = "allow"', '"deny" or "ask"'),
        ("[[rule]", "must be TOML"),
        ("rules = 1", "rules are"),
    ],
)
def test_bad_rules_are_told(tmp_path, text, words):
    file = tmp_path / "rules.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_rules(file)
