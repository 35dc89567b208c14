"""The conversation in a real terminal (a pty), with a model that answers with what it was asked."""

import os
import stat
import time

import pytest


@pytest.fixture
def repl(terminal, scripted_repl, tmp_path):
    """A terminal with the REPL at its first prompt, talking to a model that is a directory."""
    (tmp_path / "echo").mkdir()
    screen = terminal("run", tmp_path / "echo", python=scripted_repl)
    screen.expect("4,096 tokens of context. /? for help, /bye to leave.")
    screen.expect(">>> ")
    return screen


def test_turns_are_added_up_and_forgotten(repl):
    repl.enter("one")
    repl.expect("1|-|one|-")
    repl.expect(">>> ")
    repl.enter("two")
    repl.expect("3|-|two|-")
    repl.expect(">>> ")
    repl.enter("/clear")
    repl.expect("The conversation is forgotten")
    repl.enter("three")
    repl.expect("1|-|three|-")
    repl.enter("/bye")
    assert repl.wait() == 0


def test_triple_quotes_hold_several_lines(repl):
    repl.enter('"""first')
    repl.expect("... ")
    repl.enter("  second")
    repl.expect("... ")
    repl.enter('/third"""')
    repl.expect("1|-|first\n  second\n/third|-")


def test_a_quoted_message_may_begin_with_a_slash(repl):
    repl.enter('"""/bye"""')
    repl.expect("1|-|/bye|-")


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(repl):
    repl.enter("slow")
    repl.expect("xxxxxxxxxx")
    repl.interrupt()
    repl.expect(">>> ")
    repl.enter("next")
    repl.expect("3|-|next|-")


def test_ctrl_c_before_the_first_word_drops_the_turn(repl):
    repl.enter("think")
    time.sleep(0.5)
    repl.interrupt()
    repl.expect(">>> ", timeout=5)
    repl.enter("next")
    repl.expect("1|-|next|-")


def test_ctrl_c_at_the_prompt_clears_the_line(repl):
    repl.type("half a thou")
    repl.expect("half a thou")
    repl.interrupt()
    repl.expect("Ctrl-D or /bye to leave.")
    repl.expect(">>> ")
    repl.enter("whole")
    repl.expect("1|-|whole|-")


def test_ctrl_d_leaves(repl):
    repl.type("\x04")
    assert repl.wait() == 0


def test_parameters_and_system_prompt_reach_the_model(repl):
    repl.enter("/set parameter temperature 0.25")
    repl.expect("temperature is 0.25 now.")
    repl.enter('/set system """Be brief.')
    repl.expect("... ")
    repl.enter('Be kind."""')
    repl.expect("The system prompt is set.")
    repl.enter("hello")
    repl.expect("2|Be brief.\nBe kind.|hello|0.25")
    repl.enter("/show parameters")
    repl.expect("temperature   0.25")
    repl.enter("/show system")
    repl.expect("Be brief.\nBe kind.")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/set parameter temprature 1", 'there is no parameter "temprature". Did you mean "temperature"?'),
        ("/set parameter temperature -1", "PARAMETER temperature must be 0 (greedy) or more, got -1.0."),
        ("/set parameter top_k lots", 'top_k must be a whole number, got "lots".'),
        ("/sow", "there is no command /sow. Did you mean /show?"),
        ("/show", "/show takes info, parameters, system, modelfile."),
        ("/load nowhere", 'no model named "nowhere".'),
        ("/save", "/save needs a name, as in: /save pirate"),
        ("/save gemma3:1b", '"gemma3:1b" is the name of a released model. Choose another name.'),
    ],
)
def test_a_wrong_command_is_explained_and_the_conversation_goes_on(repl, line, answer):
    repl.enter(line)
    repl.expect(answer)
    repl.enter("still here")
    repl.expect("1|-|still here|-")


def test_save_makes_a_model_that_run_and_load_know(repl, gemworks, terminal, scripted_repl, tmp_path):
    repl.enter("/set parameter temperature 0.5")
    repl.enter("/set parameter stop END")
    repl.enter("/set system Talk like a pirate.")
    repl.enter("/save pirate")
    repl.expect("Saved. Talk to it with: gemworks run pirate")
    shown = gemworks("show", "pirate", "--modelfile")
    assert shown.stdout == (
        f"FROM {tmp_path / 'echo'}\nPARAMETER temperature 0.5\nPARAMETER stop END\nSYSTEM Talk like a pirate.\n"
    )
    repl.enter("/set parameter temperature 1")
    repl.enter("/load pirate")
    repl.expect("Now with pirate.")
    repl.enter("ahoy")
    repl.expect("2|Talk like a pirate.|ahoy|0.5")
    again = terminal("run", "pirate", "hello", python=scripted_repl)
    again.expect("2|Talk like a pirate.|hello|0.5")


def test_verbose_shows_rates_until_quiet(repl):
    repl.enter("/set verbose")
    repl.enter("hello")
    repl.expect("prefill      0.10 s       10 tokens      100.0 tokens/s (3 more were cached)")
    repl.expect("decode       0.20 s       20 tokens      100.0 tokens/s")
    repl.enter("/set quiet")
    repl.expect("not shown")
    repl.enter("again")
    assert "tokens/s" not in repl.expect("3|-|again|-") + repl.expect(">>> ")


def test_history_is_kept_for_the_next_time_and_is_private(repl, terminal, scripted_repl, tmp_path, home):
    repl.enter("remember me")
    repl.expect("1|-|remember me|-")
    repl.enter("/set nohistory")
    repl.expect("not remembered")
    repl.enter("forget me")
    repl.expect("forget me|-")
    repl.enter("/bye")
    repl.wait()
    history = home / "history"
    assert "remember me" in history.read_text() and "forget me" not in history.read_text()
    assert stat.S_IMODE(os.stat(history).st_mode) == 0o600
    again = terminal("run", tmp_path / "echo", python=scripted_repl)
    again.expect(">>> ")
    again.type("\x1b[A\x1b[A")  # up, past "/set nohistory"
    again.expect("remember me")
    again.enter("")
    again.expect("1|-|remember me|-")


def test_tab_completes_commands(repl):
    repl.type("/sh\t")
    repl.expect("/show ")
    repl.type("par\t\r")
    repl.expect("Nothing is set; the model's own values count.")


def test_a_model_that_is_not_here_is_offered(terminal, scripted_repl, hub):
    hub.add("google/gemma-3-1b-it", {"model.safetensors": b"w" * 100, "config.json": b"{}"})
    screen = terminal("run", "gemma3:1b", "hello", python=scripted_repl, HF_ENDPOINT=hub.url)
    screen.expect("gemma3:1b is not on this machine. Fetch google/gemma-3-1b-it now? [Y/n] ")
    screen.enter("")
    screen.expect("1|-|hello|-")
    assert screen.wait() == 0


def test_an_offer_may_be_declined(terminal, scripted_repl, hub):
    screen = terminal("run", "gemma3:1b", "hello", python=scripted_repl, HF_ENDPOINT=hub.url)
    screen.expect("[Y/n] ")
    screen.enter("n")
    assert screen.wait() == 1
    assert hub.requests == []
