"""Damaged, truncated, mislabelled and oversized files: one clear error each, and memory that stays bounded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILES = Path(__file__).with_name("hostile.py")

RUN = """
import importlib.util, json, resource, sys, warnings
from pathlib import Path
spec = importlib.util.spec_from_file_location("hostile", sys.argv[1])
hostile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hostile)
from gemworks.errors import RequestError
from gemworks.media import decode_image, prepare_picture
warnings.simplefilter("ignore")  # Pillow's, of broken EXIF
folder = Path(sys.argv[2])
for kind in hostile.kinds():
    decode_image(hostile.healthy(kind))  # every reader is loaded before memory is measured
cases = hostile.all_hostile() if sys.argv[3] == "all" else hostile.some_hostile()
def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, answers = peak(), []
for case in cases:
    path = folder / case.name
    path.write_bytes(case.data)
    try:
        picture = prepare_picture(path)
        answer = f"a picture of {picture.width} x {picture.height}"
    except RequestError as error:
        answer = str(error)
    answers.append((case.name, case.says, str(path), answer))
    path.unlink()
distinct = len({case.data for case in cases})
print(json.dumps({"growth": peak() - before, "answers": answers, "distinct": distinct}))
"""


@pytest.fixture(scope="module", params=["some", pytest.param("all", marks=pytest.mark.exhaustive)])
def outcome(request, tmp_path_factory) -> dict:
    """What became of every file, in a process whose memory is measured."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-c", RUN, str(FILES), str(folder), request.param]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "decoders wrote to the terminal"
    return json.loads(done.stdout) | {"least": 200 if request.param == "all" else 50}


def test_there_are_many_and_no_two_are_the_same(outcome):
    assert outcome["distinct"] >= outcome["least"]


def test_every_file_is_one_clear_error(outcome):
    """Subject first, the requirement, what came, and what to do, in at most three lines."""
    wrong = []
    for name, says, path, answer in outcome["answers"]:
        lines = answer.splitlines()
        clear = lines[0].startswith(f"{path}: ") and " must " in lines[0] and ", got " in lines[0]
        if not (clear and says in answer and len(lines) <= 3 and len(answer) < 600 + len(path)):
            wrong.append(f"{name}: {answer[:200]}")
    assert not wrong, "\n".join(wrong)


def test_memory_stays_bounded(outcome):
    """The largest of the files is 50 kB, and the largest that they claim to be are terabytes."""
    assert outcome["growth"] < 64_000_000, f"{outcome['growth']:,} bytes"
