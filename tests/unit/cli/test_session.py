"""Which messages a model gets, and which turns are kept."""

import pytest

from gemworks.cli.session import Session
from gemworks.errors import RequestError
from gemworks.weights.modelfile import Modelfile


def say(session, text):
    return "".join(chunk.text for chunk in session.ask(text))


def test_every_turn_carries_those_before(fake_llm):
    session = Session(fake_llm(), base="x")
    assert say(session, "one") == "user:one"
    assert say(session, "two") == "user:one;assistant:user:one;user:two"


def test_the_system_prompt_can_be_taken_away(fake_llm):
    session = Session(fake_llm(), base="x", modelfile=Modelfile(base="x", system="from the file"))
    assert say(session, "hi") == "system:from the file;user:hi"
    session.clear()
    session.system = None
    assert say(session, "hi") == "user:hi"


def test_flags_win_over_the_modelfile_and_the_context_is_not_a_sampling_parameter(fake_llm):
    llm = fake_llm()
    made = Modelfile(base="x", parameters={"temperature": 0.5, "top_k": 3, "context": 32})
    session = Session(llm, base="x", modelfile=made, parameters={"temperature": 0.0})
    say(session, "hi")
    assert llm.asked[0][1] == {"temperature": 0.0, "top_k": 3}


def test_opening_messages_begin_every_conversation(fake_llm):
    opening = (("user", "q"), ("assistant", "a"))
    session = Session(fake_llm(), base="x", modelfile=Modelfile(base="x", messages=opening))
    assert say(session, "hi") == "user:q;assistant:a;user:hi"
    session.clear()
    assert say(session, "hi") == "user:q;assistant:a;user:hi"


def test_a_stopped_answer_is_kept_as_far_as_it_came(fake_llm):
    llm = fake_llm()
    session = Session(llm, base="x")
    chunks = session.ask("hello")
    next(chunks), next(chunks)
    chunks.close()
    assert llm.closed == 1
    assert session.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "us"}]


def test_an_answer_stopped_before_its_first_word_is_not_a_turn(fake_llm):
    session = Session(fake_llm(), base="x")
    session.ask("hello").close()
    assert session.messages == []


def test_a_refused_request_is_not_a_turn(fake_llm):
    session = Session(fake_llm(), base="x")
    say(session, "one")
    with pytest.raises(RequestError, match="needs 99 tokens"):
        session.ask("too long")
    assert len(session.messages) == 2


@pytest.mark.parametrize("options", [{"is_chat": False}, {}])
def test_without_a_chat_form_every_prompt_is_text_by_itself(fake_llm, options):
    llm = fake_llm(**options)
    session = Session(llm, base="x", raw=not options)
    assert say(session, "one") == "ONE"
    assert say(session, "two") == "TWO"
    assert [prompt for prompt, _ in llm.asked] == ["one", "two"]


def test_the_session_as_a_modelfile(fake_llm):
    session = Session(fake_llm(), base="gemma3:1b", parameters={"seed": 3})
    session.system = "Be brief."
    say(session, "one")
    assert session.modelfile() == Modelfile(base="gemma3:1b", parameters={"seed": 3}, system="Be brief.")
