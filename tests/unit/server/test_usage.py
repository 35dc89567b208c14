"""Usage per key in SQLite: what ended is on the disk within a second, whatever happens to the process or the disk."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from gemworks.errors import ConfigError, StorageError
from gemworks.server.record import Record
from gemworks.server.usage import Usage, read_usage


def record(key="ann", model="tiny", call="chat", outcome="done", prompt=10, cached=4, drawn=3, seconds=0.5, day=20_000):
    return Record(
        id="r", method="POST", path="/", key=key, model=model, call=call, outcome=outcome, prompt_tokens=prompt,
        cached_tokens=cached, completion_tokens=drawn, seconds=seconds, started_at=day * 86_400.0 + 5,
    )  # fmt: skip


@pytest.fixture
def file(tmp_path):
    return tmp_path / "usage.sqlite"


def wait_until(holds, timeout=10.0):
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def test_sums_are_by_key_model_route_and_day_of_utc(file):
    usage = Usage(file)
    for one in (
        record(),
        record(),
        record(key="bob"),
        record(day=20_001, outcome="failed"),
        record(outcome="cancelled"),
    ):
        usage.add(one)
    usage.close()
    day = datetime.fromtimestamp(20_000 * 86_400, UTC).strftime("%Y-%m-%d")
    by_key = {row["key"]: row for row in read_usage(file, ["key"])}
    assert by_key["ann"] == {
        "key": "ann", "requests": 4, "failed": 1, "cancelled": 1, "prompt_tokens": 40, "cached_tokens": 16,
        "completion_tokens": 12, "seconds": 2.0,
    }  # fmt: skip
    assert by_key["bob"]["requests"] == 1
    assert next((row["day"], row["requests"]) for row in read_usage(file, ["day"])) == (day, 4)
    assert [row["requests"] for row in read_usage(file, [])] == [5]
    assert [row["requests"] for row in read_usage(file, ["key", "day"], key="ann")] == [3, 1]
    assert [row["requests"] for row in read_usage(file, ["key"], since="2024-10-05")] == [1]


def test_a_second_server_adds_to_what_is_there(file):
    for _ in range(2):
        usage = Usage(file)
        usage.add(record())
        usage.close()
    assert [row["requests"] for row in read_usage(file, ["key"])] == [2]


def test_two_servers_may_share_a_file(file):
    both = Usage(file, flush_s=0.01), Usage(file, flush_s=0.01)
    for _ in range(200):
        for usage in both:
            usage.add(record())
        time.sleep(0.0005)
    for usage in both:
        usage.close()
    assert [row["requests"] for row in read_usage(file, ["key"])] == [400]


def test_what_ended_is_readable_within_a_flush_while_the_server_runs(file):
    usage = Usage(file, flush_s=0.05)
    usage.add(record())
    wait_until(lambda: usage.pending == 0)
    assert [row["requests"] for row in read_usage(file, ["key"])] == [1]
    usage.close()


_CHILD = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from gemworks.server.record import Record
from gemworks.server.usage import Usage
usage, told = Usage(Path(sys.argv[1]), flush_s=0.02), 0
while True:
    usage.add(Record(id="r", method="POST", path="/", key="ann", call="chat", outcome="done", prompt_tokens=1))
    told += 1
    if told % 50 == 0:
        while usage.pending:
            time.sleep(0.001)
        print(told, flush=True)
"""


def test_kill_9_loses_at_most_the_last_batch_and_no_half_of_one(file):
    """What was on the disk when the process said so is there after SIGKILL, three times over, and sums agree."""
    least = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", _CHILD, str(file)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(4)][-1]
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        least += told
        (row,) = read_usage(file, ["key"])
        assert row["requests"] >= least and row["prompt_tokens"] == row["requests"]
        least = row["requests"]
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


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


def fill(directory) -> None:
    with open(directory / "filler", "ab", buffering=0) as out:
        for block in (4096, 1):
            try:
                while True:
                    out.write(bytes(block))
            except OSError:
                pass


def test_on_a_full_disk_everything_is_kept_and_written_when_there_is_room(small_disk):
    told, failures = [], []
    logs = SimpleNamespace(tell=lambda event, **fields: told.append((event, fields.get("level"))))
    usage = Usage(small_disk / "usage.sqlite", logs=logs, failed=lambda: failures.append(1), flush_s=0.02)
    fill(small_disk)
    for i in range(300):  # more rows than fit into what a page has left
        usage.add(record(key=f"key-{i}"))
    wait_until(lambda: len(failures) > 2)
    assert usage.problem is not None and "full" in usage.problem and "kept in memory" in usage.problem
    assert usage.pending == 300
    assert told == [("usage is not written", "error")], "once, however often it fails"
    usage.add(record(key="key-0"))
    (small_disk / "filler").unlink()
    wait_until(lambda: usage.problem is None)
    usage.close()
    assert told[1:] == [("usage is written again", None)]
    rows = {row["key"]: row["requests"] for row in read_usage(small_disk / "usage.sqlite", ["key"])}
    assert rows == {f"key-{i}": 1 + (i == 0) for i in range(300)}


def test_a_server_that_starts_on_a_full_disk_counts_once_there_is_room(small_disk):
    fill(small_disk)
    usage = Usage(small_disk / "usage.sqlite", flush_s=0.02)
    assert usage.problem is not None
    usage.add(record())
    (small_disk / "filler").unlink()
    wait_until(lambda: usage.problem is None)
    usage.close()
    assert [row["requests"] for row in read_usage(small_disk / "usage.sqlite", ["key"])] == [1]


def test_memory_is_bounded_by_rows_not_by_calls(file):
    usage = Usage(file, flush_s=0.01)
    usage._connect = lambda: (_ for _ in ()).throw(sqlite3.OperationalError("database or disk is full"))  # type: ignore
    usage._drop_connection()
    for _ in range(5000):
        usage.add(record())
    wait_until(lambda: not usage._fresh)
    assert len(usage._sums) == 1 and usage.pending == 5000
    usage.close()


def test_what_is_no_database_is_refused_at_start(file):
    file.write_text("this is no database, and long enough to be looked at" * 100)
    with pytest.raises(StorageError, match=r"usage.sqlite \(usage_file\) cannot be used: file is not a database"):
        Usage(file)


def test_a_newer_file_is_left_alone(file):
    Usage(file).close()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(StorageError, match="version 9; this Gemworks knows version 1"):
        Usage(file)
    with pytest.raises(StorageError, match="version 9"):
        list(read_usage(file, ["key"]))


def test_what_cannot_be_summed_is_said(file):
    with pytest.raises(ConfigError, match='summed by day, key, model, route, not by "year"'):
        list(read_usage(file, ["year"]))
    with pytest.raises(StorageError, match="does not exist: no server has counted anything there yet"):
        list(read_usage(file, ["key"]))
