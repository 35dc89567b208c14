"""Pictures through real processes: an answer, a conversation in a terminal, a text that never touches the tower."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from seeing_model import EYES, save_seeing_model, some_picture

from gemworks.model.vision_config import VisionConfig
from gemworks.tokenizer import Tokenizer

HOSTILE = Path(__file__).parents[2] / "unit" / "media" / "hostile.py"
N = EYES.tokens_per_image


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> Path:
    return save_seeing_model(tmp_path_factory.mktemp("seeing"), layers=(4, 5))


@pytest.fixture
def pictures(tmp_path) -> Path:
    some_picture(1).save(tmp_path / "a.png")
    some_picture(2, 300, 100).save(tmp_path / "b c.jpg")
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    return tmp_path


def test_an_answer_about_two_pictures_counts_their_tokens(gemworks, seeing, pictures):
    shown = ("--image", pictures / "a.png", "--image", pictures / "b c.jpg")
    done = gemworks("run", seeing, "--json", "--max-tokens", 3, "--temperature", 0, *shown, input="What is this?")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["image_tokens"] == 2 * N and found["timings"]["encode_s"] > 0
    tokenizer = Tokenizer.load(seeing)
    image = "\n\n<start_of_image>" + "<image_soft_token>" * N + "<end_of_image>\n\n"
    text = f"<bos><start_of_turn>user\n{image * 2}What is this?<end_of_turn>\n<start_of_turn>model\n"
    assert found["prompt_tokens"] == len(tokenizer.encode(text, control=True))


def test_a_conversation_about_pictures(terminal, seeing, pictures):
    screen = terminal("run", seeing, "--max-tokens", "2", "--temperature", "0", "--verbose")
    screen.expect(">>> ", timeout=60)
    screen.enter(f"/image {pictures}/bad.png")
    screen.expect("bad.png: an image must be whole")
    screen.enter(f"/image {pictures}/a.png")
    screen.expect(f"[{pictures}/a.png: 60 x 40 pixels, 4 tokens] Your next message begins with it.")
    screen.enter(f"and on '{pictures}/b c.jpg'?")
    screen.expect(f"[{pictures}/b c.jpg: 300 x 100 pixels, 4 tokens]")
    first = screen.expect("decode", timeout=60)
    assert f"{2 * N} tokens" in first and "(encoded before)" not in first
    screen.expect(">>> ")
    screen.enter("why?")
    second = screen.expect("decode", timeout=60)
    assert f"{2 * N} tokens   (encoded before)" in second and "more were cached" in second
    screen.enter("/bye")
    assert screen.wait() == 0


# What a process has of the model's file in memory: before a picture came, after one, and after the tower was freed.
_RESIDENT = """
import gc, json, sys
from pathlib import Path
from gemworks import LLM
def resident():
    rows, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if not head[0].endswith(":"):
            ours = line.endswith("/model.safetensors")
        elif ours and head[0] == "Rss:":
            rows += int(head[1]) * 1024
    return rows
llm = LLM(sys.argv[1], context=64, max_sequences=1)
llm.generate("Once", max_tokens=1)
text = resident(), "gemworks.model.siglip" in sys.modules
llm.generate([Path(sys.argv[2])], max_tokens=1)
was_loaded = llm.eyes.is_loaded
llm.free_vision()
gc.collect()
loaded = [was_loaded, llm.eyes.is_loaded]
print(json.dumps({"text": text[0], "tower_code": text[1], "loaded": loaded, "freed": resident()}))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc to see mappings in")
def test_a_text_never_maps_the_tower_and_it_can_be_freed(environment, tmp_path, pictures):
    wide = VisionConfig(
        image_size=56, patch_size=14, model_dim=512, ffw_dim=2048, num_layers=4, num_heads=8, tokens_per_image=4
    )
    model = save_seeing_model(tmp_path / "model", wide, layers=(4, 5))
    command = [sys.executable, "-c", _RESIDENT, str(model), str(pictures / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (model / "model.safetensors").stat().st_size > 25_000_000
    assert found["text"] < 2_000_000 and not found["tower_code"], found
    assert found["freed"] < 2_000_000, found
    assert found["loaded"] == [True, False]


# Hostile files through Python and the command line's entry point, in a process whose memory is measured.
_HOSTILE = """
import contextlib, importlib.util, io, json, sys, warnings
from pathlib import Path
spec = importlib.util.spec_from_file_location("hostile", sys.argv[1])
hostile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hostile)
from gemworks import LLM
from gemworks.cli.main import run_command
from gemworks.errors import RequestError
warnings.simplefilter("ignore")  # Pillow's, of broken EXIF
model, folder, step = sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
llm = LLM(model, context=64, max_sequences=1)
for kind in hostile.kinds():
    llm.prepare([{"type": "image", "image": hostile.healthy(kind)}])  # readers are loaded before memory is measured
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
before, answers = peak(), []
for case in hostile.all_hostile()[::step]:
    path = folder / case.name
    path.write_bytes(case.data)
    part = {"type": "image", "image": str(path)}
    try:
        told = llm.chat([{"role": "user", "content": [part]}], max_tokens=1).text
    except RequestError as error:
        told = str(error)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(["run", model, "?", "--image", str(path)])
    answers.append((case.name, case.says, str(path), told, code, out.getvalue(), err.getvalue()))
    path.unlink()
print(json.dumps({"growth": peak() - before, "answers": answers}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to measure memory with")
@pytest.mark.parametrize("step", [12, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_hostile_files_are_one_clear_error_each(environment, seeing, tmp_path, step):
    command = [sys.executable, "-c", _HOSTILE, str(HOSTILE), str(seeing), str(tmp_path), str(step)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert len(found["answers"]) >= 200 / step
    for name, says, path, told, code, out, err in found["answers"]:
        assert told.startswith(f"{path}: ") and says in told and len(told.splitlines()) <= 3, (name, told)
        assert (code, out, err) == (2, "", f"Error: {told}\n"), name
    assert found["growth"] < 64_000_000, f"{found['growth']:,} bytes"
