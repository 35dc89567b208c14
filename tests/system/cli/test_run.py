"""`gemworks run` and its neighbours as processes, with a real (random, small) model."""

import json
import re
import signal
import subprocess
import sys

from gemworks.tokenizer import Tokenizer
from gemworks.tokenizer.chat import render_chat


def object_of(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_seed_gives_the_same_answer_in_another_process(gemworks, chat_model):
    runs = [gemworks("run", chat_model, "hi", "--seed", n, "--max-tokens", 12, "--json") for n in (1, 1, 2)]
    first, again, other = map(object_of, runs)
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]
    assert first["completion_tokens"] == len(first["token_ids"]) == 12
    assert (first["finish_reason"], first["prompt_tokens"]) == ("length", first["timings"]["prefill_tokens"])
    assert first["timings"]["load_s"] > 0 and first["timings"]["decode_per_second"] > 0


def test_the_streamed_text_is_the_text_of_the_object(gemworks, chat_model):
    options = ("--temperature", 0, "--max-tokens", 20)
    whole = object_of(gemworks("run", chat_model, "hi", "--json", *options))
    streamed = gemworks("run", chat_model, "hi", *options)
    assert streamed.stdout == whole["text"] + "\n"
    assert streamed.stderr == ""


def test_the_prompt_may_come_on_stdin(gemworks, chat_model):
    options = ("--temperature", 0, "--max-tokens", 5, "--json")
    piped = object_of(gemworks("run", chat_model, *options, input="one\n\ntwo\n"))
    both = object_of(gemworks("run", chat_model, "one", *options, input="two\n"))
    given = object_of(gemworks("run", chat_model, "one\n\ntwo", *options))
    assert piped["token_ids"] == both["token_ids"] == given["token_ids"]
    assert piped["prompt_tokens"] == both["prompt_tokens"] == given["prompt_tokens"]


def test_raw_leaves_the_template_out(gemworks, chat_model):
    options = ("--max-tokens", 1, "--json")
    raw = object_of(gemworks("run", chat_model, "abc", "--raw", *options))
    assert raw["prompt_tokens"] == 1 + 3  # <bos> and the letters
    assert object_of(gemworks("run", chat_model, "abc", *options))["prompt_tokens"] > 10


def test_a_prompt_over_the_context_is_refused_with_both_numbers(gemworks, chat_model):
    done = gemworks("run", chat_model, "x" * 600)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"^Error: .*\b6\d\d\b.*\b512\b", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_damaged_model_is_one_message(gemworks, chat_model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in chat_model.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[: len(content) // 2] if file.suffix == ".safetensors" else content)
    done = gemworks("run", broken, "hi")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr and str(broken) in done.stderr


def test_ctrl_c_during_a_one_shot_answer_leaves_with_130(environment, chat_model):
    command = [sys.executable, "-m", "gemworks", "run", str(chat_model), "hi", "--temperature", "0"]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_a_conversation_reuses_what_it_computed(terminal, chat_model):
    screen = terminal("run", chat_model, "--max-tokens", "1", "--verbose")
    screen.expect(">>> ", timeout=60)
    screen.enter("a")
    first = screen.expect("decode", timeout=60)
    assert "more were cached" not in first
    screen.enter("b")
    second = screen.expect("more were cached)", timeout=60)
    assert int(re.search(r"\((\d+) more were cached", second)[1]) >= 10
    screen.enter("/bye")
    assert screen.wait() == 0


def test_ctrl_c_stops_a_real_answer_and_the_conversation_goes_on(terminal, chat_model):
    screen = terminal("run", chat_model, "--temperature", "0")
    screen.expect(">>> ", timeout=60)
    screen.enter("talk")
    screen.expect("\n" * 10, timeout=60)  # all this model says when it is not random
    screen.interrupt()
    screen.expect(">>> ", timeout=60)
    screen.enter("/set parameter max_tokens 2")
    screen.expect("max_tokens is 2 now.")
    screen.enter("more")
    screen.expect("[cut after 2 tokens: max_tokens]", timeout=60)


def test_a_saved_session_runs(gemworks, terminal, chat_model):
    screen = terminal("run", chat_model)
    screen.expect(">>> ", timeout=60)
    screen.enter("/set parameter num_predict 3")
    screen.enter("/set parameter temperature 0")
    screen.enter("/set system Be brief.")
    screen.enter("/save short")
    screen.expect("Saved.")
    done = object_of(gemworks("run", "short", "hi", "--json"))
    plain = object_of(
        gemworks("run", chat_model, "hi", "--system", "Be brief.", "--temperature", 0, "--max-tokens", 3, "--json")
    )
    assert done["completion_tokens"] == 3
    assert (done["token_ids"], done["prompt_tokens"]) == (plain["token_ids"], plain["prompt_tokens"])


def test_a_created_models_system_prompt_and_messages_are_said_once(gemworks, chat_model, tmp_path):
    (tmp_path / "Modelfile").write_text(f"FROM {chat_model}\nSYSTEM abc\nMESSAGE user d\nMESSAGE assistant e\n")
    assert gemworks("create", "mine", "-f", tmp_path / "Modelfile").returncode == 0
    made = object_of(gemworks("run", "mine", "f", "--max-tokens", 1, "--json"))
    said = [("system", "abc"), ("user", "d"), ("assistant", "e"), ("user", "f")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert made["prompt_tokens"] == len(render_chat(Tokenizer.load(chat_model), messages))
