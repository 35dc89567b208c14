"""gemworks bench engine: what it refuses, what it asks for, what it prints."""

import json
import sys

import pytest

from gemworks.bench import engine as bench
from gemworks.bench import rivals
from gemworks.bench.system import SystemSpec
from gemworks.cli.main import run_command
from gemworks.model.config import RELEASED

HOST = {
    "seconds": 2.0, "step_s": 1.9, "host_s": 0.1, "steps": 40, "step_ms": 47.5, "host_ms": 2.5, "idle_share": 0.05,
    "tokens_per_second": 80.0, "occupancy": 0.9,
    "targets": [{"text": "scheduling", "bound": 0.05, "value": 0.0526, "is_upper": True, "is_met": False}],
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """Nothing is made or measured; the plans that were to be."""
    plans = []

    def find_systems(model, folder, format, say, *, threads, has_rival):
        rival = SystemSpec("llama.cpp", "q4_0", "x.gguf", threads) if has_rival else None
        ours = SystemSpec("engine", format, str(folder / model), threads)
        return {"model": model, "config": RELEASED["1b"], "ours": ours, "rival": rival}

    def run(plan, say):
        plans.append(plan)
        say("1b: host")
        return {"model": plan.model, "setting": {"sequences": plan.setting.sequences}, "scenarios": {"host": HOST}}

    monkeypatch.setattr(bench, "find_systems", find_systems)
    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(rivals, "_has_llama_cpp", lambda: True)
    return plans


def command(*arguments):
    return run_command(["bench", "engine", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scenario", "dance"],
            "--scenario must be all or some of streams, load, prefix, chat, fairness, speculation",
        ),
        (["--mix", "huge"], '--mix must be some of short,long, got "huge".'),
        (["--rate", "0"], "--rate must be above 0, got 0.0."),
        (["--scenario", "host", "--plot", "x.png"], '--plot draws a load: add load to --scenario, got "host".'),
        (["--scenario", "streams", "--rivals", "ollama"], "--rivals must be all, none or some of llama.cpp, openvino"),
        (["--model", "3b"], "--model must be one of 270m, 1b, 4b, 12b, 27b or a directory with a model, got "),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("went on"))
    assert command("--dir", tmp_path, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err


def test_a_plot_without_matplotlib_is_refused_before_measuring(capsys, monkeypatch, asked, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command("--dir", tmp_path, "--plot", tmp_path / "load.png") == 2
    assert 'pip install "gemworks[bench]"' in capsys.readouterr().err
    assert asked == []


def test_options_become_the_plan(capsys, asked, tmp_path):
    options = "--rate 2 --seconds 5 --prompt 32 --answer 8 --shared-prefix 100 --mix long,short --keys 2 --seed 9"
    more = "--scenario streams,host --sequences 8 --repeats 5 --format int8-b32 --kv int8 --threads 3 --model 270m"
    assert command("--dir", tmp_path, *options.split(), *more.split()) == 0
    [plan] = asked
    assert plan.names == ("streams", "host")
    load = plan.setting.load
    assert (load.rate, load.seconds, load.prompt, load.answer) == (2.0, 5.0, 32, 8)
    assert (load.shared_prefix, load.mix, load.keys, load.seed) == (100, ("long", "short"), 2, 9)
    assert (plan.setting.sequences, plan.setting.repeats, plan.setting.kv) == (8, 5, "int8")
    assert plan.ours == SystemSpec("engine", "int8-b32", str(tmp_path / "270m"), 3)
    assert plan.rival == SystemSpec("llama.cpp", "q4_0", "x.gguf", 3)


def test_only_streams_need_the_rival(asked, tmp_path):
    assert command("--dir", tmp_path, "--scenario", "host,chat") == 0
    assert asked[0].rival is None


def test_it_ends_with_one_json_line(capsys, asked, tmp_path):
    assert command("--dir", tmp_path, "--scenario", "host") == 0
    out, err = capsys.readouterr()
    *text, last = out.splitlines()
    assert "    MISSED        scheduling: 0.0526 (wanted <= 0.05)" in text
    assert "    a step              47.5 ms, the host's part 2.50 ms" in text
    assert "1b: host" in err
    found = json.loads(last)
    assert (found["bench"], found["model"]) == ("engine", "1b")
    assert found["scenarios"]["host"] == HOST
    assert command("--dir", tmp_path, "--scenario", "host", "--json") == 0
    assert json.loads(capsys.readouterr().out) == found
