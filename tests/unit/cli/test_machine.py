"""What machines and containers say about themselves in /proc and /sys, and what we make of it."""

import json

import pytest

from gemworks import machine

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:   12000000 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system({"proc/meminfo": text, ...}) puts files where the module looks."""

    def put(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    return put


def test_memory_of_a_machine(system):
    system({"proc/meminfo": MEMINFO})
    assert machine.memory() == machine.Memory(total=16_384_000_000, available=12_288_000_000)


@pytest.mark.parametrize(
    "files",
    [
        {
            "memory.max": "4000000000\n",
            "memory.current": "3000000000",
            "memory.stat": "file 9\ninactive_file 500000000\n",
        },
        {
            "memory/memory.limit_in_bytes": "4000000000\n",
            "memory/memory.usage_in_bytes": "3000000000",
            "memory/memory.stat": "total_inactive_file 500000000\n",
        },
    ],
)
def test_a_container_may_have_less_and_its_page_cache_is_free(system, files):
    system({"proc/meminfo": MEMINFO} | {f"cgroup/{name}": text for name, text in files.items()})
    assert machine.memory() == machine.Memory(total=4_000_000_000, available=1_500_000_000)


@pytest.mark.parametrize("limit", ["max\n", "9223372036854771712\n"])
def test_a_limit_above_the_machine_is_none(system, limit):
    system({"proc/meminfo": MEMINFO, "cgroup/memory.max": limit})
    assert machine.memory().total == 16_384_000_000


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ],
)
def test_a_containers_share_of_the_cores(system, files, cores):
    system({f"cgroup/{name}": text for name, text in files.items()})
    assert machine.processor().quota == cores


def test_an_x86_processor(system):
    system({"proc/cpuinfo": "model name\t: Fast CPU\nflags\t\t: fpu avx512f fma avx2 avx512_vnni\n\nflags\t\t: fpu\n"})
    assert (machine.processor().name, machine.processor().isa) == (
        "Fast CPU",
        ("avx2", "fma", "avx512f", "avx512_vnni"),
    )


def test_an_arm_processor(system):
    system({"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"})
    assert machine.processor().isa == ("neon", "dotprod", "i8mm")


def test_doctor_tells_what_a_script_needs_and_never_the_token(run_command, monkeypatch, home):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    home.mkdir()
    (home / "file").write_bytes(b"12345")
    code, out, err = run_command("doctor", "--json")
    assert (code, err) == (0, "")
    assert "hf_secret" not in out
    found = json.loads(out)
    assert found["hub"] == {"endpoint": None, "token_is_set": True}
    assert found["folders"]["home"]["size_bytes"] == 5
    assert {row["op"] for row in found["ops"]} >= {"rms_norm", "linear", "attention"}
    assert all(row["backend"] and row["reason"] for row in found["ops"])
    assert found["jax"]["devices"] and found["processor"]["usable_cores"] >= 1
    assert (found["native_library"]["path"] is None) == (found["native_library"]["why_missing"] is not None)


def test_doctor_in_words(run_command):
    code, out, _ = run_command("doctor")
    assert code == 0
    assert "HF_TOKEN not set (needed for gated models: export HF_TOKEN=hf_...)" in out
    assert "xla: rms_norm" in out
