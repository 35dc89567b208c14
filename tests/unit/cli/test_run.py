"""One question, one answer: where the prompt comes from, what is printed, what is refused."""

import io
import json
import shlex
import sys

import pytest

from gemworks import Completion
from gemworks.cli import answer, run
from gemworks.engine.types import Timings
from gemworks.errors import RequestError


class FakeStdin(io.StringIO):
    def __init__(self, text="", *, terminal=False):
        super().__init__(text)
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def stdin(monkeypatch):
    def put(text="", **options):
        monkeypatch.setattr(sys, "stdin", FakeStdin(text, **options))

    put()
    return put


@pytest.fixture
def model(tmp_path, monkeypatch, fake_llm, stdin):
    """A directory that loads as a fake model; `model.llm` is what answered."""
    folder = tmp_path / "model"
    folder.mkdir()
    loaded = []

    def load(name, **options):
        loaded.append((name, options))
        return llm

    llm = fake_llm()
    monkeypatch.setattr(run, "_load", load)
    return type("Model", (), {"path": folder, "llm": llm, "loaded": loaded})


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        (["Why", "blue?"], "", "Why blue?"),
        (None, "from a pipe\n", "from a pipe"),
        (["Sum up:"], "a\nb\n", "Sum up:\n\na\nb"),
    ],
)
def test_the_prompt_is_argument_and_stdin_joined_by_an_empty_line(stdin, words, piped, prompt):
    stdin(piped)
    assert run.read_prompt(words) == prompt


def test_a_terminal_and_no_prompt_is_a_conversation(stdin, monkeypatch):
    stdin(terminal=True)
    monkeypatch.setattr(sys, "stdout", FakeStdin(terminal=True))
    assert run.read_prompt(None) is None


@pytest.mark.parametrize(
    ("words", "terminal", "message"),
    [
        (None, False, "the prompt on stdin is empty. Give one as an argument, or pipe some text in."),
        (None, True, "there is no prompt. Give one as an argument or on stdin."),
        ([""], True, "the prompt is empty. Leave it out to talk to the model."),
    ],
)
def test_no_prompt_is_told_as_it_is(stdin, words, terminal, message):
    stdin(terminal=terminal)
    with pytest.raises(RequestError, match="^" + message.replace(".", r"\.") + "$"):
        run.read_prompt(words)


def test_nothing_but_the_answer_goes_to_stdout(run_command, model):
    assert run_command("run", model.path, "hi", "there") == (0, "user:hi there\n", "")


def test_the_flags_reach_the_model(run_command, model):
    flags = shlex.split(
        "--temperature 0 --top-k 5 --top-p 0.5 --min-p 0.1 --seed 3 --max-tokens 7 --stop a --stop b --system Brief. "
        "--repetition-penalty 1.1 --presence-penalty 0.2 --frequency-penalty 0.3"
    )
    code, out, _ = run_command("run", model.path, "hi", *flags, "--context", "32", "--dtype", "float32")
    assert (code, out) == (0, "system:Brief.;user:hi\n")
    assert model.llm.asked[0][1] == {
        "temperature": 0.0, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "seed": 3, "max_tokens": 7, "stop": ("a", "b"),
        "repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.3,
    }  # fmt: skip
    assert model.loaded == [(str(model.path), {"dtype": "float32", "context": 32})]


def test_json_is_one_object(run_command, model):
    code, out, err = run_command("run", model.path, "hi", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "model": str(model.path),
        "text": "user:hi",
        "token_ids": [7, 8],
        "prompt_tokens": 5,
        "image_tokens": 0,
        "completion_tokens": 9,
        "finish_reason": "stop",
        "stop_string": None,
        "timings": {
            **{"load_s": 1.5, "compile_s": 0.0, "queue_s": 0.0, "prefill_s": 0.5, "decode_s": 2.0, "prefill_tokens": 5},
            **{
                "decode_tokens": 8,
                "cached_tokens": 0,
                "encode_s": 0.0,
                "prefill_per_second": 10.0,
                "decode_per_second": 4.0,
            },
        },
    }


def test_verbose_tells_times_and_rates_on_stderr(run_command, model):
    code, out, err = run_command("run", model.path, "hi", "--verbose")
    assert (code, out) == (0, "user:hi\n")
    assert err == (
        "load         1.50 s\n"
        "prefill      0.50 s        5 tokens       10.0 tokens/s\n"
        "decode       2.00 s        8 tokens        4.0 tokens/s\n"
    )


def test_cached_tokens_and_compiling_are_told_apart():
    timings = Timings(prefill_s=1.0, prefill_tokens=10, cached_tokens=1200, compile_s=2.5)
    rows = answer.timing_lines(Completion(text="", timings=timings))
    assert "compile      2.50 s   once for these shapes" in rows
    assert rows[2].endswith("10.0 tokens/s (1,200 more were cached)")


def test_raw_continues_the_text(run_command, model):
    assert run_command("run", model.path, "Once upon", "--raw") == (0, "ONCE UPON\n", "")


def test_a_pretrained_model_continues_and_says_so(run_command, model):
    model.llm.is_chat = False
    code, out, err = run_command("run", model.path, "Once upon")
    assert (code, out) == (0, "ONCE UPON\n")
    assert err == f"{model.path} is pre-trained: it continues your text instead of answering it.\n"


def test_a_created_models_context_is_what_is_loaded(run_command, model, tmp_path):
    file = tmp_path / "Modelfile"
    file.write_text(f"FROM {model.path}\nPARAMETER num_ctx 48\nSYSTEM Be brief.\n")
    assert run_command("create", "mine", "-f", file)[0] == 0
    assert run_command("run", "mine", "hi") == (0, "system:Be brief.;user:hi\n", "")
    assert model.loaded == [(str(model.path), {"dtype": "auto", "context": 48})]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-frames", "3"], "--max-frames and --sampling say which frames of a video are read: give them"),
        (["--temperature", "-1"], "temperature must be 0 (greedy) or more, got -1.0."),
        (["--max-tokens", "0"], "max_tokens must be at least 1, got 0."),
        (["--stop", ""], "--stop must be a text of at least one character."),
        (["--raw", "--system", "x"], "--system needs the chat template, and --raw leaves it out."),
    ],
)
def test_what_cannot_be_done_is_refused_before_loading(run_command, model, flags, message):
    code, out, err = run_command("run", model.path, "hi", *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {message}")
    assert model.loaded == []


def test_system_on_a_pretrained_model_is_refused(run_command, model):
    model.llm.is_chat = False
    code, _, err = run_command("run", model.path, "hi", "--system", "x")
    assert code == 2
    assert err.startswith(f"Error: --system needs a chat model, and {model.path} is pre-trained: it continues text.\n")


def test_json_without_a_prompt_is_refused(run_command, model, stdin, monkeypatch):
    monkeypatch.setattr(run, "read_prompt", lambda _words: None)
    code, _, err = run_command("run", model.path, "--json")
    assert code == 2 and err.startswith("Error: --json needs a prompt")


def test_a_missing_model_costs_nothing_but_a_message(run_command, stdin):
    code, out, err = run_command("run", "gemma3:1b", "hi")
    assert (code, out) == (2, "")
    assert err == "Error: gemma3:1b is not on this machine.\nFetch it with: gemworks pull gemma3:1b\n"


@pytest.mark.parametrize(
    ("reason", "completion_tokens", "note"),
    [
        ("stop", 3, None),
        ("length", 3, "[cut after 3 tokens: max_tokens]"),
        ("length", 59, "[the context of 64 tokens is full]"),
    ],
)
def test_why_an_answer_ended_early(reason, completion_tokens, note):
    done = Completion(text="", prompt_tokens=5, completion_tokens=completion_tokens, finish_reason=reason)
    assert answer.ending_note(done, 64) == note
