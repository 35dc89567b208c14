"""Nothing half-written ever has its final name, and nothing half-written stays."""

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemworks.errors import ConfigError, StorageError
from gemworks.weights import atomic
from gemworks.weights.atomic import replacing


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.fixture
def old_model(tmp_path) -> Path:
    """A directory that holds a model, to be replaced."""
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "config.json").write_text("old")
    return directory


def write_new(directory: Path, **options) -> None:
    with replacing(directory, needed=3, kind="directory", **options) as partial:
        (partial / "config.json").write_text("new")


def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path):
    out = tmp_path / "below" / "out.gguf"
    with replacing(out, needed=3) as partial:
        partial.write_text("new")
        assert not out.exists() and partial.parent == out.parent and partial.name.startswith(".out.gguf.")
    assert out.read_text() == "new" and names(out.parent) == ["out.gguf"]


def test_a_directory_may_fill_an_empty_one(tmp_path):
    (tmp_path / "out").mkdir()
    write_new(tmp_path / "out")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "config.json").read_text() == "new"


def test_permissions_are_those_of_a_file_made_by_hand(tmp_path):
    (tmp_path / "by hand").write_text("")
    with replacing(tmp_path / "out", needed=0):
        pass
    write_new(tmp_path / "directory")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "by hand").stat().st_mode
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "directory").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_leaves_nothing(tmp_path, kind, error):
    with pytest.raises(type(error)), replacing(tmp_path / "out", needed=0, kind=kind):
        raise error
    assert names(tmp_path) == []


def test_without_force_nothing_is_replaced(old_model, tmp_path):
    with pytest.raises(ConfigError) as caught:
        write_new(old_model)
    assert str(caught.value) == f"{old_model} exists already.\nChoose another name, or add --force to replace it."
    (tmp_path / "file").write_text("old")
    with pytest.raises(ConfigError, match="exists already"), replacing(tmp_path / "file", needed=0):
        pass
    assert (tmp_path / "file").read_text() == "old" and (old_model / "config.json").read_text() == "old"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_force_replaces_a_model(old_model, tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    (old_model / "model.safetensors").write_text("old")
    write_new(old_model, force=True)
    assert names(tmp_path) == ["out"] and names(old_model) == ["config.json"]
    assert (old_model / "config.json").read_text() == "new"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="exchanging names in one step is Linux's")
def test_linux_exchanges_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert atomic._exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["b"] and names(tmp_path / "b") == ["a"]


def test_an_error_keeps_the_old_model(old_model, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError), replacing(old_model, needed=0, kind="directory", force=True):
        raise RuntimeError
    assert names(tmp_path) == ["out"] and (old_model / "config.json").read_text() == "old"
    # ... also where the error is in the last step, after the old one was moved aside.
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    really_rename = os.rename

    def rename(source, target):
        if str(source).endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        really_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(StorageError, match="cannot be written: Input/output error"):
        write_new(old_model, force=True)
    assert names(tmp_path) == ["out"] and (old_model / "config.json").read_text() == "old"


def test_force_never_replaces_what_is_not_a_model(tmp_path):
    """A mistyped path must not cost a home directory."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years")
    with pytest.raises(ConfigError, match=r"exists and does not hold a model \(no config\.json\), so it is not"):
        write_new(tmp_path / "home", force=True)
    assert names(tmp_path / "home") == ["thesis.txt"]


def test_a_file_and_a_directory_do_not_replace_each_other(old_model, tmp_path):
    with (
        pytest.raises(ConfigError, match="must be a file to be written, and it is a directory"),
        replacing(old_model, needed=0, force=True),
    ):
        pass
    (tmp_path / "file").write_text("old")
    with pytest.raises(ConfigError, match="must be a directory to be written, and it is a file"):
        write_new(tmp_path / "file", force=True)


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError) as caught, replacing(tmp_path / "out", needed=2_000_000):
        pytest.fail("the block must not begin")
    assert str(caught.value) == (
        f"{tmp_path / 'out'} needs 2,000,000 bytes, and its disk has 1,000 bytes free.\n"
        "Free some room or choose a place on another disk; nothing was written."
    )
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way_is_said_with_both_numbers(tmp_path):
    with pytest.raises(StorageError) as caught, replacing(tmp_path / "out", needed=77):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert re.match(r".*/out needs 77 bytes, and its disk has [\d,]+ bytes free\.\n", str(caught.value))
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB, where this process may mount one."""
    mount, directory = shutil.which("mount"), tmp_path / "small"
    directory.mkdir()
    command = [str(mount), "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs privileges this process does not have")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(small_disk):
    (small_disk / "out").write_text("old")
    with (
        pytest.raises(StorageError, match=r"out needs 10 bytes, and its disk has [\d,]+ bytes free"),
        replacing(small_disk / "out", needed=10, force=True) as partial,
    ):
        partial.write_bytes(bytes(1 << 20))
    with (
        pytest.raises(StorageError, match=r"out needs 9,999,999 bytes, and its disk has [\d,]+ bytes free"),
        replacing(small_disk / "out", needed=9_999_999, force=True),
    ):
        pass
    assert names(small_disk) == ["out"] and (small_disk / "out").read_text() == "old"


def test_a_place_that_may_not_be_written_is_said(tmp_path):
    with pytest.raises(StorageError) as caught, replacing(tmp_path / "out", needed=1):
        raise PermissionError(errno.EACCES, "Permission denied", "/mnt/x")
    assert str(caught.value) == (
        f"{tmp_path / 'out'} cannot be written: Permission denied (/mnt/x).\nChoose a place you may write to."
    )


def test_a_name_below_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/out cannot be written: "), replacing(tmp_path / "file/out", needed=1):
        pass


WRITER = """
import sys, time
from pathlib import Path
from gemworks.weights.atomic import replacing
with replacing(Path(sys.argv[1]), needed=100_000, kind="directory", force=True) as partial:
    print("started", flush=True)
    with (partial / "data").open("wb") as file:
        for _ in range(int(sys.argv[2])):
            file.write(b"x" * 1000)
            file.flush()
    (partial / "config.json").write_text("new")
"""


def start_writer(out: Path, blocks: int) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(out), str(blocks)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def test_a_writer_killed_at_any_moment_leaves_the_old_or_the_new(old_model, tmp_path):
    rng = random.Random(0)
    for _ in range(8):
        process = start_writer(old_model, 300)
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        text = (old_model / "config.json").read_text()
        assert text in ("old", "new")
        assert text == "old" or (old_model / "data").stat().st_size == 300_000
        shutil.rmtree(old_model)
        old_model.mkdir()
        (old_model / "config.json").write_text("old")
    write_new(old_model, force=True)
    assert names(tmp_path) == ["out"], "the next writer removes what the killed ones left"


def test_a_living_writer_keeps_its_partial_output(old_model, tmp_path):
    process = start_writer(old_model, 10**9)
    try:
        write_new(old_model, force=True)
        assert [name for name in names(tmp_path) if name.endswith(".partial")], "still being written"
    finally:
        process.kill()
        process.communicate()
    write_new(old_model, force=True)
    assert names(tmp_path) == ["out"]
