"""Each mechanism alone, the others off: what it is there for it holds by itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from system.tools.attack_fixtures import MIB, attack, interpreter_for, open_folder, why_not

from gemworks.errors import BackendError
from gemworks.tools import Policy, Sandbox
from gemworks.tools.sandbox import seccomp, syscalls
from gemworks.tools.sandbox.means import Means

NETWORK = ("tcp", "udp", "dns", "abstract_socket")
FILES = ("read_outside", "read_by_symlink", "hard_link", "write_outside", "open_descriptors")
OTHERS = ("signals_to_parent", "trace_parent", "read_by_proc")
KERNEL = ("kernel_features", "clocks", "other_architectures", "odd_sockets", "programs", "abstract_socket", "tcp")

# (what is on, the attacks it must hold by itself)
ALONE = {
    "namespaces": (Means("namespaces", landlock=False, seccomp=False), (*NETWORK, *FILES, *OTHERS)),
    "bubblewrap": (Means("bubblewrap", landlock=False, seccomp=False), (*NETWORK, *FILES, *OTHERS)),
    "landlock": (Means("landlock", landlock=True, seccomp=False), ("read_outside", "hard_link", "write_outside")),
    "seccomp": (Means("landlock", landlock=False, seccomp=True), (*KERNEL, *NETWORK, *OTHERS[:2])),
}


@pytest.mark.parametrize("name", ALONE)
def test_alone(name, bait):
    means, attacks = ALONE[name]
    if why := why_not(means.engine):
        pytest.skip(f"{means.engine}: {why}")
    policy = Policy(packages=False, tmp_bytes=0 if means.engine == "landlock" else MIB, wall_s=60)
    sandbox = Sandbox(policy, means=means, interpreter=interpreter_for(means.engine))
    # Its own network namespace lets it listen to itself, and its own PID namespace has a process 1.
    spaces = means.engine != "landlock"
    target = bait.target | {"own_network": spaces, "group": bait.target["pid"]}
    outcome = sandbox.call(attack("all_quick"), {"target": target, "names": list(attacks)})
    assert outcome.status == "ok", outcome
    # bwrap brings the loopback of the new network up: a packet can be sent there, and reaches nobody.
    allowed = ("odd_sockets", "udp") if spaces else ()
    assert {name: got for name, got in outcome.value.items() if got and name not in allowed} == {}
    assert bait.received == []


@pytest.fixture
def note() -> Iterator[Path]:
    with open_folder() as folder:
        (folder / "note.txt").write_text("hello")
        yield folder / "note.txt"


def test_the_rest_of_the_files_can_be_read_and_not_written(shut, note):
    outcome = shut.sandbox(readable=(str(note.parent),)).call(attack("_read"), {"path": str(note)})
    assert outcome.status == "failed"  # bytes are no JSON: it was read
    assert "bytes is not JSON" in outcome.error
    code = attack("touch")._replace(source="def touch(path):\n    open(path, 'a').close()\n")
    assert "Error" in shut.sandbox(readable=(str(note.parent),)).call(code, {"path": str(note)}).error
    everything = shut.sandbox(readable=("/",)).call(attack("_read"), {"path": "/etc/hostname"})
    assert "bytes is not JSON" in everything.error or "No such file" in everything.error


def test_the_network_where_the_policy_gives_it(shut, bait):
    code = attack("tcp")
    outcome = shut.sandbox(network=True).call(code, {"target": bait.target | {"own_network": True}})
    bait.received.clear()
    assert [got.split(":")[0] for got in outcome.value] == ["loopback"]


def test_children_where_the_policy_lets_them(shut):
    if shut.engine == "landlock":
        pytest.skip("refused there: test_attacks.py")
    run = "subprocess.run(['/bin/echo', 'hi'], capture_output=True, text=True).stdout"
    source = f"import subprocess\ndef echo():\n    return {run}\n"
    assert shut.sandbox(children=True).call(attack("echo")._replace(source=source), {}).value == "hi\n"


def test_set_up_that_fails_is_told_before_anything_runs(shut):
    if shut.engine != "namespaces":
        pytest.skip("one engine is enough")
    sandbox = shut.sandbox()
    sandbox._fixed.config["mounts"].append(("/no/such/place", "/there"))
    with pytest.raises(BackendError, match="root directory"):
        sandbox.call(attack("leave"), {})


@pytest.mark.parametrize(("machine", "header"), [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h")])
def test_call_numbers_are_the_kernels(machine, header):
    import re
    from pathlib import Path

    path = Path("/usr/include") / header
    if not path.exists():
        pytest.skip(f"no {path}")
    kernel = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text()))
    ours = syscalls.numbers(machine)
    assert {name: number for name, number in ours.items() if int(kernel[name]) != number} == {}
    assert len(ours) > 180


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
def test_filters_fit_the_kernels_limits(machine):
    """At most 4096 instructions, and no jump past the end."""
    code = seccomp.assemble(machine, children=True, network=True, attributes=True, own_pid=2)
    steps = [code[i : i + 8] for i in range(0, len(code), 8)]
    assert len(steps) < 4096
    assert all(i + 1 + max(step[2], step[3]) < len(steps) for i, step in enumerate(steps) if step[0] & 7 == 5)
