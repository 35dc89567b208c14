"""Modelfiles as Ollama's users write them, read and written."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemworks.errors import ConfigError
from gemworks.weights.modelfile import Modelfile, parse_modelfile, parse_parameter, render_modelfile

FILE = '''\
# a comment
FROM gemma3:1b
parameter temperature 0.3
PARAMETER\tnum_predict 100
PARAMETER stop "User:"
PARAMETER stop """
"""
PARAMETER num_thread 4
SYSTEM """You are "Captain" Gem.

Answer briefly."""
MESSAGE user Who are you?
MESSAGE assistant "Captain Gem."
LICENSE """Terms
of use"""
'''


def test_a_file_is_read_as_it_is_meant():
    assert parse_modelfile(FILE) == Modelfile(
        base="gemma3:1b",
        parameters={"temperature": 0.3, "max_tokens": 100, "stop": ("User:", "\n")},
        system='You are "Captain" Gem.\n\nAnswer briefly.',
        messages=(("user", "Who are you?"), ("assistant", "Captain Gem.")),
        licenses=("Terms\nof use",),
        ignored=("num_thread",),
    )


def test_windows_line_ends_and_a_byte_order_mark_make_no_difference():
    assert parse_modelfile("\ufeff" + FILE.replace("\n", "\r\n")) == parse_modelfile(FILE)


def test_writing_and_reading_gives_the_same_back():
    made = dataclasses.replace(parse_modelfile(FILE), ignored=(), template="{{ .Prompt }}\n")
    assert parse_modelfile(render_modelfile(made)) == made


texts = st.text(st.characters(exclude_characters="\r\0", exclude_categories=("Cs",))).filter(lambda s: '"""' not in s)


@given(texts, texts, st.lists(texts.filter(bool), min_size=1).map(tuple))
def test_any_text_survives_writing_and_reading(system, template, stops):
    made = Modelfile(base="tiny", system=system, template=template, parameters={"stop": stops, "seed": None})
    assert parse_modelfile(render_modelfile(made)) == made


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match='a Modelfile cannot hold a text that contains """; take it out'):
        render_modelfile(Modelfile(base="tiny", system='a """ b'))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "M: a Modelfile needs a FROM line, and this one has none.\nBegin it with the model to start from"),
        ("FORM x", "M:1: there is no instruction FORM. Did you mean FROM?\nKnown: FROM, PARAMETER"),
        ("\n\nRENDERER x", "M:3: there is no instruction RENDERER.\nKnown: "),
        ("FROM a\nFROM b", "M:2: a Modelfile has one FROM line, and this is the second (the first: a)."),
        ("FROM", "M:1: FROM needs a value, and nothing follows it."),
        ("FROM a\nADAPTER b\nADAPTER c", "M:3: a model takes one adapter, and this is the second (the first: b)."),
        ("FROM a\nPARAMETER temprature 1", 'M:2: there is no parameter "temprature". Did you mean "temperature"?\n'),
        ("FROM a\nPARAMETER mirostat 1", 'M:2: there is no parameter "mirostat".\nKnown: temperature, top_k'),
        ("FROM a\nPARAMETER top_k 1.5", 'M:2: top_k must be a whole number, got "1.5".'),
        ("FROM a\nPARAMETER min_p high", 'M:2: min_p must be a number, got "high".'),
        ("FROM a\nPARAMETER seed", 'M:2: PARAMETER needs a name and a value, got "seed".'),
        ("FROM a\nMESSAGE tool x", 'M:2: MESSAGE needs one of system, user, assistant and a text, got "tool x".'),
        ('FROM a\nSYSTEM """never\nends', 'M:2: the """ that begins here is never closed.'),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_modelfile(text, "M")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "text", "parsed"),
    [
        ("num_predict", "-1", ("max_tokens", None)),
        ("num_predict", "-2", ("max_tokens", None)),
        ("seed", "-1", ("seed", None)),
        ("seed", "0", ("seed", 0)),
        ("num_ctx", "4096", ("context", 4096)),
        ("repeat_penalty", "1.1", ("repetition_penalty", 1.1)),
        ("TOP_P", ".9", ("top_p", 0.9)),
        ("stop", "a b", ("stop", ("a b",))),
    ],
)
def test_ollamas_names_mean_ours(name, text, parsed):
    assert parse_parameter(name, text) == parsed


def test_the_context_is_not_a_sampling_parameter():
    made = Modelfile(base="x", parameters={"context": 8192, "top_k": 1})
    assert (made.context, made.sampling) == (8192, {"top_k": 1})


def test_what_a_file_does_not_say_comes_from_its_base():
    base = Modelfile(base="gemma3:1b", parameters={"seed": 1, "top_k": 2}, system="base", messages=(("user", "x"),))
    mine = Modelfile(base="other", parameters={"seed": 9})
    assert mine.over(base) == Modelfile(
        base="gemma3:1b", parameters={"seed": 9, "top_k": 2}, system="base", messages=(("user", "x"),)
    )
    assert dataclasses.replace(mine, system="").over(base).system == ""
