"""Attacks on the sandbox, each by every engine that this machine gives: held, or refused with the reason.

The attacks themselves are in attack_code.py. Those that only try and report share one child an engine.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from system.tools import attack_code
from system.tools.attack_fixtures import MIB, SOURCE, Shut, attack, readable_by_all, why_not

from gemworks.errors import BackendError
from gemworks.tools import Access, Policy, Toolbox, allow
from gemworks.tools.sandbox.means import ENGINES, Abilities, choose

QUICK = [one.__name__ for one in attack_code.QUICK]


@pytest.fixture(scope="module")
def quick(shut, bait):
    """Name -> what each quick attack got away with, from one child started beside poisoned modules and a secret."""
    before = Path.cwd()
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(bait.poison))
    patch.setenv("GEMWORKS_SECRET", f"token-{bait.target['word']}")
    patch.setenv("LD_PRELOAD", "")
    os.chdir(bait.poison)
    try:
        outcome = shut.run("all_quick", arguments={"target": bait.target})
    finally:
        os.chdir(before)
        patch.undo()
    assert outcome.status == "ok", outcome
    return outcome.value


@pytest.mark.parametrize("name", QUICK)
def test_held(quick, name):
    """The attack got away with nothing."""
    assert quick[name] == []


def test_nothing_arrived(quick, bait):
    """No server of the parent was reached, and what it keeps is as it was."""
    assert bait.received == []
    assert (bait.folder / "secret").read_text() == "the secret"
    assert (bait.folder / "owned").stat().st_mode & 0o777 == 0o666
    assert sorted(p.name for p in bait.folder.iterdir()) == ["owned", "poison", "secret", "socket"]
    assert not Path(f"/dev/shm/gemworks-{bait.target['word']}").exists()


# Of these the control tries nothing, although they would do no harm: they are about processes other than its own.
NOT_IN_CONTROL = ("trace_parent", "become_root", "mounting", "clocks", "kernel_settings", "programs", "devices")


def test_the_attacks_work_where_nothing_holds_them(bait):
    """In a process without a sandbox most attacks succeed: what holds them above is not their own weakness."""
    code = (
        "import json, sys, attack_code; print(json.dumps(attack_code.all_quick(json.loads(sys.argv[1]), sys.argv[2:])))"
    )
    names = [name for name in QUICK if name not in NOT_IN_CONTROL]
    folder = bait.folder / "control"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(bait.target), *names],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parent), "GEMWORKS_SECRET": "x"},
        input="typed",
        capture_output=True,
        text=True,
        timeout=60,
        pass_fds=[fd for fd in range(3, 200) if _is_secret(fd, bait.target["secret_id"])],
        check=False,
    )
    shutil.rmtree(folder)
    bait.received.clear()
    for name in ("secret", "owned"):
        (bait.folder / name).write_text(bait.texts[name])
        (bait.folder / name).chmod(0o666)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    wanted = {"read_outside", "read_by_symlink", "read_by_proc", "open_descriptors", "hard_link", "change_attributes"}
    wanted |= {"tcp", "udp", "unix_socket", "abstract_socket", "odd_sockets", "signals_to_parent", "environment"}
    wanted |= {"standard_input", "kernel_features", "shared_memory", "own_limits", "write_outside"}
    assert wanted <= {name for name in names if got[name]}


def _is_secret(fd: int, identity: list[int]) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return [found.st_dev, found.st_ino] == identity


def test_ten_gigabytes_are_not_given(shut):
    outcome = shut.run("allocate", memory_bytes=256 * MIB)
    assert outcome.status == "failed"
    assert outcome.error.startswith("MemoryError: more memory than the policy's memory_bytes")


def test_threads_end_at_the_limit(shut):
    assert shut.run("start_threads", tasks=8).value == 8


def test_fork_bomb_ends_at_the_limit(shut):
    if shut.engine == "landlock":
        assert shut.run("fork_bomb").value == 1
        return
    assert shut.run("fork_bomb", tasks=8, children=True).value == 8


def test_daemon_ends_with_the_call(shut):
    marker = f"gw{os.urandom(6).hex()}"
    if shut.engine == "landlock":
        outcome = shut.run("daemonize", arguments={"marker": marker})
        assert outcome.error.startswith("PermissionError")
        return
    outcome = shut.run("daemonize", arguments={"marker": marker}, children=True)
    assert outcome.value == "left one"
    deadline = time.monotonic() + 5
    while (left := _named(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def _named(marker: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if (folder / "comm").read_text().strip() == marker:
                    found.append(folder.name)
            except OSError:
                continue
    return found


TIMED = ("ignore_signals", "stop_itself", "close_everything")


@pytest.fixture(scope="session")
def timed():
    """(engine, attack) -> how calls end that mean never to: all at once, as they only wait."""
    engines = [engine for engine in ENGINES if not why_not(engine)]
    cases = {(engine, name): (Shut(engine), name, {"wall_s": 3.0}) for engine in engines for name in TIMED}
    cases |= {(engine, "loop_for_ever"): (Shut(engine), "loop_for_ever", {"cpu_s": 1}) for engine in engines}
    with ThreadPoolExecutor(len(cases) or 1) as pool:
        waiting = {case: pool.submit(shut.run, name, **rights) for case, (shut, name, rights) in cases.items()}
        return {case: future.result() for case, future in waiting.items()}


@pytest.mark.parametrize("name", TIMED)
def test_who_never_ends_is_ended(timed, shut, name):
    outcome = timed[shut.engine, name]
    assert outcome.stdout.startswith("begun")
    assert outcome.status == "limit" or name == "close_everything"
    assert "longer than 3 s (wall_s)" in outcome.error or name == "close_everything"
    assert outcome.wall_s < 15


def test_endless_loop_uses_up_its_processor_time(timed, shut):
    outcome = timed[shut.engine, "loop_for_ever"]
    assert (outcome.status, outcome.error) == ("limit", "it used more than 1 s of processor time (cpu_s)")
    assert outcome.stdout.startswith("begun")


@pytest.mark.parametrize(
    ("name", "most", "least"), [("write_much", 4 * MIB, 2 * MIB), ("write_one_large", 2 * MIB, MIB)]
)
def test_disk_is_limited(shut, name, most, least):
    if shut.engine == "landlock":
        assert shut.run(name).value == 0
        return
    outcome = shut.run(name, tmp_bytes=4 * MIB, file_bytes=2 * MIB)
    assert least <= outcome.value <= most


def test_inodes_are_limited(shut):
    if shut.engine == "landlock":
        assert shut.run("fill_inodes").value == 0
        return
    assert 100 <= shut.run("fill_inodes", tmp_files=128).value <= 128 + 64


def test_open_files_are_limited(shut):
    assert 1 <= shut.run("open_many", open_files=32).value < 32


def test_forged_result_is_refused(shut):
    outcome = shut.run("forge")
    assert (outcome.status, outcome.value) == ("forged", None)
    assert "not a result of this call" in outcome.error


def test_program_cannot_send_a_result(shut):
    if shut.engine == "landlock":
        assert shut.run("forge_by_program").status == "failed"
        return
    outcome = shut.run("forge_by_program", children=True)
    assert (outcome.status, outcome.value) == ("forged", None)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("huge_result", "limit", "larger than 100,000 bytes (result_bytes)"),
        ("deep_result", "failed", "RecursionError"),
        ("not_json", "failed", "TypeError: Object of type set is not JSON serializable"),
        ("not_a_number", "failed", "ValueError: Out of range float values are not JSON compliant"),
        ("leave", "failed", "exit code 0 before it gave a result"),
        ("leave_politely", "failed", "SystemExit: 3"),
    ],
)
def test_bad_result_is_told(name, status, words):
    outcome = Shut(_first_engine()).run(name, result_bytes=100_000)
    assert outcome.status == status
    assert words in outcome.error
    assert outcome.value is None


def test_result_of_the_wrong_type_is_refused(tmp_path):
    """What the function returns is not what it declares."""
    file = tmp_path / "wrong.py"
    file.write_text("def wrong() -> int:\n    'An int, it says.'\n    return 'text'\n")
    box = Toolbox.from_file(file, sandbox=_policy())
    result = box.session("r", Access([allow("*")])).call("wrong", {})
    assert (result.status, result.value) == ("wrong_result", None)
    assert result.text == 'error: the result of wrong is not what it declares: must be of type integer, got "text"'


def test_terminal_escapes_are_shown_not_sent(tmp_path):
    file = tmp_path / "attack.py"
    file.write_text(SOURCE[SOURCE.index("def escapes") : SOURCE.index("def print_much")].replace("():", "() -> dict:"))
    file.write_text("import sys\n" + file.read_text())
    result = Toolbox.from_file(file, sandbox=_policy()).session("r", Access([allow("*")])).call("escapes", {})
    for text in (result.text, result.stdout, result.stderr, str(result.value)):
        assert text.isascii()
        assert "\x1b" not in text and "\x07" not in text
    assert result.value["text"] == "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202egnp.exe\\U000e0041"


def test_output_is_cut_and_does_not_block():
    outcome = Shut(_first_engine()).run("print_much", output_bytes=5000)
    assert (outcome.status, len(outcome.stdout), outcome.value) == ("ok", 5000, "done")


def _first_engine() -> str:
    engine = next((one for one in ENGINES if not why_not(one)), None)
    return engine or pytest.skip("tools cannot be shut in on this machine")


def _policy() -> Policy:
    return Policy(wall_s=60) if _first_engine() != "landlock" else Policy(tmp_bytes=0, wall_s=60)


def test_users_without_rights_hold_them_too(bait):
    """The same, started by nobody: then a user namespace does what root did."""
    python = getattr(sys, "_base_executable", sys.executable)
    if os.geteuid() != 0:
        pytest.skip("this already runs as a user without rights")
    if not readable_by_all(python):
        python = "/usr/bin/python3"
    if not os.path.exists(python) or not readable_by_all(str(Path(__file__))):
        pytest.skip("no Python, or not this repository, can be read by other users")
    script = (
        "import json, sys\n"
        "sys.path.append(sys.argv[1])\n"
        "from gemworks.tools.sandbox.means import Means\n"
        "from gemworks.tools.sandbox.policy import Policy\n"
        "from gemworks.tools.sandbox.runner import Code, Sandbox\n"
        "source = open(sys.argv[2]).read()\n"
        "box = Sandbox(Policy(packages=False, wall_s=60), means=Means('namespaces'))\n"
        "target = json.loads(sys.argv[3]) | {'pid': __import__('os').getpid()}\n"
        "print(json.dumps(box.call(Code(source, 'all_quick'), {'target': target}).value))\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [
            python,
            "-I",
            "-c",
            script,
            str(root),
            str(Path(__file__).with_name("attack_code.py")),
            json.dumps(bait.target),
        ],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr:
        pytest.skip(f"this kernel gives users no namespaces: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert {name: got for name, got in json.loads(done.stdout).items() if got} == {}


NO_SPACES = Abilities("not installed", "unshare: Operation not permitted", "", 7, True)


@pytest.mark.parametrize(
    ("rights", "words"),
    [
        ({}, "a private /tmp of limited size (tmp_bytes=0 does without)"),
        ({"tmp_bytes": 0, "children": True}, "child processes that are all killed (children=False does without)"),
        ({"tmp_bytes": 0, "filter_syscalls": False}, "no seccomp filter"),
    ],
)
def test_a_kernel_without_namespaces_refuses_what_needs_them(rights, words):
    with pytest.raises(BackendError) as caught:
        choose(Policy(**rights), NO_SPACES)
    assert words in str(caught.value)
    assert "unshare: Operation not permitted" in str(caught.value)


def test_a_kernel_without_namespaces_holds_what_it_can():
    assert choose(Policy(tmp_bytes=0), NO_SPACES).engine == "landlock"


def test_a_kernel_with_nothing_refuses_everything():
    nothing = Abilities("not installed", "no namespaces", "Landlock ABI 3 is not there", 0, True)
    with pytest.raises(BackendError, match="tools cannot be shut in on this machine"):
        choose(Policy(tmp_bytes=0), nothing)
    with pytest.raises(BackendError, match="the kernel takes no seccomp filters"):
        choose(Policy(), nothing._replace(seccomp=False, namespaces=""))


def test_unknown_attack_is_no_pass(shut):
    """A call that could not start the attack is not taken for one that held."""
    with pytest.raises(AssertionError):
        assert shut.sandbox().call(attack("no_such"), {}).status == "ok"
