"""Pictures in what people type: which words are paths, what the model is shown, and what is told."""

import json
import sys
import time
from pathlib import Path

import pytest
from seeing_model import EYES, save_seeing_model, some_picture
from text_model import save_text_model

from gemworks.cli import run
from gemworks.cli.images import files_of, split_paths
from gemworks.cli.repl import Repl
from gemworks.cli.session import Session
from gemworks.llm.eyes import open_eyes
from gemworks.media import prepare_picture


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> Path:
    return save_seeing_model(tmp_path_factory.mktemp("seeing"), layers=(4, 5))


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """A working directory with pictures under awkward names, and files that are none."""
    folder = tmp_path / "here"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr(sys, "stdin", None)  # no prompt comes from there
    for i, name in enumerate(("a.png", "b c.jpg", "it's.png", "sub/d (1).PNG", "sub/no_suffix")):
        some_picture(i).save(folder / name, "PNG" if "jpg" not in name else "JPEG")
    (folder / "notes.txt").write_text("no picture")
    (folder / "sub" / "words").write_text("no picture")
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:50])
    return folder


@pytest.mark.parametrize(
    ("typed", "pieces"),
    [
        ("what is on a.png?", ["what is on ", "a.png", "?"]),
        ("a.png", ["a.png"]),
        ("compare './b c.jpg' and \"a.png\".", ["compare ", "b c.jpg", " and ", "a.png", "."]),
        (r"see b\ c.jpg, please", ["see ", "b c.jpg", ", please"]),
        (r"{here}/sub/d\ \(1\).PNG", ["sub/d (1).PNG"]),
        ("what of {here}/b c.jpg then", ["what of ", "b c.jpg", " then"]),
        ("file://{here}/b%20c.jpg and file:///nowhere.png", ["b c.jpg", " and file:///nowhere.png"]),
        ("~/a.png ./a.png ../here/a.png", ["a.png", "a.png", "a.png"]),
        ("sub/no_suffix is a picture by its content", ["sub/no_suffix", " is a picture by its content"]),
        ("sub/words and notes.txt are not", ["sub/words and notes.txt are not"]),
        ("there is no z.png, no /z.png, nor xa.png", ["there is no z.png, no /z.png, nor xa.png"]),
        ("it's a.png's twin (a.png)", ["it's a.png's twin (", "a.png", ")"]),
        ('and/or, 1/2, "quoted" words', ['and/or, 1/2, "quoted" words']),
        ("a\0.png " + "/" + "x" * 5000 + ".png", ["a\0.png " + "/" + "x" * 5000 + ".png"]),
        ("~nobody/a.png file://[/a.png", ["~nobody/a.png file://[/a.png"]),
        ("", []),
    ],
)
def test_which_words_are_pictures(pictures, typed, pieces):
    found = split_paths(typed.replace("{here}", str(pictures)))
    assert [str(piece.resolve().relative_to(pictures)) if isinstance(piece, Path) else piece for piece in found] == [
        piece.replace("{here}", str(pictures)) for piece in pieces
    ]


def test_a_long_message_is_looked_through_in_no_time():
    """0.3 s for 120,000 characters of code; 35 s when every word was followed to the end of the text."""
    code = "def f(a, b):\n    return 'x' + \"y\" / b  # /usr/lib a ./b ~/c\n" * 1000
    begun = time.process_time()
    assert split_paths(code) == [code]
    assert time.process_time() - begun < 3


def test_what_follows_the_command_is_one_file_or_several(pictures):
    assert files_of("b c.jpg") == files_of("'b c.jpg'") == files_of(r"b\ c.jpg") == [Path("b c.jpg")]
    assert files_of("a.png b c.jpg") == ["a.png b c.jpg"], "one of them is no file by itself"
    assert files_of(r"a.png b\ c.jpg") == [Path("a.png"), Path("b c.jpg")]
    assert files_of("it's.png") == [Path("it's.png")]
    assert files_of("nowhere.png") == ["nowhere.png"]


@pytest.fixture
def talk(fake_llm, capsys, seeing):
    """talk("hello") -> (stdout, stderr, what the model was asked) of a conversation with eyes."""

    class Seeing(fake_llm):
        eyes = open_eyes(seeing)

        def stream(self, prompt, **sampling):
            self.asked.append((prompt, sampling))
            said = prompt[-1]["content"] if isinstance(prompt[-1], dict) and "role" in prompt[-1] else prompt
            return self._chunks(shape_of(said))

    def run(*lines, **told):
        script, llm = iter(lines), Seeing(**told)
        told = {"load": lambda name: Session(Seeing(), base=name), "read_line": lambda prompt: next(script, "/bye")}
        Repl(Session(llm, base="x"), "fake", **told).loop()
        return *capsys.readouterr(), [prompt for prompt, _ in llm.asked]

    return run


def shape_of(content) -> str:
    """What a message holds: its texts, and for a picture its size."""
    if isinstance(content, str):
        return content
    shown = [part["text"] if part["type"] == "text" else f"{{{part['image'].width}}}" for part in content]
    return "".join(shown)


def test_a_typed_path_is_the_picture_in_its_place(talk, pictures):
    some_picture(7, 70, 20).save("seven.png")
    out, err, asked = talk("compare a.png with 'seven.png' please")
    assert out == "compare {60} with {70} please\n\n"
    assert "[a.png: 60 x 40 pixels, 4 tokens]\n[seven.png: 70 x 20 pixels, 4 tokens]\n" in err
    [picture] = [part["image"] for part in asked[0][0]["content"] if part["type"] == "image"][:1]
    assert picture.keys == prepare_picture(pictures / "a.png", tile_size=EYES.image_size).keys


def test_a_path_without_a_file_stays_text_and_is_told(talk, pictures):
    out, err, _ = talk("what is on ./z.png, and/or z.png?")
    assert out == "what is on ./z.png, and/or z.png?\n\n"
    assert err.count("there is no file") == 1 and "[there is no file ./z.png; the model is told its name only]" in err


def test_a_line_that_begins_with_a_path_is_a_message(talk, pictures):
    out, err, _ = talk(f"{pictures}/a.png what is it?", "/a.png", "/bye")
    assert out == "{60} what is it?\n\n"
    assert "there is no command /a.png." in err


def test_image_waits_for_the_next_message_and_stays_in_the_conversation(talk, pictures):
    _, err, asked = talk("/image a.png", r"/image b\ c.jpg", "what?", "and?")
    assert "[a.png: 60 x 40 pixels, 4 tokens] Your next message begins with it.\n" in err
    assert [[shape_of(message["content"]) for message in messages] for messages in asked] == [
        ["{60}{60}what?"],
        ["{60}{60}what?", "{60}{60}what?", "and?"],
    ]


def test_a_picture_that_waits_can_be_dropped(talk, pictures):
    out, _, _ = talk("/image a.png", "/image none", "one", "/image a.png", "/clear", "two")
    assert out == "one\n\ntwo\n\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/image bad.png", "Error: bad.png: an image must be whole, got PNG of 50 bytes"),
        ("what is on bad.png?", "Error: bad.png: an image must be whole, got PNG of 50 bytes"),
        ("/image z.png", "Error: z.png: an image must be a file that exists"),
        ("/image notes.txt", "Error: notes.txt: an image must be PNG, JPEG"),
        ("/image", "Error: /image needs a file, as in: /image photo.jpg (0 waiting for your next message)"),
        ("/image https://example.org/a.png", "Error: https://example.org/a.png: an image must be given itself"),
    ],
)
def test_a_picture_that_cannot_be_read_is_told_and_the_conversation_goes_on(talk, pictures, line, says):
    out, err, asked = talk(line, "still here")
    assert err.count("Error: ") == 1 and says in err
    assert out == "still here\n\n" and len(asked) == 1 and len(asked[0]) == 1


def test_a_text_model_is_shown_nothing(pictures, fake_llm, capsys):
    script = iter(["/image a.png", "what is on a.png?"])
    session = Session(fake_llm(), base="x")
    repl = Repl(session, "fake", load=lambda name: session, read_line=lambda _: next(script, "/bye"))
    repl.loop()
    out, err = capsys.readouterr()
    assert "Error: /image: fake reads text only, got an image.\n" in err
    assert out == "user:what is on a.png?\n\n"


def test_raw_text_names_no_pictures_and_may_begin_with_some(talk, pictures):
    out, _, asked = talk("/image a.png", "Once upon a.png", is_chat=False)
    assert out == "{60}Once upon a.png\n\n" and asked[0][0]["type"] == "image"


def test_tab_completes_files(pictures, monkeypatch):
    from gemworks.cli import repl

    monkeypatch.setattr(repl.readline, "get_line_buffer", lambda: "/image su")
    monkeypatch.setattr(repl.readline, "get_begidx", lambda: 7)
    assert repl._complete("su", 0) == "sub/"


@pytest.fixture
def loaded(monkeypatch, talk, fake_llm, seeing):
    """What `run` loads, in the place of a model; it answers with the shape of the last message."""

    class Seeing(fake_llm):
        eyes = open_eyes(seeing)

        def stream(self, prompt, **sampling):
            self.asked.append(prompt)
            return self._chunks(shape_of(prompt[-1]["content"] if "role" in prompt[-1] else prompt))

    models = []

    def load(name, **options):
        models.append(Seeing())
        return models[-1]

    monkeypatch.setattr(run, "_load", load)
    return models


def test_images_of_the_command_line_come_in_order_before_the_prompt(run_command, loaded, seeing, pictures):
    some_picture(1, 300, 100).save("wide.png")
    arguments = ("--image", "a.png", "--image", "wide.png")
    assert run_command("run", seeing, "what is this?", *arguments) == (0, "{60}{300}what is this?\n", "")
    assert run_command("run", seeing, "what is this?", *arguments, "--raw") == (0, "{60}{300}what is this?\n", "")
    code, out, _ = run_command("run", seeing, "and a.png?", "--image", "wide.png")
    assert (code, out) == (0, "{300}and {60}?\n")


def test_pan_and_scan_of_the_command_line(run_command, loaded, seeing, pictures):
    some_picture(1, 1000, 300).save("wide.png")
    run_command("run", seeing, "?", "--image", "wide.png", "--pan-and-scan")
    run_command("run", seeing, "?", "--image", "wide.png")
    shown = [model.asked[0][-1]["content"][0]["image"] for model in loaded]
    assert [picture.num_crops for picture in shown] == [3, 0]


def test_json_counts_image_tokens(run_command, loaded, seeing, pictures):
    code, out, err = run_command("run", seeing, "?", "--image", "a.png", "--json")
    assert (code, err) == (0, "") and json.loads(out)["image_tokens"] == 0  # of the model in its place


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--image", "bad.png"), "bad.png: an image must be whole"),
        (("--image", "a.png", "--image", "z.png"), "z.png: an image must be a file that exists"),
        (("--image", "."), ".: an image must be a regular file, got a directory."),
        (("--image", "http://example.org/a.png"), "http://example.org/a.png: an image must be given itself"),
        (("--video", "z.mp4"), "z.mp4: a video must be"),
    ],
)
def test_what_cannot_be_shown_is_told_before_loading(run_command, loaded, seeing, pictures, arguments, says):
    code, out, err = run_command("run", seeing, "?", *arguments)
    assert (code, out, loaded) == (2, "", [])
    assert err.startswith(f"Error: {says}") and err.count("\n") <= 3


def test_a_text_model_is_named_before_loading(run_command, loaded, pictures, tmp_path):
    text = save_text_model(tmp_path / "text")
    code, out, err = run_command("run", text, "?", "--image", "a.png")
    assert (code, out, loaded) == (2, "", [])
    assert err.startswith(f"Error: --image: {text} reads text only, got an image.\n")


def test_plan_counts_images(run_command):
    """By hand: 256 tokens a picture, 4 crops more each; 840 MB of tower; 2,560 floats a token of embeddings."""
    found = json.loads(run_command("plan", "gemma3:4b", "--images", 3, "--json")[1])
    crops = json.loads(run_command("plan", "gemma3:4b", "--images", 3, "--pan-and-scan", "--json")[1])
    without = json.loads(run_command("plan", "gemma3:4b", "--json")[1])
    assert (found["images"]["tokens"], crops["images"]["tokens"]) == (768, 3840)
    assert found["images"]["tower_bytes"] == 2 * (416_866_032 + 1152 * 2561) == found["vision_bytes"]
    assert found["images"]["embedding_bytes"] == 768 * 2560 * 4
    assert found["total_bytes"] - without["total_bytes"] == found["images"]["tower_bytes"] + 768 * 2560 * 4
    assert without["images"] is None
    out = run_command("plan", "gemma3:4b", "--images", 40)[1]
    assert "40: 10,240 of the 8,192 tokens: they do not fit the context" in out


def test_plan_of_a_model_here_and_of_a_text_model(run_command, seeing):
    found = json.loads(run_command("plan", seeing, "--images", 2, "--json")[1])
    assert found["images"]["tokens"] == 2 * EYES.tokens_per_image
    code, _, err = run_command("plan", "gemma3:1b", "--images", 1)
    assert code == 2 and err.startswith("Error: --images: gemma3:1b reads text only.\n")
    code, _, err = run_command("plan", "gemma3:4b", "--pan-and-scan")
    assert code == 2 and err.startswith("Error: --pan-and-scan is about images")


def test_show_says_what_a_model_reads(run_command, seeing, tmp_path):
    out = run_command("show", seeing)[1]
    assert "reads          text, and images of 56 x 56 pixels as 4 tokens\n" in out
    assert json.loads(run_command("show", seeing, "--json")[1])["vision"]["tokens_per_image"] == 4
    text = save_text_model(tmp_path / "text")
    assert "reads          text\n" in run_command("show", text)[1]
    assert json.loads(run_command("show", text, "--json")[1])["vision"] is None
