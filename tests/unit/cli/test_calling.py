"""`run --tools` and /tools: who is asked, what is shown where, and what is refused before a model is loaded."""

import io
import json
import os
import signal
import sys

import pytest
from scripted_llm import ScriptedLLM

from gemworks.cli import calling, console, run
from gemworks.cli.repl import Repl
from gemworks.cli.session import Session
from gemworks.errors import ConfigError, StorageError
from gemworks.tools import AuditLog, Toolbox


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def shout(text: str) -> str:
    """Say it loud."""
    return text.upper() + "\x1b[2J"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def functions(monkeypatch):
    """Files named x.py hold two functions, run in this process: the sandbox has tests of its own."""

    def add_file(box, path, **_):
        if path.name != "x.py":
            raise StorageError(f"{path}: the tools cannot be read: No such file or directory.")
        return [box.add(one, sandbox=None) for one in (add, shout)]

    monkeypatch.setattr(Toolbox, "add_file", add_file)


@pytest.fixture
def typed(monkeypatch):
    """typed("y\\n") types into a terminal; without it nobody is there."""

    def put(text):
        monkeypatch.setattr(sys, "stdin", Terminal(text))
        monkeypatch.setattr(console, "can_ask", lambda: True)

    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return put


@pytest.fixture
def command(typed, monkeypatch, tmp_path, run_command):
    """command(llm, "--yes") -> (code, stdout, stderr) of a question with tools."""
    folder = tmp_path / "model"
    folder.mkdir()

    def ask(llm, *options, tools="x.py"):
        monkeypatch.setattr(run, "_load", lambda name, **_: llm)
        return run_command("run", folder, "What is 1 + 2?", "--tools", tools, *options)

    return ask


def sums():
    return ScriptedLLM(("Let me see.", [("add", {"a": 1, "b": 2})]), "It is 3.")


def test_the_answer_goes_to_stdout_and_calls_to_stderr(command):
    code, out, err = command(sums(), "--yes")
    assert (code, out) == (0, "Let me see.\nIt is 3.\n")
    assert err == "Tools: add, shout; calls run without asking.\n-> add(a=1, b=2)\n<- 3\n"


def test_where_nobody_can_be_asked_calls_are_denied_and_it_is_said(command):
    llm = sums()
    code, out, err = command(llm)
    assert code == 0 and out.endswith("It is 3.\n")
    assert "Warning: every call will be denied, as nobody can be asked here.\n" in err
    assert "<- [denied] error: add: no rule allows add for assistant with these arguments, and nobody can be" in err
    assert llm.asked[1][0][-1]["content"].startswith("error: add: no rule allows add")


def test_rules_decide_without_asking(command, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\neffect = "allow"\ntools = "add"\nwhen.a = { at_most = 1 }\n')
    llm = ScriptedLLM([("add", {"a": 1, "b": 2}), ("add", {"a": 2, "b": 2}), ("shout", {"text": "x"})], "done")
    _, _, err = command(llm, "--rules", rules)
    assert "Warning" not in err
    assert next(line for line in err.splitlines() if line.startswith("<-")) == "<- 3"
    assert err.count("<- [denied]") == 2
    assert [tool["function"]["name"] for tool in llm.asked[0][1]["tools"]] == ["add"]


def test_yes_does_not_lift_what_rules_deny(command, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('otherwise = "ask"\n[[rule]]\neffect = "deny"\ntools = "add"\nwhen.a = { at_most = 1 }\n')
    _, _, err = command(sums(), "--rules", rules, "--yes")
    assert "<- [denied] error: add: rule: deny add for everybody" in err


@pytest.mark.parametrize(("answer", "line"), [("y", "<- 3"), ("", "<- [denied]"), ("no", "<- [denied]")])
def test_each_call_is_asked_about(command, typed, answer, line):
    typed(answer + "\n")
    _, _, err = command(sums())
    assert "  add(a=1, b=2)\n  y yes, n no, a always add [y/N/a] " in err
    assert line in err


def test_always_is_for_one_tool(command, typed):
    typed("a\nn\n")
    calls = [("add", {"a": 1, "b": 2}), ("add", {"a": 2, "b": 2}), ("add", {"a": 3, "b": 2}), ("shout", {"text": "x"})]
    _, _, err = command(ScriptedLLM(*([one] for one in calls), "done"))
    assert err.count("a always add") == 1 and err.count("a always shout") == 1
    assert "<- 5" in err and "<- [denied]" in err


def test_what_a_person_is_asked_cannot_paint_on_the_screen(command, typed):
    typed("y\n")
    evil = "\x1b]0;x\x07\x1b[2K\r\u202eadd(a=1)\x9b2J\n  y yes"
    _, _, err = command(ScriptedLLM([("shout", {"text": evil})], "done"))
    plain = err.replace("\x1b[90m", "").replace("\x1b[0m", "")
    assert not set(plain) & {"\x1b", "\x07", "\r", "\u202e", "\x9b"}
    assert plain.count("y yes, n no") == 1 and "\\\\x1b]0;x" in plain, "shown, not obeyed, and on one line"


def test_a_long_call_is_shown_at_both_ends_and_what_is_left_out_is_counted(command, typed):
    typed("n\n")
    _, _, err = command(ScriptedLLM([("shout", {"text": "x" * 9000 + "END"})], "done"))
    assert "characters are not shown ..." in err and 'END")' in err


def test_ctrl_c_at_the_question_is_no_and_ends_the_conversation(command, typed, monkeypatch):
    typed("")

    class Pressing(Terminal):
        def readline(self, *_):
            os.kill(os.getpid(), signal.SIGINT)
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Pressing())
    llm = sums()
    code, out, _ = command(llm, "--json")
    assert code == 0 and len(llm.asked) == 1
    told = json.loads(out)
    assert told["ended"] == "stopped" and told["calls"][0]["status"] == "stopped"


def test_json_has_every_call(command):
    _, out, _ = command(sums(), "--yes", "--json")
    told = json.loads(out)
    assert told["text"] == "It is 3." and told["ended"] == "answered"
    [one] = told["calls"]
    assert one.pop("id").startswith("call_") and one.pop("seconds") >= 0
    assert one == {"round": 1, "name": "add", "arguments": {"a": 1, "b": 2}, "status": "ok", "result": 3}


def test_rounds_are_limited_and_it_is_said(command):
    llm = ScriptedLLM(lambda messages: ("enough", [("add", {"a": len(messages), "b": 1})]))
    _, _, err = command(llm, "--yes", "--rounds", "2")
    assert len(llm.asked) == 3 and err.count("-> add") == 2
    assert err.endswith("[answered without tools: 2 rounds of calls were used up (--rounds)]\n")


def test_the_log_tells_every_call(command, tmp_path):
    command(sums(), "--yes", "--audit", tmp_path / "calls.jsonl")
    log = AuditLog(tmp_path / "calls.jsonl")
    assert log.verify().num_records == 2 and log.verify().is_sound


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--yes"], "--yes is about tools: give some with --tools FILE.py."),
        (["--audit", "x"], "--audit is about tools"),
        (["--tools", "x.py", "--raw"], "--tools goes without --raw"),
        (["--tools", "nowhere.py"], "nowhere.py: the tools cannot be read"),
        (["--tools", "x.py", "--tools", "x.py"], "there is a tool add already"),
        (["--tools", "mcp:"], "--tools mcp: needs a command"),
        (["--tools", "mcp:'a"], "the command must be as in a shell"),
        (["--tools", "x.py", "--rules", "nowhere.toml"], "the rules cannot be read"),
    ],
)
def test_a_wrong_command_line_is_refused_before_loading(run_command, typed, tmp_path, monkeypatch, options, message):
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(run, "_load", lambda name, **_: pytest.fail("loaded"))
    code, _, err = run_command("run", tmp_path / "model", "hi", *options)
    assert code == 2 and message in err


def test_a_model_without_a_chat_form_cannot_call(command):
    code, _, err = command(ScriptedLLM("x", is_chat=False), "--yes")
    assert code == 2 and "--tools needs a chat model: a text that is continued cannot hold calls." in err


@pytest.mark.parametrize(
    ("told", "name", "line"),
    [
        ("mcp:files=/bin/files-mcp '/a b'", "files", ["/bin/files-mcp", "/a b"]),
        ("mcp:/usr/bin/files-mcp.py --x=1", "files_mcp", ["/usr/bin/files-mcp.py", "--x=1"]),
        ("mcp:7zip", "_7zip", ["7zip"]),
    ],
)
def test_a_server_has_a_name_and_a_command(told, name, line):
    assert calling._server(told) == (name, line)


@pytest.fixture
def repl(capsys, tmp_path, typed, said_lines):
    """repl(llm, *lines) -> (stdout, stderr); repl.repl is the Repl."""

    def run_lines(llm, *lines):
        session = Session(llm, base=str(tmp_path))
        run_lines.repl = Repl(session, "fake", load=lambda name: session, read_line=said_lines(*lines))
        run_lines.repl.loop()
        return capsys.readouterr()

    return run_lines


def test_tools_come_and_go_in_a_conversation(repl, typed):
    typed("y\n")
    llm = ScriptedLLM("Hi.", [("add", {"a": 1, "b": 2})], "It is 3.", "Bye.")
    out, err = repl(llm, "hello", "/tools", "/tools x.py", "/tools", "add!", "/tools none", "bye")
    assert "The model may call no functions. /tools FILE.py opens some.\n" in err
    assert "The model may call add, shout now.\n" in err
    assert [line.split() for line in out.splitlines() if "Add two" in line] == [
        ["add", "asked", "Add", "two", "numbers."]
    ]
    assert "<- 3" in err and "It is 3." in out
    kept = repl.repl.session.messages
    roles = [message["role"] for message in kept]
    assert roles == ["user", "assistant", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert [bool(told.get("tools")) for _, told in llm.asked] == [False, True, True, False]
    assert llm.asked[-1][0] == kept[:-1], "the calls and results of before are told again"


def test_a_file_that_cannot_be_opened_changes_nothing(repl):
    _, err = repl(ScriptedLLM("Hi."), "/tools nowhere.py", "/tools")
    assert "Error: nowhere.py: the tools cannot be read" in err
    assert "The model may call no functions." in err


def test_a_question_that_fails_is_not_kept(repl):
    """A result that the context has no room for must not spoil the questions after it."""
    from gemworks.errors import ContextLengthError

    def full(messages):
        raise ContextLengthError("this request needs too many tokens.")

    _, err = repl(ScriptedLLM("Hi.", [("add", {"a": 1, "b": 2})], full, "Bye."), "/tools x.py", "a", "b", "c")
    assert "Error: this request needs too many tokens." in err
    assert [message["content"] for message in repl.repl.session.messages] == ["a", "Hi.", "c", "Bye."]


def test_session_refuses_tools_for_plain_text(tmp_path):
    with pytest.raises(ConfigError, match="/tools needs a chat model"):
        Session(ScriptedLLM("x"), base="x", raw=True).use(object(), "/tools")


def test_what_is_shown_in_passing_is_one_short_plain_line():
    assert calling._short("a\x1b[2J\n  b", 80) == "a\\x1b[2J b"
    assert calling._short("x" * 200, 160) == "x" * 157 + "..."
