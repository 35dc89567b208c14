"""The conversation, line by line, without a terminal (tests/system/cli has one)."""

import pytest

from gemworks.cli.repl import Repl
from gemworks.cli.session import Session
from gemworks.errors import CheckpointError


@pytest.fixture
def talk(fake_llm, capsys, tmp_path, said_lines):
    """talk("hello", "/bye") -> (stdout, stderr) of a conversation; talk.repl is the Repl."""

    def run(*lines, llm=None, load=None):
        session = Session(llm or fake_llm(), base=str(tmp_path))
        run.repl = Repl(session, "fake", load=load or (lambda name: session), read_line=said_lines(*lines))
        run.repl.loop()
        return capsys.readouterr()

    return run


def test_answers_and_nothing_else_go_to_stdout(talk):
    out, err = talk("one", "two", "/bye")
    assert out == "user:one\n\nuser:one;assistant:user:one;user:two\n\n"
    assert err == "fake, 64 tokens of context. /? for help, /bye to leave.\n"


def test_empty_lines_ask_nothing(talk, fake_llm):
    llm = fake_llm()
    talk("", "   ", llm=llm)
    assert llm.asked == []


def test_an_error_of_a_request_is_told_and_the_turn_is_dropped(talk):
    out, err = talk("too long", "short")
    assert "Error: this request needs 99 tokens; the context holds 64.\n" in err
    assert "user:short" in out and "too long" not in out


def test_a_full_context_says_what_to_do(talk, fake_llm):
    _, err = talk("hi", llm=fake_llm(context=14, finish_reason="length"))
    assert "[the context of 14 tokens is full] /clear begins anew.\n" in err


def test_several_stop_texts_in_quotes(talk):
    talk('/set parameter stop "User: " ###')
    assert talk.repl.session.parameters == {"stop": ("User: ", "###")}


def test_ollamas_names_of_parameters_are_known(talk):
    _, err = talk("/set parameter num_predict -1", "/set parameter num_ctx 32")
    assert talk.repl.session.parameters == {"max_tokens": None, "context": 32}
    assert "max_tokens is not limited now.\n" in err
    assert "context is 32 now. It counts when the model is loaded: /save it, then /load it.\n" in err


def test_set_parameter_alone_lists_them(talk):
    out, _ = talk("/set parameter")
    assert "temperature          how freely words are drawn; 0 always takes the likeliest\n" in out


def test_an_empty_system_prompt_takes_it_away(talk):
    talk("/set system Be brief.", "/set system")
    assert talk.repl.session.system is None


def test_help_names_every_command(talk):
    out, _ = talk("/help")
    for command in ("/set", "/show", "/clear", "/save", "/load", "/bye", "/exit", "/?"):
        assert command in out


def test_load_that_fails_goes_back_to_the_model_before(talk, fake_llm, tmp_path):
    (tmp_path / "broken").mkdir()
    loads = []

    def load(name):
        loads.append(name)
        if name.endswith("broken"):
            raise CheckpointError("broken is cut off.")
        return Session(fake_llm(), base=name)

    lines = ("/set parameter seed 3", "/set system Brief.", f"/load {tmp_path / 'broken'}", "still here?")
    out, err = talk(*lines, load=load)
    assert loads == [str(tmp_path / "broken"), "fake"]
    assert "Back with fake; the conversation begins anew.\nError: broken is cut off.\n" in err
    assert "system:Brief.;user:still here?" in out
    assert talk.repl.session.parameters == {"seed": 3}
