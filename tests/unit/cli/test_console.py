"""What is written where, and how it is aligned."""

import io
import sys

import pytest

from gemworks.cli import console


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (596_352, "596 kB"),
        (999_700, "1 MB"),
        (2_000_000_000, "2.0 GB"),
    ],
)
def test_sizes_are_powers_of_ten(num_bytes, text):
    assert console.size(num_bytes) == text


def test_columns_line_up(capsys):
    console.columns(("NAME", "SIZE"), [("a", "1 GB"), ("longer", "10 GB")], right=(1,))
    assert capsys.readouterr().out == "NAME      SIZE\na         1 GB\nlonger   10 GB\n"


def test_pairs_keep_further_lines_in_the_value_column(capsys):
    console.pairs([("a", "one\ntwo"), ("long", "three")])
    assert capsys.readouterr().out == "a      one\n       two\nlong   three\n"


class FakeTerminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_does_not_obey_escape_sequences_of_an_answer(monkeypatch):
    screen = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", screen)
    console.write("\x1b]0;title\x07red\x1b[31m\tok\n\x9b2J")
    assert screen.getvalue() == "]0;titlered[31m\tok\n2J"


def test_a_pipe_gets_an_answer_as_it_is(capsys):
    console.write("a\x1b[31mb\r\n")
    assert capsys.readouterr().out == "a\x1b[31mb\r\n"


def test_json_is_one_line_where_a_script_reads(capsys):
    console.emit_json({"text": "na\u00efve", "n": [1]})
    assert capsys.readouterr().out == '{"text": "na\u00efve", "n": [1]}\n'


@pytest.mark.parametrize(("typed", "answer"), [("\n", True), ("y\n", True), ("No\n", False), ("", False)])
def test_confirm_takes_enter_as_the_default_and_the_end_as_no(monkeypatch, typed, answer):
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    assert console.confirm("Sure?", default=True) is answer
