"""gemworks guard: exit codes that scripts can use, one line an image, and one process that really judges."""

import json
import subprocess
import sys

import pytest
from seeing_model import save_seeing_model, some_picture

from gemworks.cli import guard as command
from gemworks.cli.main import run_command
from gemworks.errors import RequestError
from gemworks.safety import POLICIES, Verdict

MODEL = "tiny"  # is there; the judge below stands in for it


class FakeGuard:
    """Judges by the file's name: "bad" violates everything, "odd" violence only."""

    closed = 0

    def image(self, source, policies, *, threshold):
        probability = {policy.name: 0.75 if "bad" in source else 0.25 for policy in policies}
        if "odd" in source:
            probability |= {"violence": 0.5} if "violence" in probability else {}
        if "cut" in source:
            raise RequestError(f"{source}: an image must be whole.\nFetch it again.")
        return Verdict(image=source, probabilities=probability, threshold=threshold, width=4, height=3)

    def close(self):
        FakeGuard.closed += 1


@pytest.fixture
def judge(monkeypatch, tmp_path, capfd):
    """judge(*words) -> (exit code, stdout, stderr), run where good, bad, odd and cut .png lie."""
    loaded = []

    def load(model, quant):
        loaded.append((model, quant))
        return FakeGuard()

    monkeypatch.setattr(command, "_load", load)
    monkeypatch.chdir(tmp_path)
    for name in ("good", "bad", "odd", "cut"):
        (tmp_path / f"{name}.png").write_bytes(b"looked at by the judge only")

    def run(*words):
        capfd.readouterr()
        code = run_command(["guard", "image", "--model", MODEL, *words])
        return code, *capfd.readouterr()

    run.loaded = loaded
    return run


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["good.png"], 0),
        (["bad.png"], 1),
        (["good.png", "odd.png", "good.png"], 1),
        (["good.png", "--threshold", "0.25"], 1),
        (["bad.png", "--threshold", "0.76"], 0),
        (["odd.png", "--policy", "sexual", "--policy", "dangerous"], 0),
        (["good.png", "cut.png"], 2),
        (["bad.png", "cut.png"], 2),
        (["none.png"], 2),
        ([], 2),
        (["good.png", "--policy", "nudity"], 2),
        (["good.png", "--threshold", "0"], 2),
        (["good.png", "--policy", "x="], 2),
    ],
)
def test_the_exit_code_is_the_answer(judge, words, code):
    assert judge(*words)[0] == code


def test_one_line_an_image_and_it_goes_on(judge):
    code, out, err = judge("good.png", "none.png", "cut.png", "bad.png", "odd.png")
    assert out.splitlines() == [
        "good.png   ok        dangerous 0.250   sexual 0.250   violence 0.250",
        "bad.png    FLAGGED   dangerous 0.750!  sexual 0.750!  violence 0.750!",
        "odd.png    FLAGGED   dangerous 0.250   sexual 0.250   violence 0.500!",
    ]
    assert err.splitlines() == [
        "Error: none.png: an image must be a file that exists, got none of that name. Check the path.",
        "Error: cut.png: an image must be whole. Fetch it again.",
        "5 images: 2 flagged, 2 could not be judged.",
    ]
    assert code == 2 and FakeGuard.closed


def test_json_is_one_object(judge):
    code, out, err = judge("odd.png", "cut.png", "--json", "--policy", "violence", "--policy", "cats=No cats = ever.")
    told = json.loads(out)
    assert (code, told["model"]) == (2, MODEL)
    assert told["policies"] == {"violence": POLICIES["violence"].text, "cats": "No cats = ever."}
    odd, cut = told["images"]
    assert odd == {
        "image": "odd.png",
        "flagged": True,
        "violated": ["violence"],
        "probabilities": {"violence": 0.5, "cats": 0.25},
        "threshold": 0.5,
        "width": 4,
        "height": 3,
    }
    assert cut == {"image": "cut.png", "error": "cut.png: an image must be whole. Fetch it again."}
    assert err == "Error: cut.png: an image must be whole. Fetch it again.\n"


def test_what_is_wrong_is_told_before_the_model_is_loaded(judge):
    assert judge("none.png", "also-none.png")[0] == 2
    assert judge("good.png", "--policy", "nudity")[2].startswith("Error: policies are dangerous, sexual, violence, got")
    assert judge("good.png", "--model", "nowhere")[2].startswith('Error: no model named "nowhere".')
    assert judge.loaded == []
    judge("good.png", "bad.png", "--quant", "int8")
    assert judge.loaded == [(MODEL, "int8")]


def test_a_long_name_is_cut_at_its_beginning(judge, tmp_path):
    name = "a" * 60 + ".png"
    (tmp_path / name).write_bytes(b"x")
    _, out, _ = judge(name)
    assert out.startswith("..." + name[-45:] + "   ok  ")


def test_a_process_judges_images(tmp_path):
    model = save_seeing_model(tmp_path / "model")
    data = json.loads((model / "config.json").read_text(encoding="utf-8"))
    data |= {"model_type": "shieldgemma2", "yes_token_index": 400, "no_token_index": 401}
    (model / "config.json").write_text(json.dumps(data), encoding="utf-8")
    some_picture(1).save(tmp_path / "a.jpg")
    some_picture(2).save(tmp_path / "b.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:80])
    words = ["guard", "image", "a.jpg", "cut.png", "b.png", "--model", "./model", "--policy", "sexual", "--json"]
    done = subprocess.run([sys.executable, "-m", "gemworks", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("Error: cut.png: an image must be whole, got PNG")
    assert done.stderr.count("\n") == 1
    first, cut, last = json.loads(done.stdout)["images"]
    assert (first["image"], cut["image"], last["image"]) == ("a.jpg", "cut.png", "b.png")
    assert 0 < first["probabilities"]["sexual"] < 1 and first["probabilities"] != last["probabilities"]
